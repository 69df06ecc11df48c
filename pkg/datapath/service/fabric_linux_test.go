package service

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/proxy/proxytest"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

var (
	node    = addrs{netip.MustParseAddr("2001:db8:0:1::11"), netip.MustParseAddr("192.0.2.11")}
	outside = addrs{netip.MustParseAddr("2001:db8:0:1::1"), netip.MustParseAddr("192.0.2.1")}
	here    = addrs{netip.MustParseAddr("2001:db8:100:1::a"), netip.MustParseAddr("10.244.1.10")}
	there   = addrs{netip.MustParseAddr("2001:db8:100:2::b"), netip.MustParseAddr("10.244.2.11")}
	vip     = addrs{netip.MustParseAddr("2001:db8:5::7"), netip.MustParseAddr("203.0.113.7")}
	cidrs   = map[bool]netip.Prefix{false: netip.MustParsePrefix("2001:db8:100::/48"), true: netip.MustParsePrefix("10.244.0.0/16")}
)

// addrs are one address of each family, IPv6 first.
type addrs [2]netip.Addr

// servicePort is the port of the Service, and podPort that of its pods.
const servicePort, podPort = 80, 8080

// fabric is a client outside, a node with a pod, and a pod of another node, which is behind
// the client's router.
type fabric struct {
	t                        *testing.T
	client, node, pod, other *nettest.NS
	routes                   *Routes
}

func newFabric(t *testing.T) *fabric {
	f := &fabric{t: t, client: nettest.New(t), node: nettest.New(t), pod: nettest.New(t), other: nettest.New(t)}
	for _, ns := range []*nettest.NS{f.node, f.client} {
		ns.Sysctl("ipv6/conf/all/forwarding", "1")
		ns.Sysctl("ipv4/ip_forward", "1")
	}
	// ICMP errors are limited to one in a while for each host.
	f.node.Sysctl("ipv4/icmp_ratelimit", "0")
	f.node.Sysctl("ipv6/icmp/ratelimit", "0")
	f.client.Veth("eth0", f.node, "eth0")
	f.client.Veth("other", f.other, "eth0")
	for i, bits := range []int{64, 24} {
		f.client.Address("eth0", netip.PrefixFrom(outside[i], bits).String())
		f.node.Address("eth0", netip.PrefixFrom(node[i], bits).String())
		f.other.Address("eth0", netip.PrefixFrom(there[i], bits).String())
		f.client.Address("other", netip.PrefixFrom(there[i].Next(), bits).String())
		f.node.IP("route", "add", "default", "via", outside[i].String())
		f.other.IP("route", "add", "default", "via", there[i].Next().String())
		f.client.IP("route", "add", netip.PrefixFrom(here[i], bits).Masked().String(), "via", node[i].String())
		f.client.IP("route", "add", netip.PrefixFrom(vip[i], bits).Masked().String(), "via", node[i].String())
	}
	f.routes = openRoutes(t, f.node, true)
	f.attach(f.pod, "a", here)
	answers(t, f.pod, "here", podPort)
	answers(t, f.other, "there", podPort)
	answers(t, f.node, "node", servicePort)
	answers(t, f.node, "node", podPort)
	return f
}

// attach makes a namespace a pod's of the node.
func (f *fabric) attach(ns *nettest.NS, name string, own addrs) {
	f.t.Helper()
	var host *wiring.Host
	f.node.Run(func() {
		var err error
		if host, err = wiring.Open(); err != nil {
			f.t.Fatal(err)
		}
	})
	defer host.Close()
	if _, err := host.Attach(ns.File(), wiring.Attachment{
		ContainerID: name, HostIf: wiring.HostIfName(name), PodIf: "eth0", Alias: "shop/" + name, Addrs: own[:], Routed: own[:],
	}); err != nil {
		f.t.Fatal(err)
	}
}

// addPod adds a pod of the node, which answers with its name.
func (f *fabric) addPod(name string, own addrs) {
	f.t.Helper()
	ns := nettest.New(f.t)
	f.attach(ns, name, own)
	answers(f.t, ns, name, podPort)
}

// announce has the kernel have the routes to the Service's addresses.
func (f *fabric) announce() {
	f.t.Helper()
	want := map[netip.Prefix]Entry{}
	for _, a := range vip {
		want[netip.PrefixFrom(a, a.BitLen())] = Entry{Announced: true, Local: true}
	}
	if err := reset(f.routes, want, nil); err != nil {
		f.t.Fatal(err)
	}
}

// mode is one of kube-proxy's.
type mode string

const (
	nftables mode = "nftables"
	iptables mode = "iptables"
	// legacy is iptables with the kernel's older interface, which does not notify.
	legacy mode = "iptables-legacy"
)

var modes = []mode{nftables, iptables, legacy}

// program has kube-proxy's rules be those for the Service's port.
func (f *fabric) program(m mode, p proxytest.Port) {
	f.t.Helper()
	for i, a := range vip {
		p.Addr = a
		v := p
		v.Here, v.Elsewhere = ofFamily(p.Here, a), ofFamily(p.Elsewhere, a)
		cidr := cidrs[a.Is4()]
		file := filepath.Join(f.t.TempDir(), fmt.Sprint("rules", i))
		write := func(rules string) {
			if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
				f.t.Fatal(err)
			}
		}
		tool := []string{"ip6tables", "iptables"}[i] + "-nft-restore"
		switch m {
		case nftables:
			write(proxytest.NFTables(cidr, v))
			f.node.Exec("nft", "-f", file)
			continue
		case legacy:
			tool = strings.Replace(tool, "-nft-", "-legacy-", 1)
		}
		write(proxytest.IPTables(cidr, v))
		f.node.Exec(tool, file)
	}
}

func ofFamily(all []netip.AddrPort, a netip.Addr) (some []netip.AddrPort) {
	for _, e := range all {
		if e.Addr().Is4() == a.Is4() {
			some = append(some, e)
		}
	}
	return some
}

// endpoints are a pod's, of both families.
func endpoints(a addrs) []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(a[0], podPort), netip.AddrPortFrom(a[1], podPort)}
}

// answers has a namespace answer on a port, for TCP and UDP, with its name and the address
// of who asked.
func answers(t *testing.T, ns *nettest.NS, name string, port int) {
	t.Helper()
	ns.Run(func() {
		addr := fmt.Sprintf("[::]:%d", port)
		stream, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		packets, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { packets.Close() })
		from := func(a net.Addr) string { return netip.MustParseAddrPort(a.String()).Addr().Unmap().String() }
		nettest.Serve(t, stream, func(c net.Conn) { fmt.Fprintf(c, "%s %s", name, from(c.RemoteAddr())) })
		go func() {
			b := make([]byte, 100)
			for {
				_, a, err := packets.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = packets.WriteTo(fmt.Appendf(nil, "%s %s", name, from(a)), a)
			}
		}()
	})
}

// What comes of a connection, in place of an answer.
const (
	refusedAtOnce = "refused"
	noAnswer      = "no answer"
)

// ask returns the answer to a connection from a namespace.
func ask(t *testing.T, ns *nettest.NS, network string, addr netip.Addr, port int) (answer string) {
	t.Helper()
	const patience = 300 * time.Millisecond // a SYN is repeated after a second
	ns.Run(func() {
		c, err := net.DialTimeout(network, netip.AddrPortFrom(addr, uint16(port)).String(), patience)
		if err == nil {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			var b []byte
			if network == "udp" {
				_, _ = c.Write([]byte("?"))
				b = make([]byte, 100)
				var n int
				n, err = c.Read(b)
				b = b[:n]
			} else {
				b, err = io.ReadAll(c)
			}
			answer = string(b)
		}
		var timeout net.Error
		switch {
		case err == nil:
		case errors.Is(err, syscall.ECONNREFUSED):
			answer = refusedAtOnce
		case errors.As(err, &timeout) && timeout.Timeout():
			answer = noAnswer
		default:
			answer = err.Error()
		}
	})
	return answer
}
