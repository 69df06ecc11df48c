package proxy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/proxy/proxytest"
	"flock.fritzlab.net/flock/pkg/pod"
)

func open(t testing.TB, ns *nettest.NS) (r *Reader) {
	t.Helper()
	ns.Run(func() {
		var err error
		if r, err = Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(r.Close)
	return r
}

var modes = []Mode{NFTables, IPTables, Legacy}

// program writes the rules for ports of one family, as kube-proxy does in a mode.
func program(t testing.TB, ns *nettest.NS, m Mode, ipv4 bool, ports ...proxytest.Port) {
	t.Helper()
	pods, tool := netip.MustParsePrefix("2001:db8:100::/48"), "ip6tables"
	if ipv4 {
		pods, tool = netip.MustParsePrefix("10.244.0.0/16"), "iptables"
	}
	file := filepath.Join(t.TempDir(), "rules")
	rules := proxytest.IPTables(pods, ports...)
	if m == NFTables {
		rules = proxytest.NFTables(pods, ports...)
	}
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	switch m {
	case NFTables:
		ns.Exec("nft", "-f", file)
	case IPTables:
		ns.Exec(tool+"-nft-restore", file)
	case Legacy:
		ns.Exec(tool+"-legacy-restore", file)
	}
}

func addrPort(ipv4 bool, node, n int) netip.AddrPort {
	if ipv4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(node), byte(n)}), uint16(8000+n))
	}
	return netip.MustParseAddrPort(fmt.Sprintf("[2001:db8:100:%x::%x]:%d", node, n, 8000+n))
}

// keyOf is what is asked about a port.
func keyOf(p proxytest.Port) Key {
	namespace, rest, _ := strings.Cut(p.Name, "/")
	name, port, _ := strings.Cut(rest, ":")
	return Key{Target{p.Addr, pod.Protocols[p.Protocol], p.Port}, Owner{namespace, name, port}}
}

func vip(ipv4 bool, n int) netip.Addr {
	if ipv4 {
		return netip.AddrFrom4([4]byte{203, 0, 113, byte(n)})
	}
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:5::%x", n))
}

// What kube-proxy's rules of each mode say is read back.
func TestRead(t *testing.T) {
	t.Parallel()
	for _, m := range modes {
		for _, ipv4 := range []bool{false, true} {
			t.Run(fmt.Sprint(m, "/ipv4 ", ipv4), func(t *testing.T) {
				t.Parallel()
				ns := nettest.New(t)
				r := open(t, ns)
				var ports []proxytest.Port
				for _, local := range []bool{false, true} {
					for _, affinity := range []bool{false, true} {
						for _, protocol := range []string{"tcp", "udp", "sctp"} {
							for here := range 4 {
								for elsewhere := range 2 {
									n := len(ports)
									p := proxytest.Port{
										Name: fmt.Sprintf("shop/web-%d:http", n), Addr: vip(ipv4, n%100), Protocol: protocol, Port: uint16(80 + n),
										Local: local, Affinity: affinity,
									}
									for i := range here {
										p.Here = append(p.Here, addrPort(ipv4, 1, 1+i))
									}
									for i := range elsewhere {
										p.Elsewhere = append(p.Elsewhere, addrPort(ipv4, 2, 1+i))
									}
									ports = append(ports, p)
								}
							}
						}
					}
				}
				if look, err := r.Read(nil); err != nil || look.Mode != None {
					t.Fatalf("without rules: %+v, %v", look, err)
				}
				program(t, ns, m, ipv4, ports...)
				if look, err := r.Read(nil); err != nil || look.Mode != m {
					t.Fatalf("nothing is asked: %+v, %v", look, err)
				}
				questions, want := []Question{}, Look{Mode: m, At: map[Key]Rule{}}
				for _, p := range ports {
					key := keyOf(p)
					q := Question{Key: key, Here: p.Local || p.Port%2 == 0}
					questions = append(questions, q)
					rule := Rule{Translated: len(p.Here)+len(p.Elsewhere) > 0, Anywhere: !p.Local && q.Here}
					if p.Local {
						rule.Here = p.Here
					}
					if rule.Translated {
						want.At[key] = rule
					}
					// Nothing is known of a port, protocol or address beside it.
					questions = append(questions, Question{Key: Key{Target{key.Addr, key.Protocol, key.Port + 1000}, key.Owner}, Here: true},
						Question{Key: Key{Target{key.Addr, 255, key.Port}, key.Owner}}, Question{Key: Key{Target{vip(ipv4, 250), key.Protocol, key.Port}, key.Owner}})
					// It is no other Service's, nor another port's.
					for _, o := range []Owner{{"shop", key.Name, ""}, {"shop", key.Name, "https"}, {"shop", key.Name + "0", key.PortName}, {"evil", key.Name, key.PortName}} {
						questions = append(questions, Question{Key: Key{key.Target, o}, Here: true})
					}
				}
				got, err := r.Read(questions)
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(got, want) {
					for key, w := range want.At {
						if !reflect.DeepEqual(got.At[key], w) {
							t.Errorf("%v: %+v, want %+v", key, got.At[key], w)
						}
					}
					t.Errorf("mode %q and %d keys, want %q and %d", got.Mode, len(got.At), want.Mode, len(want.At))
				}
				if i := slices.IndexFunc(ports, func(p proxytest.Port) bool { return p.Local && len(p.Here) > 0 }); true {
					p := ports[i]
					rule := got.At[keyOf(p)]
					if !rule.IsHere(p.Here[0].Addr()) || rule.IsHere(vip(ipv4, 1)) {
						t.Errorf("IsHere of %+v", rule)
					}
				}
			})
		}
	}
}

// Each change of nftables by another program is reported, and what is read then is what came
// of it.
func TestWatch(t *testing.T) {
	t.Parallel()
	for _, m := range []Mode{NFTables, IPTables} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			ns := nettest.New(t)
			r := open(t, ns)
			ctx, cancel := context.WithCancel(context.Background())
			changed, done := cell.Signal(), make(chan error, 1)
			go func() { done <- r.Watch(ctx, func() { cell.Wake(changed) }) }()
			defer func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			p := proxytest.Port{Name: "shop/web:http", Addr: vip(true, 7), Protocol: "tcp", Port: 80, Local: true}
			written := cell.Signal()
			r.Written().Notify(written)
			<-written // at once
			for i := range 5 {
				p.Here = nil
				if i%2 == 0 {
					p.Here = []netip.AddrPort{addrPort(true, 1, 1+i)}
				}
				program(t, ns, m, true, p)
				<-written
				nettest.Eventually(t, func() error {
					<-changed
					look, err := r.Read([]Question{{keyOf(p), true}})
					if err != nil {
						return err
					}
					if here := look.At[keyOf(p)].Here; !slices.Equal(here, p.Here) {
						return fmt.Errorf("read %v, want %v", here, p.Here)
					}
					return nil
				})
			}
		})
	}
}

// While kube-proxy replaces its chains, as it does when a port of a Service gets another name, what is
// read is what was there before or after.
func TestReadWhileReplaced(t *testing.T) {
	t.Parallel()
	for _, m := range []Mode{NFTables, IPTables} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			ns := nettest.New(t)
			r := open(t, ns)
			var ports [2]proxytest.Port
			var questions []Question
			for i := range ports {
				ports[i] = proxytest.Port{Name: fmt.Sprintf("shop/web:%d", i), Addr: vip(true, 7), Protocol: "tcp", Port: 80, Local: true, Here: []netip.AddrPort{addrPort(true, 1, 1)}}
				questions = append(questions, Question{keyOf(ports[i]), true})
			}
			files := make([]string, len(ports))
			for i, p := range ports {
				rules, pods := proxytest.NFTables, netip.MustParsePrefix("10.244.0.0/16")
				if m == IPTables {
					rules = proxytest.IPTables
				}
				files[i] = filepath.Join(t.TempDir(), "rules")
				if err := os.WriteFile(files[i], []byte(rules(pods, p)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			replace := func(i int) {
				if m == NFTables {
					ns.Exec("nft", "-f", files[i])
				} else { // as kube-proxy does
					ns.Exec("iptables-nft-restore", "--noflush", files[i])
				}
			}
			replace(0)
			done := make(chan struct{})
			go func() {
				defer close(done)
				for i := range 30 {
					replace((i + 1) % 2)
				}
			}()
			for reads := 1; ; reads++ {
				look, err := r.Read(questions)
				if err != nil {
					t.Fatal(err)
				}
				var here []netip.AddrPort
				for _, q := range questions {
					here = append(here, look.At[q.Key].Here...)
				}
				if !slices.Equal(here, ports[0].Here) {
					t.Errorf("read %d: %v", reads, look)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
}

// kube-proxy's epoch is another when it has been started, which writes the rules that it always has
// again, and not when others write. In mode nftables it stays when kube-proxy writes others.
func TestEpoch(t *testing.T) {
	t.Parallel()
	start := map[Mode]string{
		NFTables: "flush chain ip kube-proxy nat-prerouting; add rule ip kube-proxy nat-prerouting jump services",
		IPTables: "*nat\n:KUBE-MARK-MASQ - [0:0]\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\nCOMMIT\n",
	}
	for _, m := range []Mode{NFTables, IPTables, Legacy, None} {
		t.Run(cmp.Or(string(m), "none"), func(t *testing.T) {
			t.Parallel()
			ns := nettest.New(t)
			r := open(t, ns)
			epoch := func() string {
				t.Helper()
				e, err := r.Epoch()
				if err != nil {
					t.Fatal(err)
				}
				return e
			}
			if m != None {
				program(t, ns, m, true, proxytest.Port{Name: "shop/web:http", Addr: vip(true, 7), Protocol: "tcp", Port: 80})
			}
			before := epoch()
			if (before != "") != (start[m] != "") {
				t.Errorf("epoch %q", before)
			}
			ns.Exec("nft", "add table ip other; add chain ip other a; add rule ip other a accept")
			if m == NFTables {
				ns.Exec("nft", "add chain ip kube-proxy endpoint-a; add rule ip kube-proxy endpoint-a accept")
			}
			if after := epoch(); after != before {
				t.Errorf("epoch %q, and %q when others have written", before, after)
			}
			switch m {
			case NFTables:
				ns.Exec("nft", start[m])
			case IPTables:
				ns.Exec("sh", "-c", "printf '"+start[m]+"' | iptables-nft-restore --noflush")
			default:
				return
			}
			if after := epoch(); after == before || after == "" {
				t.Errorf("epoch %q, and %q after a start", before, after)
			}
		})
	}
}

// The chain of a Service says which one it is: kube-proxy's names, from a cluster.
func TestOwner(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	of := func(namespace, name, port string, protocol byte) Key {
		return Key{Target{vip(true, 7), protocol, 80}, Owner{namespace, name, port}}
	}
	for _, c := range []struct {
		key       Key
		nft, ipt  string
		isNotNFT  []string
		isNotIPTs []string
	}{
		{of("ns1", "svc1", "p80", 6), "external-ULMVA6XW-ns1/svc1/tcp/p80", "KUBE-EXT-XPGD46QRK7WJZT7O", []string{
			"external-ULMVA6XW-ns1/svc1/tcp/p8", "external-ULMVA6XW-ns1/svc1/udp/p80", "external-ULMVA6XW-ns1/svc1/tcp/p80...", "external-ULMVA6XW-...", "external", "", "reject-chain",
		}, []string{"KUBE-EXT-XPGD46QRK7WJZT7P", "KUBE-EXT-", "", "KUBE-MARK-MASQ"}},
		{of("ns1", "svc1", "", 6), "service-A-ns1/svc1/tcp/", "KUBE-SVC-" + hashed("ns1/svc1tcp"), []string{"service-A-ns1/svc1/tcp/p"}, []string{"KUBE-SVC-" + hashed("ns1/svc1:tcp")}},
		{of(long, long, long, 132), "external-ABCDEFGH-" + long + "/" + long + "/sctp/" + long, "KUBE-FW-" + hashed(long+"/"+long+":"+long+"sctp"), nil, nil},
	} {
		if !c.key.ownsNFT(c.nft) || !c.key.ownsIPT(c.ipt) {
			t.Errorf("%v: %s is not its own, or %s", c.key, c.nft, c.ipt)
		}
		for _, chain := range c.isNotNFT {
			if c.key.ownsNFT(chain) {
				t.Errorf("%v: %q is its own", c.key, chain)
			}
		}
		for _, chain := range c.isNotIPTs {
			if c.key.ownsIPT(chain) {
				t.Errorf("%v: %q is its own", c.key, chain)
			}
		}
	}
}

func hashed(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base32.StdEncoding.EncodeToString(sum[:])[:16]
}

// A clusterIP with the traffic policy Local leads to the chain of the policy itself.
func TestClusterIP(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := open(t, ns)
	p := proxytest.Port{Name: "shop/web:http", Addr: vip(true, 7), Protocol: "tcp", Port: 80, Local: true, Here: []netip.AddrPort{addrPort(true, 1, 1)}}
	program(t, ns, NFTables, true, p)
	var local string
	for field := range strings.FieldsSeq(ns.Exec("nft", "list", "table", "ip", "kube-proxy")) {
		if strings.HasPrefix(field, nftLocal) {
			local = field
		}
	}
	ns.Exec("nft", "add", "element", "ip", "kube-proxy", "service-ips", "{ 10.96.0.7 . tcp . 80 : goto "+local+" }")
	p.Addr = netip.MustParseAddr("10.96.0.7")
	look, err := r.Read([]Question{{keyOf(p), true}})
	if err != nil || !reflect.DeepEqual(look.At[keyOf(p)], Rule{Translated: true, Here: p.Here}) {
		t.Errorf("%+v, %v", look, err)
	}
}

// A table of another program's that is called like kube-proxy's, or like iptables', does no harm.
func TestOthersTables(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := open(t, ns)
	for _, table := range []string{
		"table ip kube-proxy { }",
		"table ip kube-proxy { map service-ips { type ipv4_addr : verdict; elements = { 203.0.113.1 : drop }; }; }",
		"table ip nat { chain KUBE-SVL-X { counter; }; chain KUBE-EXT-X { goto KUBE-SVL-X; }; chain KUBE-SERVICES { ip daddr 203.0.113.7 drop; counter; th dport 80 accept; ip daddr 203.0.113.0/24 jump KUBE-EXT-X; }; }",
	} {
		file := filepath.Join(t.TempDir(), "rules")
		if err := os.WriteFile(file, []byte("flush ruleset\n"+table), 0o600); err != nil {
			t.Fatal(err)
		}
		ns.Exec("nft", "-f", file)
		look, err := r.Read([]Question{{keyOf(proxytest.Port{Name: "shop/web:http", Addr: vip(true, 7), Protocol: "tcp", Port: 80}), true}})
		if len(look.At) > 0 {
			t.Errorf("%s: %+v, %v", table, look, err)
		}
	}
}

// kube-proxy in mode ipvs has a chain KUBE-SERVICES, and no rule of it is one of mode iptables.
// The first rule of that mode is known as such, before there is a Service.
func TestIPVSIsNoMode(t *testing.T) {
	t.Parallel()
	for _, m := range []Mode{IPTables, Legacy} {
		for _, ipv4 := range []bool{false, true} {
			t.Run(fmt.Sprint(m, "/ipv4 ", ipv4), func(t *testing.T) {
				t.Parallel()
				ns := nettest.New(t)
				r := open(t, ns)
				tool := map[Mode]string{IPTables: "nft", Legacy: "legacy"}[m]
				family := "ip6tables-"
				if ipv4 {
					family = "iptables-"
				}
				nat := func(args ...string) { ns.Exec(family+tool, append([]string{"-t", "nat"}, args...)...) }
				for _, chain := range []string{"KUBE-SERVICES", "KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-MARK-MASQ"} {
					nat("-N", chain)
				}
				nat("-A", "PREROUTING", "-j", "KUBE-SERVICES")
				nat("-A", "KUBE-SERVICES", "-j", "KUBE-LOAD-BALANCER")
				nat("-A", "KUBE-SERVICES", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "KUBE-NODE-PORT")
				question := Question{Key: Key{Target{vip(ipv4, 7), 6, 80}, Owner{"shop", "web", "http"}}, Here: true}
				if look, err := r.Read([]Question{question}); err != nil || look.Mode != None || len(look.At) > 0 {
					t.Errorf("ipvs: %+v, %v", look, err)
				}
				program(t, ns, m, ipv4)
				if look, err := r.Read([]Question{question}); err != nil || look.Mode != m || len(look.At) > 0 {
					t.Errorf("no Service yet: %+v, %v", look, err)
				}
			})
		}
	}
}

// BenchmarkRead is a look at a hundred Services in a cluster of ten thousand.
func BenchmarkRead(b *testing.B) {
	for _, m := range modes {
		b.Run(string(m), func(b *testing.B) {
			ns := nettest.New(b)
			r := open(b, ns)
			var ports []proxytest.Port
			var questions []Question
			all := 10_000
			if m != NFTables {
				all = 1000
			}
			for n := range all {
				p := proxytest.Port{Name: fmt.Sprintf("shop/web-%d:http", n), Addr: vip(true, n%200), Protocol: "tcp", Port: uint16(80 + n), Local: true, Here: []netip.AddrPort{addrPort(true, 1, 1)}}
				ports = append(ports, p)
				if n < 100 {
					questions = append(questions, Question{Key: keyOf(p), Here: true})
				}
			}
			program(b, ns, m, true, ports...)
			for b.Loop() {
				if look, err := r.Read(questions); err != nil || len(look.At) != 100 {
					b.Fatal(len(look.At), err)
				}
			}
		})
	}
}
