package wiring

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// What the kernel says of a pod is what it was attached with.
func TestObserve(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	all := node.podWith(t, "all", "2001:db8:100::7", "10.244.0.7", "2001:db8:200::7", "2001:db8:53::53", "203.0.113.7")
	all.Routed, all.Announced = parseAddrs("2001:db8:100::7", "10.244.0.7"), parseAddrs("2001:db8:200::7", "203.0.113.7")
	plain := node.podWith(t, "plain", "10.244.0.8")
	released := node.podWith(t, "released", "10.244.0.9")
	for _, p := range []testPod{all, plain, released} {
		node.attach(t, p)
	}
	if _, _, err := node.TakeDown("released"); err != nil {
		t.Fatal(err)
	}
	node.ns.IP("link", "add", "flock0000000x", "type", "veth", "peer", "name", "other") // not a pod's

	got, summaries, err := node.Observe()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(summaries, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	if want := []netip.Prefix{podNet4, podNet6}; !slices.Equal(summaries, want) {
		t.Errorf("summaries %v, want %v", summaries, want)
	}
	if len(got) != 2 {
		t.Fatalf("observed %+v, want two pods", got)
	}
	for _, o := range got {
		want := all.Attachment
		if o.ContainerID == "plain" {
			want = plain.Attachment
		}
		if o.HostIf != want.HostIf || o.Alias != want.Alias || o.MTU != want.MTU || o.Released {
			t.Errorf("link %+v, want that of %+v", o.Link, want)
		}
		for what, pair := range map[string][2][]netip.Addr{"addresses": {o.Addrs, want.Addrs}, "routed": {o.Routed, want.Routed}, "announced": {o.Announced, want.Announced}} {
			got, want := slices.SortedFunc(slices.Values(pair[0]), netip.Addr.Compare), slices.SortedFunc(slices.Values(pair[1]), netip.Addr.Compare)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %s %v, want %v", o.ContainerID, what, got, want)
			}
		}
	}
}

// A link that another program has renamed, and that does not get its name back, is not missing
// from what is observed without an error: its pod runs.
func TestObserveRenamed(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	pod := node.pod(t)
	index := node.attach(t, pod).HostIfIndex
	node.ns.IP("link", "set", pod.HostIf, "name", "stolen0")
	h := node.open(t) // an agent that has started
	exec, busy := h.exec, true
	h.exec = func(c *rtnl.Conn, ms []rtnl.Message) []error {
		if busy {
			busy = false
			return []error{unix.EBUSY}
		}
		return exec(c, ms)
	}
	if all, _, err := h.Observe(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("observed %+v, %v; want that the link cannot get its name back", all, err)
	}
	if all, _, err := h.Observe(); err != nil || len(all) != 1 || all[0].IfIndex != index || !all[0].IsOf(pod.Attachment) {
		t.Errorf("observed %+v, %v", all, err)
	}
}
