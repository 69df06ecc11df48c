//go:build linux

package agent

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/fleet"
)

// conditionUnique: no other node had pod CIDRs of this one when that was looked at
// last. It is not there before the first time.
const conditionUnique = "PodCIDRsUnique"

// followOverlaps looks once whether other nodes have pod CIDRs of this one: at the
// start and whenever its own change; and again as long as it is so. Of two nodes it is
// the one whose CIDRs changed last that warns: nobody follows all NodeConfigs.
func (a *Agent) followOverlaps(ctx context.Context) error {
	const (
		atStart  = 5 * time.Minute // a fleet may start all at once: 1,000 nodes make 3 reads a second
		onChange = 5 * time.Second
		again    = 10 * time.Minute
	)
	look := time.NewTimer(0)
	look.Stop()
	defer look.Stop()
	var seen []netip.Prefix
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.overlapDue:
			nc, ok := a.nodeConfig.Get(a.NodeName)
			if !ok {
				continue
			}
			if node, err := config.ParseNode(nc); err == nil && !slices.Equal(node.Summaries(), seen) {
				within := onChange
				if seen == nil {
					within = atStart
				}
				seen = node.Summaries()
				look.Reset(rand.N(within))
			}
		case <-look.C:
			all, err := a.api.PodCIDRs(ctx)
			if err != nil {
				a.Log.Debug("it is not known whether another node has pod CIDRs of this one", "error", err, "retry", again)
				look.Reset(again)
				continue
			}
			var found []string
			for _, o := range fleet.Overlaps(a.NodeName, seen, all) {
				found = append(found, o.String())
			}
			if len(found) > 0 {
				look.Reset(again)
			}
			a.noteOverlaps(found)
		}
	}
}

func (a *Agent) noteOverlaps(found []string) {
	const most = 5 // of them tell enough
	text := strings.Join(found[:min(len(found), most)], "; ")
	if was := a.overlaps.Swap(&text); was != nil && *was == text {
		return
	}
	if text != "" {
		a.Log.Warn("another node has pod CIDRs of this one: two pods may get one address", "nodeconfig", a.NodeName, "overlap", text)
	}
	a.changed()
}

func (a *Agent) setUnique(generation int64, conditions *[]metav1.Condition) {
	text := a.overlaps.Load()
	if text == nil {
		return // as it was before this agent's start
	}
	c := metav1.Condition{Type: conditionUnique, Status: metav1.ConditionTrue, Reason: "NoOverlap", ObservedGeneration: generation}
	if *text != "" {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "Overlap", *text
	}
	meta.SetStatusCondition(conditions, c)
}
