package ipam

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"
	"unique"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/address"
)

// remembered is how many released IPv4 addresses are kept in the order of their
// release beyond the quarantine.
const remembered = 1 << 16

// Allocator is the addresses of one node's pods. See the package's documentation.
type Allocator struct {
	cfg    Config
	random io.Reader
	v4, v6 *node
	epoch  time.Time
	// retired counts the leases of each CIDR that is no longer configured.
	retired map[netip.Prefix]int
	// quarantine has the owners of what is in quarantine.
	quarantine quarantine
}

// New returns an Allocator that holds nothing. random must be fit for
// cryptography (crypto/rand.Reader), or pods' addresses can be guessed.
func New(cfg Config, random io.Reader) *Allocator {
	a := &Allocator{random: random}
	a.Configure(cfg)
	return a
}

// Configure puts cfg in place of the present configuration. It acts on what is
// allocated from now on: leases stay, also those that lie in no CIDR of cfg or in
// an excluded range; see Retired.
func (a *Allocator) Configure(cfg Config) {
	for _, ps := range []*[]netip.Prefix{&cfg.IPv6, &cfg.IPv4, &cfg.Exclude} {
		*ps = slices.Clone(*ps)
		for i, p := range *ps {
			(*ps)[i] = p.Masked()
		}
	}
	a.cfg = cfg
	old4, old6 := a.v4, a.v6
	a.v4, a.v6, a.retired = nil, nil, map[netip.Prefix]int{}
	for _, p := range cfg.keptBack() {
		a.exclude(p)
	}
	a.move(IPv4, old4)
	a.move(IPv6, old6)
}

// move puts what an old trie knew, but for what it excluded, into the present one.
func (a *Allocator) move(f Family, old *node) {
	trie, length := a.trie(f)
	old.blocks(func(k key, b *block) bool {
		*trie = edit(*trie, k, length-blockBits, func(n *node) {
			moved := *b
			moved.excluded = 0
			if n.block != nil {
				moved.excluded = n.block.excluded
			}
			n.block = &moved
		})
		b.eachHeld(k, length, func(l address.Granted) {
			if a.orphan(l) {
				a.retired[l.CIDR]++
			}
		})
		return true
	})
}

// Allocate picks a free address, holds it and returns it. now is the time of the
// call; it must not run backwards by much, as it measures quarantines.
//
// The error is an *ExhaustedError when there are CIDRs but nothing free in them,
// and otherwise says what about the request or the configuration is wrong.
func (a *Allocator) Allocate(r Request, now time.Time) (address.Granted, error) {
	cidrs, err := a.candidates(r)
	if err != nil {
		return address.Granted{}, err
	}
	a.forget(r.Family, now)

	trie, length := a.trie(r.Family)
	for _, c := range cidrs {
		near, err := a.wanted(r, c.within)
		if err != nil {
			return address.Granted{}, err
		}
		k, ok := a.nearest(r.Family, c.within, near)
		if r.Near != nil {
			if own, some := a.ownNearest(r.Owner, c.within, near); some && (!ok || own.nearer(k, near)) {
				k, ok = own, true
			}
		}
		if ok {
			return a.hold(address.Granted{Addr: k.addr(length), CIDR: c.cidr}), nil
		}
	}
	first, from := never, address.Granted{}
	for _, c := range cidrs {
		k, released := (*trie).oldestRelease(keyOf(c.within.Addr()), c.within.Bits(), length)
		if released < first {
			first, from = released, address.Granted{Addr: k.addr(length), CIDR: c.cidr}
		}
	}
	if first != never && a.due(first, now) {
		return a.hold(from), nil
	}
	return address.Granted{}, a.exhausted(r, cidrs, first, now)
}

// Reserve holds exactly l.Addr: a lease from the store, at start. It takes an address
// out of quarantine, and also one that is excluded: whether it may be had is for the
// caller to decide (package grant). ReserveFor minds the quarantine.
// l.CIDR is taken as given: zero for an address from elsewhere, a pool say.
// The error is a *HeldError where the address is held already.
func (a *Allocator) Reserve(l address.Granted) error {
	if reason := netaddr.UnroutableReason(l.Addr); reason != "" {
		return fmt.Errorf("%s is %s: a pod cannot hold it", l.Addr, reason)
	}
	if held, ok := a.Held(l.Addr); ok {
		return &HeldError{Granted: held}
	}
	a.hold(l)
	return nil
}

// Release gives addr back at the time now; it is in quarantine from then on, in which
// only its owner may have it back. With the zero time it was not used: it is as if it
// had not been held. The result is false if addr was not held.
// To restore a quarantine after a restart, Reserve the address and Release it with
// the time at which it was released.
func (a *Allocator) Release(addr netip.Addr, owner Owner, now time.Time) bool {
	l, ok := a.Held(addr)
	if !ok {
		return false
	}
	if a.orphan(l) {
		if a.retired[l.CIDR]--; a.retired[l.CIDR] == 0 {
			delete(a.retired, l.CIDR)
		}
	}
	used := !now.IsZero()
	var at time.Duration
	if used {
		at = a.sinceEpoch(now)
	}
	a.edit(addr, func(b *block, bit uint16, digit int) {
		b.held &^= bit
		if used {
			b.released[digit] = at
		}
		if b.released[digit] != never {
			b.quarantined |= bit
		}
	})
	if used {
		a.quarantine.add(release{addr, owner, at})
		a.forget(FamilyOf(addr), now)
	}
	return true
}

// candidate is a part of a CIDR that a request may be served from.
type candidate struct{ cidr, within netip.Prefix }

func (a *Allocator) candidates(r Request) ([]candidate, error) {
	if r.Family != IPv4 && r.Family != IPv6 {
		return nil, fmt.Errorf("%s is no family: want IPv4 or IPv6", r.Family)
	}
	cidrs := a.cfg.cidrs(r.Family)
	if len(cidrs) == 0 {
		return nil, &NoCIDRError{Family: r.Family, Node: a.cfg.Node}
	}
	var out []candidate
	for _, p := range cidrs {
		switch {
		case !r.Within.IsValid():
			out = append(out, candidate{p, p})
		case p.Bits() <= r.Within.Bits() && p.Contains(r.Within.Addr()):
			out = append(out, candidate{p, r.Within.Masked()})
		}
	}
	if len(out) == 0 {
		return nil, &OutsideError{Within: r.Within, Family: r.Family, Node: a.cfg.Node, CIDRs: cidrs}
	}
	return out, nil
}

// wanted is the address that r would like to have of the prefix.
func (a *Allocator) wanted(r Request, within netip.Prefix) (near key, err error) {
	switch {
	case r.Family == IPv4:
		return key{}, nil
	case r.Near != nil:
		return keyOf(r.Near(within)), nil
	}
	var iid [16]byte
	if _, err := io.ReadFull(a.random, iid[:]); err != nil {
		return key{}, fmt.Errorf("no randomness for an interface identifier: %w", err)
	}
	return keyOf(netip.AddrFrom16(iid)), nil
}

// nearest is node.nearest without the reserved interface identifiers: those it
// meets are excluded from then on.
func (a *Allocator) nearest(f Family, within netip.Prefix, near key) (key, bool) {
	trie, length := a.trie(f)
	for {
		k, ok := (*trie).nearest(keyOf(within.Addr()), within.Bits(), length, near)
		if !ok || f == IPv4 {
			return k, ok
		}
		block, _, isReserved := reservedBlock(k.addr(length))
		if !isReserved {
			return k, true
		}
		a.exclude(block)
	}
}

// forgetAtOnce bounds what one call of forget does.
const forgetAtOnce = 256

// forget drops addresses of which nothing has to be remembered any longer.
func (a *Allocator) forget(f Family, now time.Time) {
	a.quarantine.expire(a.sinceEpoch(now)-a.cfg.Quarantine, a.released)
	trie, length := a.trie(f)
	for range forgetAtOnce {
		k, released := (*trie).oldestRelease(key{}, 0, length)
		if released == never || !a.due(released, now) || f == IPv4 && (*trie).quarantined <= remembered {
			return
		}
		a.edit(k.addr(length), func(b *block, bit uint16, _ int) { b.quarantined &^= bit })
	}
}

// due says whether a quarantine has passed since the release.
func (a *Allocator) due(released time.Duration, now time.Time) bool {
	return released+a.cfg.Quarantine <= a.sinceEpoch(now)
}

// sinceEpoch measures time from the first call, by the monotonic clock if now has it.
func (a *Allocator) sinceEpoch(now time.Time) time.Duration {
	if a.epoch.IsZero() {
		a.epoch = now
	}
	return now.Sub(a.epoch)
}

func (a *Allocator) hold(l address.Granted) address.Granted {
	cidr := unique.Make(l.CIDR)
	a.edit(l.Addr, func(b *block, bit uint16, digit int) {
		if b.quarantined&bit == 0 {
			b.released[digit] = never
		}
		b.quarantined &^= bit
		b.held |= bit
		b.cidr[digit] = cidr
	})
	if a.orphan(l) {
		a.retired[l.CIDR]++
	}
	return l
}

// edit makes a change to the block of addr, where it has the given digit and bit.
func (a *Allocator) edit(addr netip.Addr, change func(b *block, bit uint16, digit int)) {
	trie, length := a.trie(FamilyOf(addr))
	k := keyOf(addr)
	digit := lastDigit(k, length)
	*trie = edit(*trie, k.first(length-blockBits), length-blockBits, func(n *node) {
		if n.block == nil {
			n.block = &block{}
		}
		change(n.block, 1<<digit, digit)
	})
}

func (a *Allocator) exclude(p netip.Prefix) {
	trie, length := a.trie(FamilyOf(p.Addr()))
	k := keyOf(p.Addr())
	if p.Bits() > length-blockBits {
		digits := digitsOf(k, p.Bits(), length)
		a.edit(p.Addr(), func(b *block, _ uint16, _ int) { b.excluded |= digits })
		return
	}
	*trie = edit(*trie, k, p.Bits(), func(n *node) { n.excluded = true })
}

func (a *Allocator) orphan(l address.Granted) bool {
	return l.CIDR.IsValid() && !a.cfg.cidrOf(l.Addr).IsValid()
}

// trie returns the family's trie and the length of its addresses in bits.
func (a *Allocator) trie(f Family) (**node, int) {
	if f == IPv4 {
		return &a.v4, 32
	}
	return &a.v6, 128
}
