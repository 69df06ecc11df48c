//go:build linux

package agent

import (
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/fleet"
)

// conditionUnique is there, and False, while another node has pod CIDRs of this one.
const conditionUnique = "PodCIDRsUnique"

// overlaps reports the pod CIDRs of the node that other nodes have too. flock-controller, which
// has all NodeConfigs, finds them and writes them into the status of this one.
type overlaps struct {
	configs cell.Reader[observed]
}

// Conditions implements Conditioner.
func (o *overlaps) Conditions() []metav1.Condition {
	c := o.configs.Get()
	if c.object == nil || c.cached {
		return nil
	}
	text := strings.Join(overlapsOf(c.object), "; ")
	if text == "" {
		return []metav1.Condition{{Type: conditionUnique}}
	}
	return []metav1.Condition{{Type: conditionUnique, Status: metav1.ConditionFalse, Reason: "Overlap", Message: text}}
}

// overlapsOf are those of nc, but for those of CIDRs that the node does not have any more: perhaps
// no flock-controller is there to take them away.
func overlapsOf(nc *v1alpha1.NodeConfig) (texts []string) {
	has := map[netip.Prefix]bool{}
	for _, h := range fleet.HoldingsOf(nc, nil) {
		has[h.Prefix] = true
	}
	for _, found := range nc.Status.PodCIDROverlaps {
		own, err := netip.ParsePrefix(found.CIDR)
		other, otherErr := netip.ParsePrefix(found.OtherCIDR)
		if err == nil && otherErr == nil && has[own] {
			texts = append(texts, fleet.Overlap{Own: own, Other: other, Node: found.NodeConfig}.String())
		}
	}
	return texts
}
