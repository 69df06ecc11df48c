package fleet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Overlap is a pod CIDR that another node has as well, or has a part of: each may
// give an address that the other has given.
type Overlap struct {
	Own, Other netip.Prefix
	Node       string // the other's NodeConfig
}

// String says what is wrong and the remedy.
func (o Overlap) String() string {
	return fmt.Sprintf("%s overlaps %s of NodeConfig %s: give each node pod CIDRs of its own", o.Own, o.Other, o.Node)
}

// Overlaps returns where the node's own pod CIDRs overlap those of other NodeConfigs,
// by name; in the order of own and of the others' names.
func Overlaps(node string, own []netip.Prefix, all map[string][]netip.Prefix) (found []Overlap) {
	for name, others := range all {
		for _, other := range others {
			for _, o := range own {
				if name != node && o.Overlaps(other) {
					found = append(found, Overlap{o, other, name})
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b Overlap) int {
		return cmp.Or(cmp.Compare(slices.Index(own, a.Own), slices.Index(own, b.Own)), cmp.Compare(a.Node, b.Node), a.Other.Compare(b.Other))
	})
	return found
}
