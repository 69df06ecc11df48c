package controller

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/kube"
)

// claims ends the AddressClaims of pods that are gone, on nodes of which nothing is heard.
type claims struct {
	world   *world
	api     *kube.Client
	log     *slog.Logger
	metrics *metrics
}

// Run works until ctx ends.
func (c *claims) Run(ctx context.Context) {
	collector := &claim.Collector{
		API: c.api, Log: c.log, Heard: c.world.heardOf,
		Lives: func(ac *v1alpha1.AddressClaim) bool {
			p, ok := c.world.pods.Get(ac.Spec.PodNamespace + "/" + ac.Spec.PodName)
			return ok && claim.IsOf(ac, p.UID, p.Annotations)
		},
	}
	changed := cell.Signal()
	c.world.heard.Notify(changed)
	c.world.has.Notify(changed)
	retry := backoff.Backoff{First: 500 * time.Millisecond, Last: 30 * time.Second, Jitter: 0.2}
	follow(ctx, changed, 100*time.Millisecond, func() time.Duration {
		pools := c.world.validPools()
		collector.Quarantine = func(a netip.Addr) time.Duration { return claim.Quarantine(a, pools) }
		ended, again, err := collector.Collect(ctx, c.world.claims.List())
		c.metrics.collect.Add(float64(ended))
		if err == nil || ctx.Err() != nil {
			retry.Reset()
			return again
		}
		delay := retry.Next()
		c.log.Warn("cannot end AddressClaims, will retry", "error", err, "retry", delay)
		return delay
	})
}

// heardOf says whether a node exists and its kubelet reports, whatever it reports.
func (w *world) heardOf(node string) bool {
	n, ok := w.nodes.Get(node)
	if !ok {
		return false
	}
	_, unknown := unknownSince(n)
	return !unknown
}

// unknownSince says since when the kubelet of a node does not report: the cluster's node
// controller has turned the condition Ready to Unknown then.
func unknownSince(n *corev1.Node) (since time.Time, unknown bool) {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown {
			return c.LastTransitionTime.Time, true
		}
	}
	return time.Time{}, false
}

// follow calls do at once, after changes, and after what it has returned; not more often than
// once in pause. A negative result says that only a change is a reason.
func follow(ctx context.Context, changed <-chan struct{}, pause time.Duration, do func() time.Duration) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
		if again := do(); again >= 0 {
			timer.Reset(again)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}
