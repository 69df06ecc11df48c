package ipam

import (
	"math/bits"
	"net/netip"
	"slices"

	"flock.fritzlab.net/flock/pkg/address"
)

// Held returns what addr was granted from, if it is held.
func (a *Allocator) Held(addr netip.Addr) (address.Granted, bool) {
	if !addr.IsValid() {
		return address.Granted{}, false
	}
	trie, length := a.trie(FamilyOf(addr))
	k := keyOf(addr)
	n, _ := (*trie).below(k.first(length-blockBits), length-blockBits)
	digit := lastDigit(k, length)
	if n == nil || n.block == nil || n.block.held>>digit&1 == 0 {
		return address.Granted{}, false
	}
	return address.Granted{Addr: addr, CIDR: n.block.cidr[digit].Value()}, true
}

// AllHeld returns everything that is held, IPv6 first, in order.
func (a *Allocator) AllHeld() []address.Granted {
	var out []address.Granted
	for _, f := range []Family{IPv6, IPv4} {
		trie, length := a.trie(f)
		(*trie).blocks(func(k key, b *block) bool {
			b.eachHeld(k, length, func(l address.Granted) { out = append(out, l) })
			return true
		})
	}
	return out
}

// eachHeld calls f for each address of a block that is held.
func (b *block) eachHeld(k key, length int, f func(address.Granted)) {
	for held := b.held; held != 0; held &= held - 1 {
		digit := bits.TrailingZeros16(held)
		f(address.Granted{Addr: k.withDigit(digit, length).addr(length), CIDR: b.cidr[digit].Value()})
	}
}

// Retired returns the CIDRs that are not configured any more but in which an address
// is held, in order. They must stay routed until their last pod has gone.
func (a *Allocator) Retired() []netip.Prefix {
	var out []netip.Prefix
	for p := range a.retired {
		out = append(out, p)
	}
	slices.SortFunc(out, comparePrefixes)
	return out
}

// Usage is how full a prefix is.
type Usage struct {
	CIDR netip.Prefix
	// Held and Quarantined count addresses; the quarantined ones were held before and
	// are in quarantine or remembered for the order of their release.
	Held, Quarantined int
}

// Usage reports on each configured CIDR, IPv6 first, in the order configured.
func (a *Allocator) Usage() []Usage {
	var out []Usage
	for _, p := range slices.Concat(a.cfg.IPv6, a.cfg.IPv4) {
		out = append(out, a.usage(p))
	}
	return out
}

func (a *Allocator) usage(p netip.Prefix) Usage {
	trie, length := a.trie(FamilyOf(p.Addr()))
	held, quarantined := (*trie).count(keyOf(p.Addr()), p.Bits(), length)
	return Usage{CIDR: p, Held: held, Quarantined: quarantined}
}

func comparePrefixes(p, q netip.Prefix) int {
	if c := p.Addr().Compare(q.Addr()); c != 0 {
		return c
	}
	return p.Bits() - q.Bits()
}
