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
	// Quarantine is how long an address rests after its release.
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

// Lease is an address that is held, with the CIDR it came from. Both belong in
// the store: when the CIDR is taken from the node's configuration, the lease is
// what tells that it has to stay routed.
type Lease struct {
	Addr netip.Addr
	// CIDR is zero for an address that is not from the node's CIDRs.
	CIDR netip.Prefix
}

// Request is what is wanted of Allocate.
type Request struct {
	Family Family
	// Within restricts the choice to one of the CIDRs, or a part of one.
	// The zero Prefix: any of the CIDRs.
	Within netip.Prefix
	// Near computes the wanted address of a prefix (package embed); the pod gets
	// the free one nearest to it. IPv6 only; nil: random.
	Near func(netip.Prefix) netip.Addr
}
