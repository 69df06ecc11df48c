//go:build linux

package agent

import (
	"context"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/routing/startup"
)

// nodeCondition keeps the condition NetworkUnavailable of the Node at what the gate
// says, whoever else wrote it, and removes the start-up taint when the gate is open,
// also from a Node that registers again. Nothing on the node waits for it.
type nodeCondition struct {
	name    string
	api     *kube.Client
	node    *kube.Cache[*corev1.Node]
	changed *cell.Topic // of node
	missing cell.Reader[string]
	log     *slog.Logger
}

// Run writes the Node until ctx ends.
func (n *nodeCondition) Run(ctx context.Context) error {
	const messagesEvery = 10 * time.Second // where nothing but the message changed
	changed := cell.Signal()
	n.changed.Notify(changed)
	n.missing.Notify(changed)
	delay := backoff.Backoff{First: 200 * time.Millisecond, Last: 30 * time.Second}
	again := time.NewTimer(0)
	again.Stop()
	defer again.Stop()
	var wrote time.Time
	answered := "" // the resourceVersion of the Node that was written last
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		case <-changed:
		}
		node, ok := n.node.Get(n.name)
		if !ok || !n.node.Synced() || node.ResourceVersion == answered {
			continue // the API server is about to send it
		}
		missing := n.missing.Get()
		condition := startup.Condition(node, missing, metav1.Now())
		var taints []int
		if missing == "" {
			taints = startup.Taints(node)
		}
		if condition == nil && len(taints) == 0 {
			continue
		}
		if wait := messagesEvery - time.Since(wrote); wait > 0 && len(taints) == 0 && startup.SameStatus(node, condition.Status) {
			again.Reset(wait)
			continue
		}
		var err error
		if condition != nil { // the taint follows when the API server has sent the new Node
			err = n.api.SetNodeCondition(ctx, n.name, *condition)
		} else {
			err = n.api.RemoveNodeTaints(ctx, n.name, startup.Taint, taints)
		}
		if err != nil {
			after := delay.Next()
			n.log.Warn("cannot write the Node's condition NetworkUnavailable or its start-up taint, will retry", "error", err, "after", after)
			again.Reset(after)
			continue
		}
		answered, wrote = node.ResourceVersion, time.Now()
		delay.Reset()
	}
}
