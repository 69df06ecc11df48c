package agent

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"flock.fritzlab.net/flock/internal/cell"
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

// That the node takes pods is recorded in the end, also where that fails at first; an agent that
// cannot read it does not take the node for one that has just booted.
func TestGateIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "taking-pods")
		state := cell.New(nodeState{unavailable: "no NodeConfig"})
		newGate := func() *gate {
			return &gate{state: state, daemon: cell.New(daemon{}), log: slog.New(slog.DiscardHandler)}
		}
		g := newGate()
		if err := g.open(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(path, 0o700); err != nil { // in the way
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go g.Run(ctx)
		synctest.Wait()
		state.Set(nodeState{inForce: &inForce{}})
		synctest.Wait()
		if missing := g.missing.Get(); missing != "" {
			t.Errorf("missing %q: the record keeps pods away", missing)
		}
		if err := newGate().open(path); err == nil {
			t.Error("no error where the record cannot be read")
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		state.Set(nodeState{unavailable: "no NodeConfig"})
		next := newGate()
		if err := next.open(path); err != nil || next.missing.Get() != "" {
			t.Errorf("the next agent: %v, missing %q", err, next.missing.Get())
		}
		cancel()
		synctest.Wait()
	})
}
