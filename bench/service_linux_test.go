package bench

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"
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

// TestMetalLBAddr: each of flock's Services has one of MetalLB's, and no two the same.
func TestMetalLBAddr(t *testing.T) {
	seen := map[netip.Addr]bool{}
	for group := range 3 {
		for i := range 30 {
			addr := serviceAddr(group, i)
			its := metalLBAddr(addr)
			if seen[its] || !metalLBPool.Contains(its) || serviceOfMetalLB(its) != addr {
				t.Errorf("%s has %s, which is of %s", addr, its, serviceOfMetalLB(its))
			}
			seen[its] = true
		}
	}
}

// TestWatchMetalLB: routes to MetalLB's Services are seen in the table of its router alone.
func TestWatchMetalLB(t *testing.T) {
	ns := netNSFor(t)
	fd, err := listenRoutes(ns.Path(), metalLBRoutes)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := &collect{more: make(chan struct{}, 100)}
	ended := make(chan error)
	go func() { ended <- watchRoutes(ctx, fd, metalLBRoutes, ofMetalLB(routed), c.add) }()
	for _, do := range []string{"add", "del"} {
		for _, route := range []string{"unreachable 10.99.0.1", "unreachable 10.99.0.2 table 250", "unreachable 10.99.0.0/24 table 250"} {
			ip(t, ns, append([]string{"-4", "route", do}, strings.Fields(route)...)...)
		}
	}
	<-c.more
	<-c.more
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	addr := netip.MustParseAddr("10.99.0.2")
	for i, s := range c.all {
		if want := (sighting{s.At, "metallb-routed", addr, i == 0}); s != want || i > 1 {
			t.Errorf("saw %+v, want %+v", s, want)
		}
	}
}
