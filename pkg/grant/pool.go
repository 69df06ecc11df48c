package grant

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// poolFor returns the pool that grants addr to the pod, or why none does.
//
// The pools with the longest prefix around the address decide, wider ones are not
// asked: an operator who carves a pool out of another one has taken the addresses
// away from it, and the routes' attributes follow the same rule. Among several with
// the very same prefix the first by name that grants is the one.
func (in Input) poolFor(addr netip.Addr, use v1alpha1.PoolUse) (_ config.Pool, why string) {
	longest := -1
	var pools []config.Pool
	for _, p := range in.Pools {
		cidr, covers := p.Covering(addr)
		if !covers || cidr.Bits() < longest {
			continue
		}
		if cidr.Bits() > longest {
			longest, pools = cidr.Bits(), nil
		}
		pools = append(pools, p)
	}
	if len(pools) == 0 {
		return config.Pool{}, fmt.Sprintf("is outside the pod CIDRs of node %s, and no AddressPool covers it: ask the cluster's operator for one with use %q that admits namespace %s",
			in.NodeName, use, in.Namespace)
	}
	slices.SortFunc(pools, func(a, b config.Pool) int { return strings.Compare(a.Name, b.Name) })
	var against []string
	for _, p := range pools {
		cidr, _ := p.Covering(addr)
		switch allowed := use == v1alpha1.UseStatic && p.Static || use == v1alpha1.UseAnycast && p.Anycast; {
		case !p.Namespaces.Matches(labels.Set(in.NamespaceLabels)):
			against = append(against, fmt.Sprintf("AddressPool %s (%s) admits only namespaces with %s", p.Name, cidr, selection(p.Namespaces)))
		case !allowed:
			against = append(against, fmt.Sprintf("AddressPool %s (%s) does not allow use %q", p.Name, cidr, use))
		default:
			return p, ""
		}
	}
	return config.Pool{}, fmt.Sprintf("is granted to namespace %s by no AddressPool: %s: choose an address of another pool, or ask the cluster's operator",
		in.Namespace, strings.Join(against, "; "))
}

// selection is a selector for people.
func selection(s labels.Selector) string {
	if requirements, some := s.Requirements(); some && len(requirements) > 0 {
		return "labels " + s.String()
	}
	return "labels that no namespace has"
}
