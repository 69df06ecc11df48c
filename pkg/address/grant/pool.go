package grant

import (
	"fmt"
	"net/netip"
	"strings"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// Admits says whether a pool grants the use of addr to a namespace with these labels.
func Admits(addr netip.Addr, use v1alpha1.PoolUse, namespaceLabels map[string]string, pools []config.Pool) bool {
	_, why := Input{NamespaceLabels: namespaceLabels, Pools: pools}.poolFor(addr, use)
	return why == ""
}

// poolFor returns the pool that grants addr to the pod, or why none does. Among several
// that decide, the first by name that grants is the one.
func (in Input) poolFor(addr netip.Addr, use v1alpha1.PoolUse) (_ config.Pool, why string) {
	pools := config.Deciding(in.Pools, addr)
	if len(pools) == 0 {
		return config.Pool{}, fmt.Sprintf("is outside the pod CIDRs of node %s, and no AddressPool covers it: ask the cluster's operator for one with use %q that admits namespace %s",
			in.NodeName, use, in.Namespace)
	}
	var against []string
	for _, p := range pools {
		cidr, _ := p.Covering(addr)
		switch allowed := use == v1alpha1.UseStatic && p.Static || use == v1alpha1.UseAnycast && p.Anycast; {
		case !p.Admits(in.NamespaceLabels):
			against = append(against, fmt.Sprintf("AddressPool %s (%s) admits only namespaces with %s", p.Name, cidr, config.Admission(p.Namespaces)))
		case !allowed:
			against = append(against, fmt.Sprintf("AddressPool %s (%s) does not allow use %q", p.Name, cidr, use))
		default:
			return p, ""
		}
	}
	return config.Pool{}, fmt.Sprintf("is granted to namespace %s by no AddressPool: %s: choose an address of another pool, or ask the cluster's operator",
		in.Namespace, strings.Join(against, "; "))
}
