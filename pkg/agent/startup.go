//go:build linux

package agent

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/startup"
)

// addWaits is how long an ADD waits for the routers to know the way to the pod. The
// plugin waits for the agent for 60 s, and the kubelet longer.
const addWaits = 30 * time.Second

// gate keeps the pods of a boot away until the routers know the way to them.
type gate struct {
	latch *startup.Latch
	// missing is what keeps it closed; empty: it is open.
	missing atomic.Pointer[string]
	open    chan struct{} // closed with the last that was missing
	gone    chan struct{} // closed when nobody will open it any more: the agent ends
}

func (g *gate) shut(missing string) { g.missing.Store(&missing) }

// openGate is the gate as the agent finds it at its start.
func (a *Agent) openGate() (err error) {
	a.gate.open, a.gate.gone = make(chan struct{}), make(chan struct{})
	if a.gate.latch, err = startup.OpenLatch(filepath.Join(a.StateDir, "taking-pods")); err != nil {
		return err
	}
	a.gate.shut(*a.waiting.Load())
	if a.gate.latch.IsSet() {
		a.gate.shut("")
		close(a.gate.open)
	}
	return nil
}

// followStartup opens the gate. It stays open for the rest of the boot.
func (a *Agent) followStartup(ctx context.Context) error {
	defer close(a.gate.gone)
	for *a.gate.missing.Load() != "" {
		select {
		case <-ctx.Done():
			return nil
		case <-a.startupDue:
		}
		missing := a.missing()
		if missing == *a.gate.missing.Load() {
			continue
		}
		if missing == "" {
			if err := a.gate.latch.Set(); err != nil {
				a.Log.Error("the node takes pods, but an agent that starts again will wait for the routers once more", "error", err)
			}
			a.Log.Info("the node takes pods")
			close(a.gate.open)
		} else {
			a.Log.Info("the node takes no pods yet", "missing", missing)
		}
		a.gate.shut(missing)
		a.statusDue.give()
		a.nodeDue.give()
	}
	<-ctx.Done()
	return nil
}

// missing is what keeps the node from taking pods now; "" if nothing does.
func (a *Agent) missing() string {
	s := a.serving.Load()
	if s == nil {
		return *a.waiting.Load()
	}
	daemon := a.bird.State()
	missing := startup.Missing(s.node, daemon.Sessions)
	if missing != "" && daemon.Err != nil {
		missing += ": " + daemon.Err.Error()
	}
	return missing
}

// await waits for the gate to open, and no longer than addWaits or until ctx ends.
// It returns what is missing then.
func (g *gate) await(ctx context.Context) (missing string) {
	patience := time.NewTimer(addWaits)
	defer patience.Stop()
	select {
	case <-g.open:
		return ""
	case <-patience.C:
	case <-ctx.Done():
	case <-g.gone:
	}
	return *g.missing.Load()
}

// reportNode keeps the condition NetworkUnavailable of the Node at what the gate
// says, whoever else wrote it, and takes the start-up taint away when it is open,
// also from a Node that registers again. Nothing on the node waits for it.
func (a *Agent) reportNode(ctx context.Context) error {
	const (
		firstRetry, lastRetry = 200 * time.Millisecond, 30 * time.Second
		wordsEvery            = 10 * time.Second // where nothing but the message changed
	)
	delay := firstRetry
	again := time.NewTimer(0)
	again.Stop()
	defer again.Stop()
	var wrote time.Time
	answered := "" // the resourceVersion of a Node that has got its answer
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		case <-a.nodeDue:
		}
		node, ok := a.ownNode.Get(a.NodeName)
		if !ok || !a.ownNode.Synced() || node.ResourceVersion == answered {
			continue // it is about to be told
		}
		missing := *a.gate.missing.Load()
		condition := startup.Condition(node, missing, metav1.Now())
		var taints []int
		if missing == "" {
			taints = startup.Taints(node)
		}
		if condition == nil && len(taints) == 0 {
			continue
		}
		if wait := wordsEvery - time.Since(wrote); wait > 0 && len(taints) == 0 && startup.SameStatus(node, condition.Status) {
			again.Reset(wait)
			continue
		}
		var err error
		if condition != nil { // and its echo brings the taint's turn
			err = a.api.SetNodeCondition(ctx, a.NodeName, *condition)
		} else {
			err = a.api.RemoveNodeTaints(ctx, a.NodeName, startup.Taint, taints)
		}
		if err != nil {
			a.Log.Warn("the Node does not show yet whether it takes pods", "error", err, "retry", delay)
			again.Reset(delay)
			delay = min(2*delay, lastRetry)
			continue
		}
		answered, wrote, delay = node.ResourceVersion, time.Now(), firstRetry
	}
}
