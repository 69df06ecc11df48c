package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestGate(t *testing.T) {
	for _, c := range []struct {
		name  string
		event func(g *gate, cancel func())
		want  string
		after time.Duration
	}{
		{"nobody comes", func(*gate, func()) {}, "a is down", addWaits},
		{"it opens", func(g *gate, _ func()) { g.setMissing("") }, "", time.Second},
		{"the runtime gave up", func(_ *gate, cancel func()) { cancel() }, "a is down", time.Second},
		{"the agent ends", func(g *gate, _ func()) { close(g.ended) }, "a is down", time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &gate{opened: make(chan struct{}), ended: make(chan struct{})}
				g.setMissing("a is down")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				time.AfterFunc(time.Second, func() { c.event(g, cancel) })
				began := time.Now()
				if missing := g.await(ctx); missing != c.want || time.Since(began) != c.after {
					t.Errorf("%q after %s, want %q after %s", missing, time.Since(began), c.want, c.after)
				}
				synctest.Wait()
			})
		})
	}
}
