package service

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
)

// Flows that could not be forgotten are tried again, by themselves and with those that come after,
// and those that lead to a pod of now are kept.
func TestFlowsAreForgottenLater(t *testing.T) {
	t.Parallel()
	target := func(addr string) proxy.Target {
		return proxy.Target{Addr: netip.MustParseAddr(addr), Protocol: 17, Port: 53}
	}
	first, second, old, young := target("203.0.113.1"), target("203.0.113.2"), netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		flows := cell.NewInbox[diversion]()
		asked := make(chan map[proxy.Target]bool)
		answer := make(chan error)
		var isPod func(netip.Addr) bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			forgetFlows(ctx, flows, func(targets []proxy.Target, pod func(netip.Addr) bool) error {
				all := map[proxy.Target]bool{}
				for _, target := range targets {
					all[target] = true
				}
				isPod = pod
				asked <- all
				return <-answer
			}, slog.New(slog.DiscardHandler))
		}()
		flows.Put(diversion{[]proxy.Target{first}, map[netip.Addr]bool{old: true}})
		for range 3 { // the last two by the timer
			if got := <-asked; len(got) != 1 || !got[first] {
				t.Errorf("asked for %v, want %v", got, first)
			}
			answer <- errors.New("too many open files")
		}
		flows.Put(diversion{[]proxy.Target{second}, map[netip.Addr]bool{young: true}})
		if got := <-asked; len(got) != 2 || !got[first] || !got[second] {
			t.Errorf("asked for %v, want both", got)
		}
		if isPod(old) || !isPod(young) {
			t.Error("the pods are not those of now")
		}
		answer <- nil
		flows.Put(diversion{[]proxy.Target{second}, nil})
		if got := <-asked; len(got) != 1 || !got[second] {
			t.Errorf("asked for %v, want %v alone: the rest is done", got, second)
		}
		answer <- nil
		cancel()
		<-done
	})
}
