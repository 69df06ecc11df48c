package wiring

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
)

// testNode is a node of one test: its namespace, and flock's side of it.
type testNode struct {
	*Host
	ns *nettest.NS
	n  int // pods made
}

func newNode(t testing.TB) *testNode {
	t.Helper()
	n := &testNode{ns: nettest.New(t)}
	n.Host = n.open(t)
	return n
}

// open is what an agent's start does.
func (n *testNode) open(t testing.TB) (h *Host) {
	t.Helper()
	n.ns.Run(func() {
		var err error
		if h, err = Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(h.Close)
	return h
}

// uplink gives the node a router, as its default route, that knows the way back
// to the node's pods: 2001:db8:0:1::1 and 192.0.2.1.
func (n *testNode) uplink(t testing.TB) (router *nettest.NS) {
	t.Helper()
	router = nettest.New(t)
	n.ns.Veth("uplink", router, "lan")
	n.ns.Address("uplink", "2001:db8:0:1::11/64")
	n.ns.Address("uplink", "192.0.2.11/24")
	router.Address("lan", "2001:db8:0:1::1/64")
	router.Address("lan", "192.0.2.1/24")
	n.ns.IP("route", "add", "default", "via", "192.0.2.1")
	n.ns.IP("-6", "route", "add", "default", "via", "2001:db8:0:1::1")
	router.IP("route", "add", podNet6.String(), "via", "2001:db8:0:1::11")
	router.IP("route", "add", podNet4.String(), "via", "192.0.2.11")
	return router
}

// A testPod is a sandbox and what its attachment shall be.
type testPod struct {
	*nettest.NS
	Attachment
}

var (
	podNet6 = netip.MustParsePrefix("2001:db8:100::/64")
	podNet4 = netip.MustParsePrefix("10.244.0.0/16")
)

// pod makes a sandbox with the next addresses of the node's prefixes.
func (n *testNode) pod(t testing.TB) testPod {
	t.Helper()
	n.n++
	a6, a4 := podNet6.Addr().As16(), podNet4.Addr().As4()
	a6[14], a6[15] = byte(n.n>>8), byte(n.n)
	a4[2], a4[3] = byte(n.n>>8), byte(n.n)
	return n.podWith(t, fmt.Sprintf("%s-%d", t.Name(), n.n), netip.AddrFrom16(a6).String(), netip.AddrFrom4(a4).String())
}

// podWith makes a sandbox with these addresses, all of them routed.
func (n *testNode) podWith(t testing.TB, id string, addrs ...string) testPod {
	t.Helper()
	a := Attachment{
		ContainerID: id, HostIf: HostIfName(id), PodIf: "eth0", Alias: "test/" + id,
		MTU: 1500, Addrs: parseAddrs(addrs...),
	}
	a.Routed = a.Addrs
	return testPod{nettest.New(t), a}
}

func parseAddrs(ss ...string) (addrs []netip.Addr) {
	for _, s := range ss {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs
}

// v6 and v4 are the pod's first address of a family, as text.
func (p testPod) v6() string { return p.first(netip.Addr.Is6) }
func (p testPod) v4() string { return p.first(netip.Addr.Is4) }

func (p testPod) first(is func(netip.Addr) bool) string {
	for _, a := range p.Addrs {
		if is(a) {
			return a.String()
		}
	}
	return ""
}

func (n *testNode) attach(t testing.TB, p testPod) Attached {
	t.Helper()
	got, err := n.Attach(p.File(), p.Attachment)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (n *testNode) apply(t testing.TB) {
	t.Helper()
	if _, err := n.ApplyNode(NodeState{Summaries: []netip.Prefix{podNet6, podNet4}}); err != nil {
		t.Fatal(err)
	}
}

// listing is all that a namespace holds of links, addresses, neighbours and
// routes, as iproute2 tells it.
func listing(ns *nettest.NS) string {
	var all []string
	for _, args := range [][]string{
		{"-details", "-oneline", "link"},
		{"-oneline", "address"},
		{"neighbour", "show", "nud", "permanent"},
		{"-4", "route", "show", "table", "all"},
		{"-6", "route", "show", "table", "all"},
	} {
		var lines []string // without order: that of hash tables changes from run to run
		for line := range strings.Lines(ns.IP(args...)) {
			line = strings.TrimRight(line, " \n")
			if strings.HasPrefix(line, "multicast ") || strings.HasPrefix(line, "anycast ") || strings.HasPrefix(line, "local fe80::1 ") || strings.HasPrefix(line, "fe80::") && strings.Contains(line, " proto kernel ") {
				continue // the kernel's workers make these, some time later
			}
			lines = append(lines, line)
		}
		slices.Sort(lines)
		all = append(all, lines...)
	}
	return strings.Join(all, "\n")
}
