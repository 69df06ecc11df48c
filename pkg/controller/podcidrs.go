package controller

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
)

// podCIDRs finds pod CIDRs that several nodes have, and writes them into the status of those
// NodeConfigs alone. An agent would have to read those of all nodes, and all agents together the
// square of that.
type podCIDRs struct {
	world   *world
	api     *kube.Client
	log     *slog.Logger
	metrics *metrics

	found map[types.UID]*written[[]v1alpha1.PodCIDROverlap] // NodeConfigs
}

// overlapsPause is between two passes. A CIDR that moves from one node to another is that of both for
// a moment.
const overlapsPause = 2 * time.Second

// Run works until ctx ends.
func (p *podCIDRs) Run(ctx context.Context) {
	p.found = map[types.UID]*written[[]v1alpha1.PodCIDROverlap]{}
	changed := cell.Signal()
	p.world.has.Notify(changed)
	retry := backoff.Backoff{First: 500 * time.Millisecond, Last: 30 * time.Second, Jitter: 0.2}
	follow(ctx, changed, overlapsPause, func() time.Duration {
		err := p.pass(ctx, p.world.configs.List(), p.ofNode)
		if err == nil || ctx.Err() != nil {
			retry.Reset()
			return -1
		}
		delay := retry.Next()
		p.log.Warn("cannot write the overlaps of a node's pod CIDRs, will retry", "error", err, "retry", delay)
		return delay
	})
}

// ofNode are the pod CIDRs of a Node.
func (p *podCIDRs) ofNode(name string) []string {
	if node, ok := p.world.nodes.Get(name); ok {
		return node.Spec.PodCIDRs
	}
	return nil
}

// pass brings all NodeConfigs to what they should have. The error is that of one of them.
func (p *podCIDRs) pass(ctx context.Context, configs []*v1alpha1.NodeConfig, ofNode func(string) []string) (failed error) {
	var all []fleet.Holding
	for _, nc := range configs {
		all = append(all, fleet.HoldingsOf(nc, ofNode(nc.Name))...)
	}
	overlaps := fleet.Overlaps(all)
	there := map[types.UID]bool{}
	for _, nc := range configs {
		there[nc.UID] = true
		if p.found[nc.UID] == nil {
			p.found[nc.UID] = &written[[]v1alpha1.PodCIDROverlap]{}
		}
		var want []v1alpha1.PodCIDROverlap
		for _, f := range overlaps[nc.Name] {
			want = append(want, v1alpha1.PodCIDROverlap{CIDR: f.Own.String(), NodeConfig: f.Node, OtherCIDR: f.Other.String()})
		}
		has := p.found[nc.UID].latest(nc.Status.PodCIDROverlaps)
		if slices.Equal(has, want) {
			continue
		}
		if err := p.api.PatchPodCIDROverlaps(ctx, nc, want); err != nil {
			if !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // it is another object by now
				failed = fmt.Errorf("NodeConfig %s: %w", nc.Name, err)
			}
			continue
		}
		p.found[nc.UID].set(want)
		if len(want) > 0 {
			p.log.Warn("another node has pod CIDRs of this one: two pods may get the same address", "node", nc.Name, "overlap", overlaps[nc.Name][0].String(), "overlaps", len(want))
		} else {
			p.log.Info("no other node has pod CIDRs of this one any more", "node", nc.Name)
		}
	}
	for uid := range p.found {
		if !there[uid] {
			delete(p.found, uid)
		}
	}
	p.metrics.overlapping.Store(int64(len(overlaps)))
	return failed
}
