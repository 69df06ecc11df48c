package wiring

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
)

// The plain listing of a wired pod: what an operator sees, held against what is
// documented.
func TestAttachMakesWhatIsDocumented(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	p := node.podWith(t, "c0ffee", "2001:db8:100::5", "10.244.0.5", "2001:db8:a::53", "192.0.2.53")
	p.Routed = p.Addrs[:2]
	got := node.attach(t, p)

	if want := "flockeff53ef0"; p.HostIf != want {
		t.Errorf("host interface %s, want %s", p.HostIf, want)
	}
	if got.HostMAC.String() != "02:66:6c:6f:63:6b" || got.PodMAC != PodMAC("c0ffee") || got.HostIfIndex < 2 {
		t.Errorf("attached = %+v", got)
	}
	for what, tc := range map[string]struct{ got, want string }{
		"pod's addresses": {p.IP("-brief", "address"), `
lo               UNKNOWN        127.0.0.1/8 ::1/128
eth0@if2         UP             10.244.0.5/32 192.0.2.53/32 2001:db8:a::53/128 2001:db8:100::5/128 fe80::a06b:99ff:feed:2270 peer fe80::1/128`},
		"pod's IPv6 routes": {p.IP("-6", "route"), `
2001:db8:100::5 dev eth0 proto kernel metric 256 pref medium
2001:db8:a::53 dev eth0 proto kernel metric 256 pref medium
fe80::1 dev eth0 proto kernel metric 256 pref medium
fe80::a06b:99ff:feed:2270 dev eth0 proto kernel metric 256 pref medium
default via fe80::1 dev eth0 proto 85 src 2001:db8:100::5 metric 1024 pref medium`},
		"pod's IPv4 routes": {p.IP("-4", "route"), `
default via 169.254.1.1 dev eth0 proto 85 src 10.244.0.5
169.254.1.1 dev eth0 proto 85 scope link`},
		"pod's neighbours": {p.IP("neighbour"), `
169.254.1.1 dev eth0 lladdr 02:66:6c:6f:63:6b PERMANENT proto 85
fe80::1 dev eth0 lladdr 02:66:6c:6f:63:6b PERMANENT proto 85`},
		"host's addresses": {node.ns.IP("-brief", "address", "show", "dev", p.HostIf), `
flockeff53ef0@if2 UP             fe80::1 peer fe80::a06b:99ff:feed:2270/128`},
		"host's IPv6 routes": {node.ns.IP("-6", "route"), `
2001:db8:100::5 dev flockeff53ef0 proto 85 metric 1024 pref medium
unreachable 2001:db8:100::/64 dev lo proto 85 metric 512 pref medium
fe80::1 dev flockeff53ef0 proto kernel metric 256 pref medium
fe80::a06b:99ff:feed:2270 dev flockeff53ef0 proto kernel metric 256 pref medium`},
		"host's IPv4 routes": {node.ns.IP("-4", "route"), `
unreachable 10.244.0.0/16 proto 85 metric 512
10.244.0.5 dev flockeff53ef0 proto 85 scope link metric 1024`},
		"host's neighbours": {node.ns.IP("neighbour"), `
10.244.0.5 dev flockeff53ef0 lladdr a2:6b:99:ed:22:70 PERMANENT proto 85
192.0.2.53 dev flockeff53ef0 lladdr a2:6b:99:ed:22:70 PERMANENT proto 85
2001:db8:100::5 dev flockeff53ef0 lladdr a2:6b:99:ed:22:70 PERMANENT proto 85
2001:db8:a::53 dev flockeff53ef0 lladdr a2:6b:99:ed:22:70 PERMANENT proto 85
fe80::a06b:99ff:feed:2270 dev flockeff53ef0 lladdr a2:6b:99:ed:22:70 PERMANENT proto 85`},
	} {
		if got := sortedLines(tc.got); got != sortedLines(tc.want) {
			t.Errorf("%s:\n%s\nwant:\n%s", what, got, sortedLines(tc.want))
		}
	}

	link := node.ns.IP("-details", "link", "show", "dev", p.HostIf)
	for _, want := range []string{"link/ether 02:66:6c:6f:63:6b", "alias test/c0ffee c0ffee", "numtxqueues 1 numrxqueues 1"} {
		if !strings.Contains(link, want) {
			t.Errorf("host's link has no %q:\n%s", want, link)
		}
	}
	for sysctl, want := range map[string]string{"forwarding": "1", "rp_filter": "0", "proxy_arp": "0"} {
		if got := node.ns.ReadSysctl("ipv4/conf/" + p.HostIf + "/" + sysctl); got != want {
			t.Errorf("%s = %s, want %s", sysctl, got, want)
		}
	}
}

func sortedLines(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Every pod reaches every other and the world outside, by both families, with
// its own address seen by the other side. And no link of a pod ever asks for a
// link-layer address: what is never asked is never answered wrongly, late, or not
// at all.
func TestPodsReachEachOtherAndTheOutsideWithoutResolving(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	router := node.uplink(t)
	node.apply(t)
	a, b := node.pod(t), node.pod(t)
	taps := []*tap{capture(t, a.NS), capture(t, b.NS)}
	node.attach(t, a)
	node.attach(t, b)

	for _, to := range []struct {
		name  string
		ns    *nettest.NS
		addrs []string
	}{
		{"pod", b.NS, []string{b.v6(), b.v4()}},
		{"router", router, []string{"2001:db8:0:1::1", "192.0.2.1"}},
		{"node", node.ns, []string{"2001:db8:0:1::11", "192.0.2.11"}},
	} {
		for _, addr := range to.addrs {
			own := a.v6()
			if !strings.Contains(addr, ":") {
				own = a.v4()
			}
			if got := seenFrom(t, a.NS, to.ns, addr); got != own {
				t.Errorf("the %s at %s sees the pod as %s, want %s", to.name, addr, got, own)
			}
			if got := seenFrom(t, to.ns, a.NS, own); got != addr {
				t.Errorf("the pod sees the %s as %s, want %s", to.name, got, addr)
			}
		}
	}
	// The gateway answers for people who look for it.
	nettest.Await(t, "the gateway answers", func() bool {
		_, err := a.Try("ping", "-c1", "-W1", "fe80::1%eth0")
		return err == nil
	})

	for i, tap := range taps {
		seen := 0
		for _, p := range tap.packets() {
			seen++
			if p.resolves() {
				t.Errorf("pod %d: address resolution on the wire: %+v", i, p)
			}
		}
		if seen == 0 {
			t.Errorf("pod %d: nothing was captured", i)
		}
	}
}

// seenFrom connects to addr in namespace to and returns whom that sees.
func seenFrom(t *testing.T, from, to *nettest.NS, addr string) string {
	t.Helper()
	var l net.Listener
	var err error
	to.Run(func() { l, err = net.Listen("tcp", net.JoinHostPort(addr, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprint(c, host)
			c.Close()
		}
	}()
	var c net.Conn
	from.Run(func() { c, err = net.Dial("tcp", l.Addr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Extra addresses, as of anycast, answer where they are routed to, and are never
// what the pod itself speaks from.
func TestExtraAddressesAnswerButAreNoSource(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	client := node.pod(t)
	server := node.podWith(t, "anycast", "2001:db8:100::aa", "10.244.0.170", "2001:db8:100::1:1", "2001:db8:a::53", "10.0.0.53")
	server.Routed = server.Addrs[:2]
	node.attach(t, client)
	node.attach(t, server)

	for _, addr := range []string{"2001:db8:a::53", "10.0.0.53"} {
		if out, err := client.Try("ping", "-c1", "-W1", addr); err == nil {
			t.Errorf("%s answers without a route of its owner's:\n%s", addr, out)
		}
		node.ns.IP("route", "add", addr, "dev", server.HostIf, "proto", "85", "metric", "512")
		client.Exec("ping", "-c1", "-W5", addr)
	}
	if got := seenFrom(t, server.NS, client.NS, client.v6()); got != "2001:db8:100::aa" {
		t.Errorf("the pod speaks from %s, want its first IPv6 address", got)
	}
	if got := seenFrom(t, server.NS, client.NS, client.v4()); got != "10.244.0.170" {
		t.Errorf("the pod speaks from %s, want its first IPv4 address", got)
	}
}

func TestPodsOfOneFamily(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, addr, other, outside string }{
		{"IPv4 only", "10.244.0.4", "-6", "192.0.2.1"},
		{"IPv6 only", "2001:db8:100::6", "-4", "2001:db8:0:1::1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			node.uplink(t)
			node.apply(t)
			p := node.podWith(t, "one-family", tc.addr)
			node.attach(t, p)
			p.Exec("ping", "-c1", "-W5", tc.outside)
			if out := p.IP(tc.other, "address", "show", "dev", "eth0"); out != "" {
				t.Errorf("addresses of the other family:\n%s", out)
			}
			if out := p.IP(tc.other, "route"); out != "" {
				t.Errorf("routes of the other family:\n%s", out)
			}
			if err := node.Check(p.File(), p.Attachment); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMTU(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	router := node.uplink(t)
	node.ns.IP("link", "set", "uplink", "mtu", "9000")
	router.IP("link", "set", "lan", "mtu", "9000")
	node.apply(t)
	for _, tc := range []struct {
		mtu, want int
		addrs     []string
	}{
		{0, 1500, []string{"2001:db8:100::1", "10.244.0.1"}},
		{1280, 1280, []string{"2001:db8:100::2", "10.244.0.2"}},
		{9000, 9000, []string{"2001:db8:100::3", "10.244.0.3"}},
		{576, 576, []string{"10.244.0.4"}}, // IPv6 does not exist on such a link
	} {
		p := node.podWith(t, fmt.Sprint("mtu-", tc.mtu), tc.addrs...)
		p.MTU = tc.mtu
		node.attach(t, p)
		for name, ns := range map[string]*nettest.NS{"eth0": p.NS, p.HostIf: node.ns} {
			if out := ns.IP("link", "show", "dev", name); !strings.Contains(out, fmt.Sprintf(" mtu %d ", tc.want)) {
				t.Errorf("mtu %d: want %d on %s:\n%s", tc.mtu, tc.want, name, out)
			}
		}
		// IPv4's header and ICMP's take 28 bytes.
		p.Exec("ping", "-c1", "-W5", "-M", "do", "-s", fmt.Sprint(tc.want-28), "192.0.2.1")
		if out, err := p.Try("ping", "-c1", "-W1", "-M", "do", "-s", fmt.Sprint(tc.want-27), "192.0.2.1"); err == nil {
			t.Errorf("mtu %d: a larger packet went out:\n%s", tc.mtu, out)
		}
		if err := node.Check(p.File(), p.Attachment); err != nil {
			t.Errorf("mtu %d: %v", tc.mtu, err)
		}
	}
}

// A pod goes on answering from an anycast address that was withdrawn: no route leads
// to it any more, and the kernel does not ask for one, whatever the node's default for
// new links is. Whose addresses they are is pkg/datapath/sourceguard's to say. Where the node
// asks for it on all links, that is told.
func TestAnswersFromAWithdrawnAddressGoOut(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	router := node.uplink(t)
	node.apply(t)
	node.ns.Sysctl("ipv4/conf/default/rp_filter", "1")
	p := node.pod(t)
	node.attach(t, p)
	p.IP("address", "add", "203.0.113.53/32", "dev", "eth0")
	sent := func() bool {
		wire := capture(t, router)
		p.Try("ping", "-c1", "-W1", "-I", "203.0.113.53", "192.0.2.1")
		p.Exec("ping", "-c1", "-W5", "192.0.2.1")
		var withdrawn, own bool
		for _, packet := range wire.packets() {
			withdrawn = withdrawn || packet.src.String() == "203.0.113.53"
			own = own || packet.src.String() == p.v4()
		}
		if !own {
			t.Error("the router got nothing at all")
		}
		return withdrawn
	}
	for _, all := range []string{"0", "1", "2"} {
		node.ns.Sysctl("ipv4/conf/all/rp_filter", all)
		wanted, err := node.RPFilterEnabled()
		if got := sent(); err != nil || wanted == got || wanted != (all != "0") {
			t.Errorf("net.ipv4.conf.all.rp_filter=%s: sent: %t, told that a route is wanted: %t, %v", all, got, wanted, err)
		}
	}
}

// What a node's or a sandbox's settings would break is put right on flock's own
// links.
func TestAttachAgainstHostileSysctls(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	node.ns.Sysctl("ipv6/conf/default/accept_ra", "2")
	node.ns.Sysctl("ipv6/conf/default/disable_ipv6", "1")
	node.ns.Sysctl("ipv6/conf/default/addr_gen_mode", "0")
	node.ns.Sysctl("ipv4/conf/default/rp_filter", "2") // as systemd has it
	a, b := node.pod(t), node.pod(t)
	b.Sysctl("ipv6/conf/default/disable_ipv6", "1")
	node.attach(t, a)
	node.attach(t, b)
	a.Exec("ping", "-c1", "-W5", b.v6())
	for sysctl, want := range map[string]string{
		"ipv6/conf/" + a.HostIf + "/accept_ra":    "0", // a pod is no router
		"ipv6/conf/" + a.HostIf + "/disable_ipv6": "0",
		"ipv4/conf/" + a.HostIf + "/rp_filter":    "0",
	} {
		if got := node.ns.ReadSysctl(sysctl); got != want {
			t.Errorf("%s = %s, want %s", sysctl, got, want)
		}
	}
	if err := node.Check(b.File(), b.Attachment); err != nil {
		t.Error(err)
	}
}

func TestThirtyAtOnce(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	var pods []testPod
	for range 30 {
		pods = append(pods, node.pod(t))
	}
	var wg sync.WaitGroup
	for _, p := range pods {
		wg.Go(func() {
			if _, err := node.Attach(p.File(), p.Attachment); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, p := range pods {
		if err := node.Check(p.File(), p.Attachment); err != nil {
			t.Error(err)
		}
		p.Exec("ping", "-c1", "-W5", pods[(i+1)%len(pods)].v6())
	}
}
