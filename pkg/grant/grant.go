package grant

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/annotation"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/ipam"
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
	// IPv6 and IPv4 are the pod's address of each family; nil: it has none.
	IPv6, IPv4 *Source
	// Further are static addresses beside the first of their family, and Anycast
	// those that are announced while the pod is Ready; both in the order asked for.
	Further, Anycast []Address
}

// Source is where the pod's address of a family comes from.
type Source struct {
	// Static is the address asked for, if it is not to be allocated.
	Static *Address
	// Within is the part of the node's CIDRs to allocate from; zero: any.
	Within netip.Prefix
	// Algo is what an allocated IPv6 address is made of; empty: random.
	Algo []v1alpha1.IPAlgo
}

// Address is an address that is granted by name.
type Address struct {
	Addr netip.Addr
	// CIDR is the node's own CIDR around it, whose summary covers it; zero: a
	// pool has granted it, and it is announced as a route of its own.
	CIDR netip.Prefix
	// Pool is the name of that pool.
	Pool string
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
		primary, further := in.Request.Primary(f.is)
		if primary.IsValid() {
			for i, addr := range append([]netip.Addr{primary}, further...) {
				granted, err := in.static(addr)
				if err != nil {
					return Plan{}, err
				}
				if i == 0 {
					*f.planned = &Source{Static: &granted}
				} else {
					p.Further = append(p.Further, granted)
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
		*f.planned = &Source{Within: f.within, Algo: slices.Clone(f.algo)}
	}
	for _, addr := range in.Request.Anycast {
		granted, err := in.anycast(addr)
		if err != nil {
			return Plan{}, err
		}
		p.Anycast = append(p.Anycast, granted)
	}
	return p, nil
}

func (in Input) static(addr netip.Addr) (Address, error) {
	refuse := func(format string, args ...any) (Address, error) {
		return Address{}, &Refusal{annotation.Addresses, addr.String(), fmt.Sprintf(format, args...)}
	}
	if slices.Contains(in.NodeAddrs, addr) {
		return refuse("is an address of node %s itself: choose another", in.NodeName)
	}
	granted := Address{Addr: addr, CIDR: in.cidrOf(addr)}
	if granted.CIDR.IsValid() {
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

func (in Input) anycast(addr netip.Addr) (Address, error) {
	refuse := func(format string, args ...any) (Address, error) {
		return Address{}, &Refusal{annotation.Anycast, addr.String(), fmt.Sprintf(format, args...)}
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
	return Address{Addr: addr, Pool: pool.Name}, freeToShare(addr, in.Holder)
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
