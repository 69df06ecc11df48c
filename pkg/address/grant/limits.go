package grant

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/config"
)

// checkNumber refuses a pod that would have more addresses than the node allows.
func (in Input) checkNumber() error {
	r := in.Request
	total := len(r.Static) + len(r.Anycast)
	for _, f := range []struct {
		on bool
		is func(netip.Addr) bool
	}{{r.IPv6, netip.Addr.Is6}, {r.IPv4, netip.Addr.Is4}} {
		if primary, _ := r.Primary(f.is); f.on && !primary.IsValid() {
			total++ // allocated
		}
	}
	most := cmp.Or(in.Node.MaxAddresses, config.DefaultMaxAddresses)
	if total <= most {
		return nil
	}
	key := annotation.Addresses
	if len(r.Anycast) > len(r.Static) {
		key = annotation.Anycast
	}
	return &Refusal{key, fmt.Sprintf("%d addresses", total), fmt.Sprintf("are too many, as a pod may have %d on node %s: list fewer, or ask the cluster's operator to raise spec.maxAddressesPerPod of nodeconfig %s",
		most, in.NodeName, in.NodeName)}
}

// fewAddresses is the size of a part of a CIDR from which on a pod no longer picks its
// address: with 16 of them the last hexadecimal digit is left open.
const fewAddresses = 16

// picks says whether a pod that asks for within asks for an address by name, or nearly
// so. Without this the annotations cidr4 and cidr6 would be a way around the grant.
func picks(within netip.Prefix) bool {
	return within.IsValid() && 1<<min(within.Addr().BitLen()-within.Bits(), 16) < fewAddresses
}

// named says why the pod may not ask by name for an address of the node's CIDRs, of
// which cidr is one or a part; "" if it may.
func (in Input) named(cidr string) string {
	const remedy = "let flock allocate one, ask for one of an AddressPool, or ask the cluster's operator"
	field := fmt.Sprintf("spec.podCIDRs.static of nodeconfig %s", in.NodeName)
	switch s := in.Node.Static; {
	case s == nil:
		return fmt.Sprintf("is in the pod CIDRs of node %s, where no pod may pick an address, because %s is not set: %s", in.NodeName, field, remedy)
	case !s.Namespaces.Matches(labels.Set(in.NamespaceLabels)):
		return fmt.Sprintf("is in the pod CIDRs of node %s, and %s admits only namespaces with %s, not namespace %s: %s", in.NodeName, field, config.Admission(s.Namespaces), in.Namespace, remedy)
	}
	return ""
}

// limit is how many addresses of one kind the pods of a namespace may hold.
type limit struct {
	most        int
	kind, field string // for people
	of          func(address.Granted) bool
	key         string // the annotation that the plan's addresses of this kind come from
	now         int    // how many different ones those are
}

// limitsFor returns the limits that p comes under: of the node's CIDRs by name, and of
// each pool on this node. What pods hold of a pool on other nodes is counted by their
// claims (package claim).
func (in Input) limitsFor(p Plan) []limit {
	var limits []limit
	add := func(l limit, more int) {
		if l.most == 0 {
			return
		}
		l.key = annotation.Addresses
		if slices.ContainsFunc(p.Anycast, l.of) {
			l.key = annotation.Anycast
		}
		if l.now = count(append(p.Held(), p.Anycast...), l.of) + more; l.now > 0 {
			limits = append(limits, l)
		}
	}
	if s := in.Node.Static; s != nil {
		toAllocate := 0
		for _, from := range []*Source{p.IPv6, p.IPv4} {
			if from != nil && from.Static == nil && from.Named {
				toAllocate++
			}
		}
		add(limit{
			most:  s.MaxPerNamespace,
			kind:  "by name of the pod CIDRs of node " + in.NodeName,
			field: "spec.podCIDRs.static.maxAddressesPerNamespace of nodeconfig " + in.NodeName,
			of:    func(g address.Granted) bool { return g.Named },
		}, toAllocate)
	}
	for _, pool := range in.Pools {
		add(limit{
			most:  pool.MaxPerNamespace,
			kind:  "of AddressPool " + pool.Name,
			field: "spec.maxAddressesPerNamespace",
			of:    func(g address.Granted) bool { return g.Pool == pool.Name },
		}, 0)
	}
	return limits
}

// Allowed returns a *Refusal if the pods of the namespace would hold more addresses than
// they may. others is [Input.InNamespace] as of now; it is called only if there is a
// limit.
func (p Plan) Allowed(others func() []address.Granted) error {
	if len(p.limits) == 0 {
		return nil
	}
	var held []address.Granted
	if others != nil {
		held = others()
	}
	for _, l := range p.limits {
		shared := count(held, func(g address.Granted) bool { return l.of(g) && p.shares(g.Addr) })
		before, more := count(held, l.of), l.now-shared
		if more > 0 && before+more > l.most {
			return &Refusal{l.key, fmt.Sprintf("%d more %s", more, l.kind), fmt.Sprintf("would exceed the %d that the pods of namespace %s may hold together (%s), of which other pods hold %d: wait until some have gone, or ask the cluster's operator to raise the limit",
				l.most, p.namespace, l.field, before)}
		}
	}
	return nil
}

// shares says whether addr is one of the plan's anycast addresses, which other pods may
// have too.
func (p Plan) shares(addr netip.Addr) bool {
	return slices.ContainsFunc(p.Anycast, func(g address.Granted) bool { return g.Addr == addr })
}

// count counts the different addresses for which f is true: pods share anycast ones.
func count(all []address.Granted, f func(address.Granted) bool) int {
	seen := map[netip.Addr]bool{}
	for _, g := range all {
		if f(g) {
			seen[g.Addr] = true
		}
	}
	return len(seen)
}
