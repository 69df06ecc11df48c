// Package address says what an address of a pod is, for all that give, keep or wire
// one. It is pure and imports nothing of flock's.
package address

import (
	"net/netip"
	"slices"
)

// Granted is an address that a pod may have. Where it comes from decides how it is
// routed: one from the node's CIDRs is covered by the summary of that CIDR, one from a
// pool is announced as a route of its own.
type Granted struct {
	Addr netip.Addr `json:"addr"`
	// CIDR is the node's CIDR that the address comes from. The zero Prefix: it
	// comes from a pool.
	CIDR netip.Prefix `json:"cidr,omitzero"`
	// Pool is the name of the AddressPool that granted it, where that is known.
	Pool string `json:"pool,omitempty"`
	// Named says that the pod has picked this address of the node's CIDRs. It is false
	// where that is not known: in the records of earlier releases, and in rebuilt ones.
	Named bool `json:"named,omitempty"`
}

// FromPool says that the address does not come from the node's CIDRs, so that other
// nodes could give it too.
func (g Granted) FromPool() bool { return !g.CIDR.IsValid() }

// Set is all that a pod has.
type Set struct {
	// Primary are the pod's addresses, at most one of each family, IPv6 first.
	Primary []Granted `json:"addrs"`
	// Secondary are its other static addresses.
	Secondary []Granted `json:"further,omitempty"`
	// Anycast addresses are shared with other pods, and routed to the pod only
	// while it is Ready.
	Anycast []Granted `json:"anycast,omitempty"`
}

// Held returns the addresses that no other pod may have at the same time.
func (s Set) Held() []Granted { return slices.Concat(s.Primary, s.Secondary) }

// All returns the addresses on the pod's link, the primary ones first.
func (s Set) All() []netip.Addr { return Addrs(slices.Concat(s.Primary, s.Secondary, s.Anycast)) }

// Addrs returns the addresses alone, in order.
func Addrs(granted []Granted) []netip.Addr {
	addrs := make([]netip.Addr, len(granted))
	for i, g := range granted {
		addrs[i] = g.Addr
	}
	return addrs
}
