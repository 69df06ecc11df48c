package sourceguard

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

// A testNode is a node with an uplink to the world outside, two pods, wiring and
// the guard. Another program's nftables has conntrack and defragmentation at work.
type testNode struct {
	*Guard
	ns, outside *nettest.NS
	host        *wiring.Host
	a, b        *testPod
	listeners   map[netip.Addr]*net.UDPConn
	t           testing.TB
}

type testPod struct {
	*nettest.NS
	wiring.Attachment
	mac       wiring.MAC
	linkLocal netip.Addr
	all       []netip.Addr // what it is bound to send from, beside linkLocal
	eth0      int          // a socket that sends frames
}

var (
	node6, node4       = addr("2001:db8:0:1::11"), addr("192.0.2.11")
	outside6, outside4 = addr("2001:db8:0:1::2"), addr("192.0.2.2")
	nowhere6, nowhere4 = addr("2001:db8:ffff::1"), addr("100.64.0.1") // behind outside
	static6, static4   = addr("2001:db8:5::1"), addr("198.51.100.1")
	anycast6, anycast4 = addr("2001:db8:53::53"), addr("203.0.113.53")
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// otherTable is what kube-proxy in nftables mode and a firewall are like.
const otherTable = `
table ip kube-proxy {
	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
	}
	chain nat-prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr . meta l4proto . th dport vmap @service-ips
	}
}
table inet firewall {
	counter tracked { }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related counter name "tracked"
	}
}
`

// newNetwork is a node with its uplink, without guard or pods.
func newNetwork(t testing.TB) *testNode {
	t.Helper()
	n := &testNode{ns: nettest.New(t), outside: nettest.New(t), listeners: map[netip.Addr]*net.UDPConn{}, t: t}
	n.ns.Veth("uplink", n.outside, "eth0")
	for _, a := range []string{node6.String() + "/64", node4.String() + "/24"} {
		n.ns.IP("address", "add", a, "dev", "uplink", "nodad")
	}
	for _, a := range []string{outside6.String() + "/64", outside4.String() + "/24"} {
		n.outside.IP("address", "add", a, "dev", "eth0", "nodad")
	}
	n.ns.IP("-6", "route", "add", "default", "via", outside6.String())
	n.ns.IP("-4", "route", "add", "default", "via", outside4.String())
	for _, p := range []string{"2001:db8:100::/48", "2001:db8:5::/64", "2001:db8:53::/64"} {
		n.outside.IP("-6", "route", "add", p, "via", node6.String())
	}
	for _, p := range []string{"10.244.0.0/16", "198.51.100.0/24", "203.0.113.0/24"} {
		n.outside.IP("-4", "route", "add", p, "via", node4.String())
	}
	n.load(t, otherTable)
	n.ns.Run(func() {
		var err error
		if n.host, err = wiring.Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(n.host.Close)
	if _, err := n.host.ApplyNode(wiring.NodeState{}); err != nil {
		t.Fatal(err)
	}
	return n
}

// newNode is a node with guard and two pods.
func newNode(t testing.TB) *testNode {
	t.Helper()
	n := newNetwork(t)
	n.addGuard(t)
	n.addPods(t)
	return n
}

func (n *testNode) addGuard(t testing.TB) {
	t.Helper()
	n.Guard = n.open(t)
	if err := n.Resync(nil); err != nil {
		t.Fatal(err)
	}
}

// addPods attaches the two pods. a has one address of every kind.
func (n *testNode) addPods(t testing.TB) {
	t.Helper()
	n.a = n.pod(t, "a", []netip.Addr{addr("2001:db8:100::a"), addr("10.244.1.10"), static6, static4}, anycast6, anycast4)
	n.b = n.pod(t, "b", []netip.Addr{addr("2001:db8:100::b"), addr("10.244.1.11")})
}

// open is what an agent's start does.
func (n *testNode) open(t testing.TB) (g *Guard) {
	t.Helper()
	n.ns.Run(func() {
		var err error
		if g, err = Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(g.Close)
	return g
}

// pod binds and wires a pod. The anycast addresses are on its link, but have no
// route, as while it is not Ready.
func (n *testNode) pod(t testing.TB, name string, routed []netip.Addr, anycast ...netip.Addr) *testPod {
	t.Helper()
	id := t.Name() + name
	p := &testPod{NS: nettest.New(t), mac: wiring.PodMAC(id), all: append(routed, anycast...)}
	p.linkLocal = wiring.LinkLocal(p.mac)
	p.Attachment = wiring.Attachment{
		ContainerID: id, HostIf: wiring.HostIfName(id), PodIf: "eth0", Alias: "test/" + name, Addrs: p.all, Routed: routed,
	}
	if n.Guard != nil {
		if err := n.Set(p.binding()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.host.Attach(p.File(), p.Attachment); err != nil {
		t.Fatal(err)
	}
	// The kernel makes the gateway's address usable some time after it was added.
	for until := deadline(); !strings.Contains(n.ns.IP("-6", "route", "show", "table", "local", "dev", p.HostIf), "local fe80::1 "); {
		if time.Now().After(until) {
			t.Fatalf("%s has no gateway", p.HostIf)
		}
	}
	p.eth0 = packetSocket(t, p.NS, 0)
	return p
}

func (p *testPod) binding() Binding {
	return Binding{HostIf: p.HostIf, LinkLocal: p.linkLocal, Sources: p.all}
}

func (p *testPod) v6() netip.Addr { return p.all[0] }
func (p *testPod) v4() netip.Addr { return p.all[1] }

// like is the pod's first address of a family.
func (p *testPod) like(a netip.Addr) netip.Addr {
	if a.Is4() {
		return p.v4()
	}
	return p.v6()
}

// packetSocket sends frames on a namespace's eth0, and receives those of a protocol.
func packetSocket(t testing.TB, ns *nettest.NS, protocol uint16) (fd int) {
	t.Helper()
	ns.Run(func() {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience}); err != nil {
			t.Fatal(err)
		}
		// Of protocol 0 it receives nothing.
		to := &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: eth0.Index}
		if err := unix.Bind(fd, to); err != nil {
			t.Fatal(err)
		}
	})
	return fd
}

// patience is how long a test waits for what must come, in seconds.
const patience = 10

func deadline() time.Time { return time.Now().Add(patience * time.Second) }

func (p *testPod) send(t testing.TB, frames ...[]byte) {
	t.Helper()
	send(t, p.eth0, frames...)
}

// send puts frames on the wire, all from one CPU: then the other end has worked
// through one before it sees the next.
func send(t testing.TB, fd int, frames ...[]byte) {
	t.Helper()
	onOneCPU(t, func() {
		for _, f := range frames {
			if _, err := unix.Write(fd, f); err != nil {
				t.Fatalf("send a frame of %d bytes: %v", len(f), err)
			}
		}
	})
}

func onOneCPU(t testing.TB, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, first unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.SchedSetaffinity(0, &before)
	for cpu := range 64 * len(before) {
		if before.IsSet(cpu) {
			first.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &first); err != nil {
		t.Fatal(err)
	}
	f()
}

// Every frame that must not arrive has forged in it, every one that must has honest.
const forged, honest = "forged by a test of flock", "honest, by a test of flock"

// observers are whoever could receive something from pod a: pod b and the world
// outside, on the wire, and the node's own programs.
type observers struct {
	wires []wire
	node  map[int]*net.UDPConn // by IP version
	asked int
}

type wire struct {
	name string
	fd   int
}

func (n *testNode) observe(t testing.TB) *observers {
	t.Helper()
	o := &observers{node: map[int]*net.UDPConn{}}
	for name, ns := range map[string]*nettest.NS{"pod b": n.b.NS, "outside": n.outside} {
		o.wires = append(o.wires, wire{name, packetSocket(t, ns, unix.ETH_P_ALL)})
	}
	n.ns.Run(func() {
		for version, network := range map[int]string{4: "udp4", 6: "udp6"} {
			c, err := net.ListenUDP(network, &net.UDPAddr{Port: testPort})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			o.node[version] = c
		}
	})
	return o
}

// nothingForged fails the test if a forged frame has come. It lets a send an
// honest packet to each, and looks at what came before.
func (o *observers) nothingForged(t testing.TB, n *testNode) {
	t.Helper()
	o.asked++
	token := fmt.Sprintf("%s, number %d.", honest, o.asked)
	for _, dst := range append(n.destinations(n.a.v6()), node4) {
		src := n.a.like(dst)
		n.a.send(t, packet(n.a.mac, src, dst, unix.IPPROTO_UDP, udp(src, dst, token)))
	}
	in := make([]byte, 1<<16)
	for _, w := range o.wires {
		for came := false; !came; {
			k, err := unix.Read(w.fd, in)
			if err != nil {
				t.Fatalf("%s: a's own packet did not come: %v", w.name, err)
			}
			if bytes.Contains(in[:k], []byte(forged)) {
				t.Errorf("%s received a forged frame: % x", w.name, in[:k])
			}
			came = bytes.Contains(in[:k], []byte(token))
		}
	}
	for version, c := range o.node {
		c.SetReadDeadline(deadline())
		for came := false; !came; {
			k, from, err := c.ReadFromUDPAddrPort(in)
			if err != nil {
				t.Fatalf("node, IPv%d: a's own packet did not come: %v", version, err)
			}
			if bytes.Contains(in[:k], []byte(forged)) {
				t.Errorf("node received a forged packet from %v", from)
			}
			came = bytes.Contains(in[:k], []byte(token))
		}
	}
}

// destinations are an address of every observer, of the family of src.
func (n *testNode) destinations(src netip.Addr) []netip.Addr {
	if src.Is4() {
		return []netip.Addr{n.b.v4(), outside4, node4}
	}
	return []netip.Addr{n.b.v6(), outside6, node6}
}

// dropped is what was dropped of a pod's packets so far.
func (n *testNode) dropped(t testing.TB, p *testPod) uint64 {
	t.Helper()
	drops, _, err := n.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range drops {
		if d.HostIf == p.HostIf {
			return d.Packets
		}
	}
	t.Fatalf("no counter for %s in %v", p.HostIf, drops)
	return 0
}

func (n *testNode) load(t testing.TB, ruleset string) {
	t.Helper()
	f := t.TempDir() + "/ruleset.nft"
	if err := os.WriteFile(f, []byte(ruleset), 0o600); err != nil {
		t.Fatal(err)
	}
	n.ns.Exec("nft", "-f", f)
}

// pods are bindings of n pods, dual-stack with one more address each.
func pods(n int) []Binding {
	bs := make([]Binding, n)
	for i := range bs {
		hi, lo := byte(i>>8), byte(i)
		bs[i] = Binding{
			HostIf:    fmt.Sprintf("flock%08x", 0xb0000000+i),
			LinkLocal: netip.AddrFrom16([16]byte{0xfe, 0x80, 14: hi, 15: lo}),
			Sources: []netip.Addr{
				netip.AddrFrom16([16]byte{0x20, 0x01, 0xd, 0xb8, 14: hi, 15: lo}),
				netip.AddrFrom4([4]byte{10, 1, hi, lo}),
				netip.AddrFrom16([16]byte{0x20, 0x01, 0xd, 0xb8, 1, 14: hi, 15: lo}),
			},
		}
	}
	return bs
}
