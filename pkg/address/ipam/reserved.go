package ipam

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// reserved are the reserved interface identifiers (RFC 5453 and its IANA registry), as prefixes of the last 64 bits: the subnet-router anycast
// address (RFC 4291 section 2.6.1), the block that Ethernet's proxy mobile IPv6
// and IANA hold, and the reserved subnet anycast addresses (RFC 2526).
var reserved = []struct {
	iid  uint64
	bits int // of the 64
	name string
}{
	{0x0000_0000_0000_0000, 64, "the subnet-router anycast address (RFC 4291 section 2.6.1)"},
	{0x0200_5eff_fe00_0000, 40, "an interface identifier reserved by IANA (RFC 5453)"},
	{0xfdff_ffff_ffff_ff80, 57, "a reserved subnet anycast address (RFC 2526)"},
}

// reservedBlock returns the block of reserved interface identifiers that the
// IPv6 address a lies in, if it does.
func reservedBlock(a netip.Addr) (block netip.Prefix, name string, ok bool) {
	b := a.As16()
	iid := binary.BigEndian.Uint64(b[8:])
	for _, r := range reserved {
		if (iid^r.iid)>>(64-r.bits) == 0 {
			return netip.PrefixFrom(a, 64+r.bits).Masked(), r.name, true
		}
	}
	return netip.Prefix{}, "", false
}

// KeptBack says why no pod is given addr although it lies in one of the CIDRs,
// or "" where nothing is against it. It reads as what addr is: "the network
// address of 10.1.0.0/24".
func (c Config) KeptBack(addr netip.Addr) string {
	for _, p := range c.Exclude {
		if p.Contains(addr) {
			return fmt.Sprintf("in the excluded range %s (spec.podCIDRs.exclude)", p)
		}
	}
	if addr.Is6() {
		for _, p := range c.IPv6 {
			if p.Addr() == addr {
				return fmt.Sprintf("the subnet-router anycast address of %s (RFC 4291 section 2.6.1)", p)
			}
		}
		_, name, _ := reservedBlock(addr)
		return name
	}
	for _, p := range c.IPv4 {
		switch {
		case p.Bits() >= 31: // RFC 3021: both are hosts
		case p.Addr() == addr:
			return fmt.Sprintf("the network address of %s", p)
		case lastAddr(p) == addr:
			return fmt.Sprintf("the broadcast address of %s", p)
		}
	}
	return ""
}

// keptBack lists what KeptBack names, but for the reserved interface identifiers,
// of which a short prefix has too many to list: the allocator meets them one by one.
func (c Config) keptBack() []netip.Prefix {
	out := append([]netip.Prefix(nil), c.Exclude...)
	for _, p := range c.IPv6 {
		out = append(out, netip.PrefixFrom(p.Addr(), 128))
	}
	for _, p := range c.IPv4 {
		if p.Bits() < 31 {
			out = append(out, netip.PrefixFrom(p.Addr(), 32), netip.PrefixFrom(lastAddr(p), 32))
		}
	}
	return out
}

func lastAddr(p netip.Prefix) netip.Addr {
	all := key{^uint64(0), ^uint64(0)}
	return keyOf(p.Addr()).then(p.Bits(), all).addr(p.Addr().BitLen())
}
