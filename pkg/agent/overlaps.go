//go:build linux

package agent

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
)

// conditionUnique: no other node had pod CIDRs of this one when that was looked at
// last. There is no such condition before the first time.
const conditionUnique = "PodCIDRsUnique"

// overlaps compares the pod CIDRs of this node with those of others: once at the
// start and whenever its own change, and again while they overlap. Of two nodes,
// the one with the latest change of its CIDRs warns, because no agent watches all
// NodeConfigs.
type overlaps struct {
	node    string
	api     *kube.Client
	configs cell.Reader[observed]
	log     *slog.Logger

	cell.Cell[overlap]
}

// overlap is what was found last.
type overlap struct {
	known bool
	text  string // empty if there is none
}

// Run looks until ctx ends.
func (o *overlaps) Run(ctx context.Context) error {
	const (
		atStart  = 5 * time.Minute // a fleet may start all at once: 1,000 nodes make 3 reads a second
		onChange = 5 * time.Second
		again    = 10 * time.Minute
		most     = 5 // of them say enough
	)
	changed := cell.Signal()
	o.configs.Notify(changed)
	look := time.NewTimer(0)
	look.Stop()
	defer look.Stop()
	var own []netip.Prefix
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			c := o.configs.Get()
			if c.object == nil || c.cached || c.err != nil || slices.Equal(c.node.Summaries(), own) {
				continue
			}
			within := onChange
			if own == nil {
				within = atStart
			}
			own = c.node.Summaries()
			look.Reset(rand.N(within))
		case <-look.C:
			all, err := o.api.PodCIDRs(ctx)
			if err != nil {
				o.log.Debug("cannot read the pod CIDRs of other nodes, will retry", "error", err, "after", again)
				look.Reset(again)
				continue
			}
			var found []string
			for _, f := range fleet.Overlaps(o.node, own, all) {
				found = append(found, f.String())
			}
			text := strings.Join(found[:min(len(found), most)], "; ")
			if text != "" {
				look.Reset(again)
			}
			if o.Set(overlap{true, text}) && text != "" {
				o.log.Warn("another node has pod CIDRs of this one: two pods may get the same address", "nodeConfig", o.node, "overlap", text)
			}
		}
	}
}

// Conditions implements Conditioner.
func (o *overlaps) Conditions() []metav1.Condition {
	found := o.Get()
	if !found.known {
		return nil
	}
	c := metav1.Condition{Type: conditionUnique, Status: metav1.ConditionTrue, Reason: "NoOverlap"}
	if found.text != "" {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "Overlap", found.text
	}
	return []metav1.Condition{c}
}
