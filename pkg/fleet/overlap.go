package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Holding is a pod CIDR of a node.
type Holding struct {
	Node   string // its NodeConfig
	Prefix netip.Prefix
	// Alleged: only the node's agent says so. It counts for its own node alone: an agent
	// could say of any CIDR that it has it.
	Alleged bool
}

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

// MaxOverlaps of a node say enough.
const MaxOverlaps = 5

// Overlaps returns, for each NodeConfig by name, where its pod CIDRs overlap those of others,
// MaxOverlaps at most; in the order of its own and of the others' names. What it costs grows with
// the number of holdings, and not with its square.
func Overlaps(all []Holding) map[string][]Overlap {
	once := map[Holding]bool{} // of which some are alleged as well
	for _, h := range all {
		once[Holding{h.Node, h.Prefix, false}] = once[Holding{h.Node, h.Prefix, false}] || !h.Alleged
	}
	order := func(a, b netip.Prefix) int { // each is followed by those that it contains
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	}
	holdings := slices.SortedFunc(maps.Keys(once), func(a, b Holding) int {
		return cmp.Or(order(a.Prefix, b.Prefix), cmp.Compare(a.Node, b.Node))
	})
	sure := map[netip.Prefix][]string{} // the nodes that have exactly this
	var prefixes []netip.Prefix
	lengths := map[int]bool{}
	for _, h := range holdings {
		if once[h] {
			if sure[h.Prefix] == nil {
				prefixes = append(prefixes, h.Prefix)
				lengths[h.Prefix.Bits()] = true
			}
			sure[h.Prefix] = append(sure[h.Prefix], h.Node)
		}
	}
	found := map[string][]Overlap{}
	for _, h := range holdings {
		var of []Overlap
		add := func(other netip.Prefix) (more bool) {
			for _, node := range sure[other] {
				if len(of) == MaxOverlaps {
					return false
				}
				if node != h.Node {
					of = append(of, Overlap{h.Prefix, other, node})
				}
			}
			return len(of) < MaxOverlaps
		}
		for bits := range h.Prefix.Bits() {
			if around, err := h.Prefix.Addr().Prefix(bits); err == nil && lengths[bits] {
				add(around)
			}
		}
		at, _ := slices.BinarySearchFunc(prefixes, h.Prefix, order)
		for _, p := range prefixes[at:] {
			if !h.Prefix.Overlaps(p) || !add(p) {
				break
			}
		}
		if len(of) > 0 {
			found[h.Node] = append(found[h.Node], of...)
		}
	}
	for node, of := range found {
		slices.SortFunc(of, func(a, b Overlap) int {
			return cmp.Or(order(a.Own, b.Own), cmp.Compare(a.Node, b.Node), order(a.Other, b.Other))
		})
		found[node] = of[:min(len(of), MaxOverlaps)]
	}
	return found
}

// HoldingsOf are the pod CIDRs of a NodeConfig, and those that were removed from it while pods
// have addresses of them. A NodeConfig from a template and each status are written by the node's
// agent: for sure it has then what its Node has, given by nodeCIDRs.
func HoldingsOf(nc *v1alpha1.NodeConfig, nodeCIDRs []string) (all []Holding) {
	add := func(text string, alleged bool) {
		if p, err := netip.ParsePrefix(text); err == nil {
			all = append(all, Holding{nc.Name, p.Masked(), alleged})
		}
	}
	if Templated(nc) {
		for _, text := range nodeCIDRs {
			add(text, false)
		}
	}
	for _, cidr := range slices.Concat(nc.Spec.PodCIDRs.IPv6, nc.Spec.PodCIDRs.IPv4) {
		add(string(cidr), Templated(nc))
	}
	for _, text := range nc.Status.RetiredCIDRs {
		add(text, true)
	}
	return all
}
