//go:build linux

package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/pkg/routing/startup"
)

// addWaits is how long an ADD waits for the routers to know the way to the pod. The
// plugin waits for the agent for 60 s, and the kubelet longer.
const addWaits = 30 * time.Second

// gate keeps pods away after a boot until the routers know the way to them. Once
// open it stays open for the rest of the boot.
type gate struct {
	latch  *startup.Latch
	state  cell.Reader[nodeState]
	daemon cell.Reader[daemon]
	log    *slog.Logger

	missing cell.Cell[string] // what keeps it closed; empty while it is open
	opened  chan struct{}     // closed when it opens
	ended   chan struct{}     // closed when the agent ends, so that it will not open any more
}

// open reads whether an agent before this one has opened the gate in this boot.
func (g *gate) open(latchFile string) (err error) {
	g.opened, g.ended = make(chan struct{}), make(chan struct{})
	if g.latch, err = startup.OpenLatch(latchFile); err != nil {
		return err
	}
	set, err := g.latch.IsSet()
	if err != nil {
		return err // the kubelet starts the agent again
	}
	if set {
		g.setMissing("")
	} else {
		g.setMissing(g.state.Get().unavailable)
	}
	return nil
}

// setMissing is called with what keeps the gate closed; with nothing it opens.
func (g *gate) setMissing(reason string) {
	g.missing.Set(reason)
	if reason == "" {
		close(g.opened)
	}
}

// Run opens the gate, and records that for the next agent.
func (g *gate) Run(ctx context.Context) error {
	defer close(g.ended)
	changed := cell.Signal()
	g.state.Notify(changed)
	g.daemon.Notify(changed)
	var unrecorded error
	for g.missing.Get() != "" {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		missing := g.find()
		if missing == g.missing.Get() {
			continue
		}
		if missing == "" {
			unrecorded = g.latch.Set()
			g.log.Info("the node takes pods")
		} else {
			g.log.Info("the node takes no pods yet", "missing", missing)
		}
		g.setMissing(missing)
	}
	for retry := (backoff.Backoff{First: time.Second, Last: time.Minute}); unrecorded != nil; unrecorded = g.latch.Set() {
		g.log.Error("cannot record that the node takes pods, will retry; if the agent ends before that, the next one waits for the routers again", "error", unrecorded)
		if retry.Wait(ctx) != nil {
			return nil
		}
	}
	<-ctx.Done()
	return nil
}

// find returns what keeps the node from taking pods now; "" if nothing does.
func (g *gate) find() string {
	state := g.state.Get()
	if state.inForce == nil {
		return state.unavailable
	}
	daemon := g.daemon.Get()
	missing := startup.Missing(state.inForce.node, daemon.Sessions)
	if missing != "" && daemon.Err != nil {
		missing += ": " + daemon.Err.Error()
	}
	return missing
}

// await waits for the gate to open, and no longer than addWaits or until ctx ends.
// It returns what is missing then.
func (g *gate) await(ctx context.Context) (missing string) {
	if g.missing.Get() == "" {
		return ""
	}
	patience := time.NewTimer(addWaits)
	defer patience.Stop()
	select {
	case <-g.opened:
		return ""
	case <-patience.C:
	case <-ctx.Done():
	case <-g.ended:
	}
	return g.missing.Get()
}

// Notify implements Follower.
func (g *gate) Notify(ch chan<- struct{}) { g.missing.Notify(ch) }

// Unready implements Readier.
func (g *gate) Unready() (reason, message string) { return "WaitingForRouters", g.missing.Get() }

var takingMetric = metric.New(metric.Gauge, "flock_taking_pods",
	"1 since the routers knew the way to the node's pods for the first time after the node booted.",
	"0 for minutes after a boot: pods wait. The condition Ready of the NodeConfig says for what. See docs/startup.md.")

// Describe implements prometheus.Collector.
func (g *gate) Describe(ch chan<- *prometheus.Desc) { metric.Describe(ch, takingMetric) }

// Collect implements prometheus.Collector.
func (g *gate) Collect(ch chan<- prometheus.Metric) {
	ch <- takingMetric.Bool(g.missing.Get() == "")
}
