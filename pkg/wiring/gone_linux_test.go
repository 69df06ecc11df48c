package wiring

import (
	"context"
	"slices"
	"strings"
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
	l, _, err := node.Unroute(reaped.ContainerID)
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

// What someone did to the host's side is put right without the pod's namespace,
// as at the agent's start.
func TestRestore(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	p, other := node.pod(t), node.pod(t)
	node.attach(t, p)
	node.attach(t, other)
	if mended, err := node.Restore(p.Attachment); len(mended) > 0 || err != nil {
		t.Errorf("nothing was wrong: %v, %v", mended, err)
	}
	node.ns.IP("link", "set", p.HostIf, "down")
	mended, err := node.Restore(p.Attachment)
	if err != nil || !slices.Contains(mended, "link: down") || !slices.Contains(mended, "route "+p.v4()+"/32: missing") {
		t.Errorf("mended %q, %v", mended, err)
	}
	if err := node.Check(p.File(), p.Attachment); err != nil {
		t.Error(err)
	}
	other.Exec("ping", "-c1", "-W5", p.v6())
	other.Exec("ping", "-c1", "-W5", p.v4())

	stolen := p.Attachment
	stolen.HostIf = other.HostIf
	if _, err := node.Restore(stolen); err == nil || !strings.Contains(err.Error(), other.ContainerID) {
		t.Errorf("another's link: error %v, want one that names %s", err, other.ContainerID)
	}
	stolen.HostIf = "flock00000000"
	if _, err := node.Restore(stolen); err == nil || !strings.Contains(err.Error(), "flock00000000") {
		t.Errorf("no link: error %v", err)
	}
	if _, err := node.Restore(Attachment{}); err == nil {
		t.Error("the zero attachment is restored")
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p := node.pod(t)
	p.HostIf = HostIfName("collides")
	node.attach(t, p)
	other := node.pod(t)
	got := node.attach(t, other)
	if l, err := node.Lookup(other.ContainerID); err != nil || l.IfIndex != got.HostIfIndex || l.HostIf != other.HostIf {
		t.Errorf("lookup = %+v, %v", l, err)
	}
	for _, id := range []string{"nobody", "collides"} {
		if l, err := node.Lookup(id); err != nil || l != (Link{}) {
			t.Errorf("lookup of %s = %+v, %v; want none", id, l, err)
		}
	}
}
