package bench

import (
	"context"
	"os/exec"
	"testing"
	"time"
)

// TestWatchGenerations: what nft changes is reported.
func TestWatchGenerations(t *testing.T) {
	ns := netNSFor(t)
	fd, err := listenGenerations(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := &collect{more: make(chan struct{}, 100)}
	ended := make(chan error)
	go func() { ended <- watchGenerations(ctx, fd, c.add) }()
	before := monotonic()
	err = ns.Do(func() error { return exec.Command("nft", "add table inet t { chain c { counter; }; }").Run() })
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.more:
	case <-time.After(20 * time.Second):
		t.Error("the change was not reported")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(c.all) != 1 || c.all[0].What != programmed || c.all[0].At <= before {
		t.Errorf("saw %+v", c.all)
	}
}
