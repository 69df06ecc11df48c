package wiring

import (
	"fmt"
	"net/netip"
	"testing"

	"flock.fritzlab.net/flock/pkg/nettest"
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

// A testPod is a sandbox and what its attachment shall be.
type testPod struct {
	*nettest.NS
	Attachment
}

var (
	podNet6 = netip.MustParsePrefix("2001:db8:100::/64")
	podNet4 = netip.MustParsePrefix("10.244.1.0/24")
)

// pod makes a sandbox with the next addresses of the node's prefixes.
func (n *testNode) pod(t testing.TB) testPod {
	t.Helper()
	n.n++
	id := fmt.Sprintf("%s-%d", t.Name(), n.n)
	a6, a4 := podNet6.Addr().As16(), podNet4.Addr().As4()
	a6[14], a6[15] = byte(n.n>>8), byte(n.n)
	a4[2], a4[3] = a4[2]+byte(n.n>>8), byte(n.n)
	addrs := []netip.Addr{netip.AddrFrom16(a6), netip.AddrFrom4(a4)}
	return testPod{nettest.New(t), Attachment{
		ContainerID: id, HostIf: HostIfName(id), PodIf: "eth0", Alias: fmt.Sprintf("test/pod-%d", n.n),
		MTU: 1500, Addrs: addrs, Routed: addrs,
	}}
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
