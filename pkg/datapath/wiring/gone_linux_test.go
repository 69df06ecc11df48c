package wiring

import (
	"context"
	"slices"
	"testing"
)

// Whoever takes a link away, the watcher is told, once, with what its alias said.
func TestWatchGone(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	reaped, deleted, vanished, stays := node.pod(t), node.pod(t), node.pod(t), node.pod(t)
	node.attach(t, reaped) // before the watch begins: told all the same

	gone := make(chan Link, 10)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	l, _, err := node.TakeDown(reaped.ContainerID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := node.DeleteReleased([]Link{l}); err != nil {
		t.Fatal(err)
	}
	go func() {
		ended <- node.WatchGone(ctx, func(l Link) { gone <- l }, func() { t.Error("notifications were lost") })
	}()
	for _, p := range []testPod{deleted, vanished, stays} {
		node.attach(t, p)
	}
	node.ns.IP("link", "add", "br0", "type", "bridge")
	node.ns.IP("link", "del", "br0")
	deleted.IP("link", "del", "eth0")
	vanished.Delete()

	var ids []string
	for range 3 {
		ids = append(ids, (<-gone).ContainerID)
	}
	if want := []string{reaped.ContainerID, deleted.ContainerID, vanished.ContainerID}; !slices.Equal(ids, want) {
		t.Errorf("gone: %v, want %v", ids, want)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	if len(gone) > 0 {
		t.Errorf("and %+v", <-gone)
	}
}

// A link that had another name at its end is missed by the next Sync.
func TestWatchGoneOfRenamed(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p := node.pod(t)
	node.attach(t, p)
	lost := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- node.WatchGone(ctx, func(l Link) { t.Errorf("gone: %+v", l) }, func() { lost <- struct{}{} })
	}()
	node.ns.IP("link", "set", p.HostIf, "name", "stolen0")
	node.ns.IP("link", "del", "stolen0")
	node.sync(t)
	<-lost
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

// More notifications than the socket holds: the watcher is told that it must look
// for itself.
func TestWatchGoneThatCannotKeepUp(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	// Nobody reads yet.
	node.ns.Exec("sh", "-c", `for i in $(seq 10000); do echo "link set lo alias name$i"; done | ip -batch -`)
	lost := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- node.WatchGone(ctx, func(l Link) { t.Errorf("gone: %+v", l) }, func() { lost <- struct{}{} })
	}()
	<-lost
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p := node.podWith(t, "costarring", "2001:db8:100::5") // FNV-1a has the same hash of both
	node.attach(t, p)
	other := node.pod(t)
	got := node.attach(t, other)
	if l, err := node.Lookup(other.ContainerID); err != nil || l.IfIndex != got.HostIfIndex || l.HostIf != other.HostIf {
		t.Errorf("lookup = %+v, %v", l, err)
	}
	for _, id := range []string{"nobody", "liquid"} {
		if l, err := node.Lookup(id); err != nil || l != (Link{}) {
			t.Errorf("lookup of %s = %+v, %v; want none", id, l, err)
		}
	}
}
