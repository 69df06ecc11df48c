package grant

import (
	"net/netip"
	"slices"

	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/config"
)

// Needs is what of an [Input] has to be known for a decision. Pods that need neither
// must not wait for the API server.
type Needs struct{ Pools, NamespaceLabels bool }

// NeedsOf returns what a decision about r on a node needs.
func NeedsOf(r annotation.Request, n config.Node) (needs Needs) {
	inNode := picks(r.CIDR6) || picks(r.CIDR4)
	for _, addr := range slices.Concat(r.Static, r.Anycast) {
		within := slices.ContainsFunc(n.Summaries(), func(c netip.Prefix) bool { return c.Contains(addr) })
		needs.Pools = needs.Pools || !within
		inNode = inNode || within
	}
	needs.NamespaceLabels = needs.Pools || inNode && n.Static != nil && !n.Static.Namespaces.Empty()
	return needs
}
