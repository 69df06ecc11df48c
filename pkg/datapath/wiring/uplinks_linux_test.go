package wiring

import (
	"context"
	"testing"
	"time"
)

// The node's own links and addresses are reported, those of pods are not.
func TestWatchUplinks(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	changed := make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- node.WatchUplinks(ctx, func() { changed <- struct{}{} }) }()
	reported := func(what ...string) {
		t.Helper()
		for len(changed) > 0 {
			<-changed
		}
		node.ns.IP(what...)
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Errorf("ip %v: no change was reported", what)
		}
	}
	reported("link", "add", "br0", "type", "bridge")
	reported("link", "set", "br0", "mtu", "1400")
	reported("addr", "add", "203.0.113.7/24", "dev", "br0")
	reported("addr", "add", "2001:db8:7::7/64", "dev", "br0", "nodad")
	reported("addr", "del", "203.0.113.7/24", "dev", "br0")
	reported("link", "del", "br0")

	// What the test's last change leaves behind is reported before the mark.
	reported("link", "add", "mark", "type", "bridge")
	reported("link", "del", "mark")
	for len(changed) > 0 {
		<-changed
	}
	p := node.pod(t)
	node.attach(t, p)
	p.Delete()
	node.ns.IP("addr", "add", "10.0.0.1/8", "dev", "lo", "scope", "host")
	if len(changed) > 0 {
		t.Errorf("%d changes for a pod and an address of the host's alone", len(changed))
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}
