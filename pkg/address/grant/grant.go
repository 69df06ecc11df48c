package grant

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/ipam"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// Input is everything that a decision depends on.
type Input struct {
	Request annotation.Request
	// Namespace of the pod, and its labels. They must be the API server's: a
	// label that is missing here is a right that is missing.
	Namespace       string
	NamespaceLabels map[string]string
	// NodeName is the name of the node and of its NodeConfig.
	NodeName string
	// Node is that NodeConfig.
	Node config.Node
	// NodeAddrs are all addresses of the node's own interfaces.
	NodeAddrs []netip.Addr
	Pools     []config.Pool
	// Holder returns who holds an address already, as far as can be seen.
	// It must not report the pod that is asking.
	Holder func(netip.Addr) (Holder, bool)
	// InNamespace returns the addresses that other pods of the namespace have on this
	// node, for the limits of a namespace; nil if they have none.
	InNamespace func() []address.Granted
}

// Holder is a pod that holds an address.
type Holder struct {
	// Pod is for people: namespace/name, and where it runs if that is elsewhere.
	Pod string
	// Anycast: it shares the address with others.
	Anycast bool
}

// Plan is what a pod is to be given.
type Plan struct {
	// IPv6 and IPv4 are the pod's primary address of each family; nil if the pod
	// has none of that family.
	IPv6, IPv4 *Source
	// Secondary are static addresses beside the first of their family, and Anycast
	// those that are announced while the pod is Ready; both in the order asked for.
	Secondary, Anycast []address.Granted

	namespace string
	limits    []limit // those of the namespace that the plan comes under
}

// Source is where the primary address of a family comes from.
type Source struct {
	// Static is the address asked for, if it is not to be allocated.
	Static *address.Granted
	// Within is the part of the node's CIDRs to allocate from; any if zero. Named says
	// that it is so small that the pod picks its address.
	Within netip.Prefix
	Named  bool
	// Algo is what an allocated IPv6 address is made of; random if empty.
	Algo []v1alpha1.IPAlgo
}

// Held returns the addresses that the plan grants by name to this pod alone. What is
// still to be allocated is not among them.
func (p Plan) Held() []address.Granted {
	var held []address.Granted
	for _, from := range []*Source{p.IPv6, p.IPv4} {
		if from != nil && from.Static != nil {
			held = append(held, *from.Static)
		}
	}
	return append(held, p.Secondary...)
}

// Refusal says why a pod does not get what an annotation asks for.
type Refusal struct {
	// Key is the annotation.
	Key string
	// What it asks for: an address or a prefix.
	What string
	// Why, with the remedy.
	Why string
}

func (e *Refusal) Error() string {
	return fmt.Sprintf("annotation %s: %s %s", e.Key, e.What, e.Why)
}

// Decide returns the plan for a pod, or a *Refusal, or an *ipam.NoCIDRError where
// the node has no addresses of a family that the pod is to have.
func Decide(in Input) (Plan, error) {
	if err := in.checkNumber(); err != nil {
		return Plan{}, err
	}
	var p Plan
	for _, f := range []struct {
		family  ipam.Family
		on      bool
		is      func(netip.Addr) bool
		cidrs   []netip.Prefix
		within  netip.Prefix
		key     string
		algo    []v1alpha1.IPAlgo
		planned **Source
	}{
		{ipam.IPv6, in.Request.IPv6, netip.Addr.Is6, in.Node.IPv6, in.Request.CIDR6, annotation.CIDR6, in.Request.IPAlgo, &p.IPv6},
		{ipam.IPv4, in.Request.IPv4, netip.Addr.Is4, in.Node.IPv4, in.Request.CIDR4, annotation.CIDR4, nil, &p.IPv4},
	} {
		if !f.on {
			continue
		}
		primary, secondary := in.Request.Primary(f.is)
		if primary.IsValid() {
			for i, addr := range append([]netip.Addr{primary}, secondary...) {
				granted, err := in.static(addr)
				if err != nil {
					return Plan{}, err
				}
				if i == 0 {
					*f.planned = &Source{Static: &granted}
				} else {
					p.Secondary = append(p.Secondary, granted)
				}
			}
			continue
		}
		if len(f.cidrs) == 0 {
			return Plan{}, &ipam.NoCIDRError{Family: f.family, Node: in.NodeName}
		}
		if f.within.IsValid() && !slices.ContainsFunc(f.cidrs, func(c netip.Prefix) bool {
			return c.Bits() <= f.within.Bits() && c.Contains(f.within.Addr())
		}) {
			return Plan{}, &Refusal{f.key, f.within.String(), fmt.Sprintf("is neither one of the %s CIDRs of node %s nor a part of one: choose from %s, or let the pod run on another node",
				f.family, in.NodeName, join(f.cidrs))}
		}
		if picks(f.within) {
			if why := in.named(f.within.String()); why != "" {
				return Plan{}, &Refusal{f.key, f.within.String(), why}
			}
		}
		*f.planned = &Source{Within: f.within, Named: picks(f.within), Algo: slices.Clone(f.algo)}
	}
	for _, addr := range in.Request.Anycast {
		granted, err := in.anycast(addr)
		if err != nil {
			return Plan{}, err
		}
		p.Anycast = append(p.Anycast, granted)
	}
	p.namespace, p.limits = in.Namespace, in.limitsFor(p)
	if err := p.Allowed(in.InNamespace); err != nil {
		return Plan{}, err
	}
	return p, nil
}

func (in Input) static(addr netip.Addr) (address.Granted, error) {
	refuse := func(format string, args ...any) (address.Granted, error) {
		return address.Granted{}, &Refusal{annotation.Addresses, addr.String(), fmt.Sprintf(format, args...)}
	}
	if slices.Contains(in.NodeAddrs, addr) {
		return refuse("is an address of node %s itself: choose another", in.NodeName)
	}
	granted := address.Granted{Addr: addr, CIDR: in.cidrOf(addr)}
	if granted.CIDR.IsValid() {
		granted.Named = true
		if why := in.named(granted.CIDR.String()); why != "" {
			return refuse("%s", why)
		}
		kept := ipam.Config{IPv6: in.Node.IPv6, IPv4: in.Node.IPv4, Exclude: in.Node.Exclude}.KeptBack(addr)
		if kept != "" {
			return refuse("is %s: choose another address of %s", kept, granted.CIDR)
		}
	} else {
		pool, why := in.poolFor(addr, v1alpha1.UseStatic)
		if why != "" {
			return refuse("%s", why)
		}
		granted.Pool = pool.Name
	}
	return granted, freeForOne(addr, in.Holder)
}

func (in Input) anycast(addr netip.Addr) (address.Granted, error) {
	refuse := func(format string, args ...any) (address.Granted, error) {
		return address.Granted{}, &Refusal{annotation.Anycast, addr.String(), fmt.Sprintf(format, args...)}
	}
	if slices.Contains(in.NodeAddrs, addr) {
		return refuse("is an address of node %s itself: choose another", in.NodeName)
	}
	// Its traffic would come here by the summary whether a pod is Ready or not.
	if cidr := in.cidrOf(addr); cidr.IsValid() {
		return refuse("lies in %s, which is always routed to node %s: an anycast address has to be outside the nodes' pod CIDRs, in an AddressPool", cidr, in.NodeName)
	}
	pool, why := in.poolFor(addr, v1alpha1.UseAnycast)
	if why != "" {
		return refuse("%s", why)
	}
	return address.Granted{Addr: addr, Pool: pool.Name}, freeToShare(addr, in.Holder)
}

// freeForOne refuses a static address that any pod has.
func freeForOne(addr netip.Addr, holder func(netip.Addr) (Holder, bool)) error {
	if h, held := holder(addr); held {
		return &Refusal{annotation.Addresses, addr.String(), fmt.Sprintf("is held by pod %s: choose another address, or wait until that pod has gone", h.Pod)}
	}
	return nil
}

// freeToShare refuses an anycast address that a pod has for itself.
func freeToShare(addr netip.Addr, holder func(netip.Addr) (Holder, bool)) error {
	if h, held := holder(addr); held && !h.Anycast {
		return &Refusal{annotation.Anycast, addr.String(), fmt.Sprintf("is held by pod %s as an address of its own: choose another address, or wait until that pod has gone", h.Pod)}
	}
	return nil
}

func (in Input) cidrOf(addr netip.Addr) netip.Prefix {
	for _, c := range slices.Concat(in.Node.IPv6, in.Node.IPv4) {
		if c.Contains(addr) {
			return c
		}
	}
	return netip.Prefix{}
}

func join[T fmt.Stringer](items []T) string {
	var out []string
	for _, i := range items {
		out = append(out, i.String())
	}
	return strings.Join(out, ", ")
}
