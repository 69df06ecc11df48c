package ipam

import (
	"fmt"
	"net/netip"
	"time"
)

// Family is IPv4 or IPv6.
type Family uint8

// The families. The zero Family is none.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// FamilyOf is the family of an address. An IPv4 address in IPv6 clothes
// (::ffff:192.0.2.1) counts as IPv6.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Config is what a node may give to its pods. The CIDRs of a family do not
// overlap (config.ParseNode sees to it).
type Config struct {
	// Node is the name of the NodeConfig, for errors.
	Node string
	// IPv6 and IPv4 are the CIDRs, those to be used first first.
	IPv6, IPv4 []netip.Prefix
	// Exclude are ranges in which no address is handed out; the node's own
	// addresses belong here too, where they lie in a CIDR.
	Exclude []netip.Prefix
	// Quarantine is how long an address is kept from other pods after its release.
	Quarantine time.Duration
}

func (c Config) cidrs(f Family) []netip.Prefix {
	if f == IPv4 {
		return c.IPv4
	}
	return c.IPv6
}

// cidrOf returns the CIDR that a lies in, or the zero Prefix.
func (c Config) cidrOf(a netip.Addr) netip.Prefix {
	for _, p := range c.cidrs(FamilyOf(a)) {
		if p.Contains(a) {
			return p
		}
	}
	return netip.Prefix{}
}

// Request is what is wanted of Allocate.
type Request struct {
	Family Family
	// Within restricts the choice to one of the CIDRs, or a part of one.
	// The zero Prefix: any of the CIDRs.
	Within netip.Prefix
	// Near computes the wanted address of a prefix (package embed); the pod gets
	// the free one nearest to it. IPv6 only; without it the choice is random.
	Near func(netip.Prefix) netip.Addr
	// Owner is whose address it becomes. One that Near computes may be in quarantine if
	// the same owner has released it.
	Owner Owner
}

// Owner is who has an address back before the end of its quarantine: a pod's workload.
// The zero Owner is nobody in particular, and is not the same as any other.
type Owner string
