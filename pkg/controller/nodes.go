package controller

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/kube"
)

// nodes turns the conditions of NodeConfigs to Unknown of whose nodes nothing is heard. Such
// a node's agent cannot: what it has written last would stay.
type nodes struct {
	world   *world
	api     *kube.Client
	log     *slog.Logger
	metrics *metrics

	turned map[types.UID]turned // NodeConfigs
}

// turned is when this instance has turned a NodeConfig's conditions, and for which state of
// the node.
type turned struct {
	since time.Time // as unknownSince; zero for a Node that is gone
	gone  bool
}

// Run works until ctx ends.
func (n *nodes) Run(ctx context.Context) {
	n.turned = map[types.UID]turned{}
	changed := cell.Signal()
	n.world.heard.Notify(changed)
	retry := backoff.Backoff{First: 500 * time.Millisecond, Last: 30 * time.Second, Jitter: 0.2}
	follow(ctx, changed, 200*time.Millisecond, func() time.Duration {
		err := n.pass(ctx)
		if err == nil || ctx.Err() != nil {
			retry.Reset()
			return -1
		}
		delay := retry.Next()
		if !apierrors.IsConflict(err) {
			n.log.Warn("cannot set the conditions of a NodeConfig to Unknown, will retry", "error", err, "retry", delay)
		}
		return delay
	})
}

func (n *nodes) pass(ctx context.Context) (failed error) {
	there := map[types.UID]bool{}
	unknown := 0
	for _, nc := range n.world.configs.List() {
		there[nc.UID] = true
		node, ok := n.world.nodes.Get(nc.Name)
		if !ok {
			node = nil
		}
		state, why, dead := silence(node)
		if !dead {
			delete(n.turned, nc.UID)
			continue
		}
		unknown++
		if was, done := n.turned[nc.UID]; done && was == state {
			continue // if they are not Unknown any more, its agent has reported since: it knows better
		}
		conditions, due := unknownConditions(nc.Status.Conditions, state.since, why, time.Now())
		if !due {
			n.turned[nc.UID] = state
			continue
		}
		if err := n.api.PatchConditions(ctx, nc, conditions); err != nil {
			failed = fmt.Errorf("NodeConfig %s: %w", nc.Name, err)
			continue
		}
		n.turned[nc.UID] = state
		n.log.Warn("set the conditions of a NodeConfig to Unknown", "node", nc.Name, "reason", why)
	}
	for uid := range n.turned {
		if !there[uid] {
			delete(n.turned, uid)
		}
	}
	n.metrics.unknown.Store(int64(unknown))
	return failed
}

// silence says whether nothing is heard of a node, nil if it is gone, and why.
func silence(node *corev1.Node) (state turned, why string, dead bool) {
	if node == nil {
		return turned{gone: true}, "there is no Node of this name", true
	}
	since, unknown := unknownSince(node)
	if !unknown {
		return turned{}, "", false
	}
	return turned{since: since}, fmt.Sprintf("the kubelet of the node has not reported since %s", since.UTC().Format(time.RFC3339)), true
}

// unknownConditions turns conditions to Unknown, and says whether there is something to turn:
// nothing if the agent has changed one after since, when the kubelet was silent already.
func unknownConditions(conditions []metav1.Condition, since time.Time, why string, now time.Time) (out []metav1.Condition, due bool) {
	out = slices.Clone(conditions)
	for i := range out {
		c := &out[i]
		if c.Reason == v1alpha1.ReasonNodeUnknown && c.Status == metav1.ConditionUnknown {
			continue
		}
		if !since.IsZero() && c.LastTransitionTime.After(since) {
			return nil, false
		}
		due = true
		c.Message = fmt.Sprintf("%s; the agent reported last: %s, %s", why, c.Status, c.Reason)
		c.Status, c.Reason, c.LastTransitionTime = metav1.ConditionUnknown, v1alpha1.ReasonNodeUnknown, metav1.NewTime(now.Truncate(time.Second))
	}
	return out, due
}
