package ipam

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
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
// an excluded range; see Orphans and Retired.
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
	for _, old := range []struct {
		trie   *node
		length int
	}{{old4, 32}, {old6, 128}} {
		old.trie.addresses(func(k key, known *address) bool {
			a.put(k.addr(old.length), known)
			return true
		})
	}
}

// Allocate picks a free address, holds it and returns it. now is the time of the
// call; it must not run backwards by much, as it measures quarantines.
//
// The error is an *ExhaustedError when there are CIDRs but nothing free in them,
// and otherwise says what about the request or the configuration is wrong.
func (a *Allocator) Allocate(r Request, now time.Time) (Lease, error) {
	cidrs, err := a.candidates(r)
	if err != nil {
		return Lease{}, err
	}
	a.forget(r.Family, now)

	trie, length := a.trie(r.Family)
	for _, c := range cidrs {
		near, resting, err := a.wanted(r, c.within)
		if err != nil {
			return Lease{}, err
		}
		if k, ok := a.nearest(r.Family, c.within, near, resting); ok {
			return a.hold(k.addr(length), c.cidr), nil
		}
	}
	var oldest *node
	var from netip.Prefix
	for _, c := range cidrs {
		n, excluded := (*trie).below(keyOf(c.within.Addr()), c.within.Bits())
		if n != nil && !excluded && n.oldest != never && (oldest == nil || n.oldest < oldest.oldest) {
			oldest, from = n, c.cidr
		}
	}
	if oldest != nil && a.due(oldest, now) {
		return a.hold(oldest.firstReleased().addr(length), from), nil
	}
	return Lease{}, a.exhausted(r, cidrs, oldest, now)
}

// Reserve holds exactly l.Addr: a lease from the store, at start, or a static
// address. It takes an address out of quarantine, and also one that is excluded:
// whether it may be had is for the caller to decide (package grant).
// l.CIDR is taken as given: zero for an address from elsewhere, a pool say.
// The error is a *HeldError where the address is held already.
func (a *Allocator) Reserve(l Lease) error {
	if !l.Addr.IsValid() || l.Addr.Is4In6() || l.Addr.Zone() != "" {
		return fmt.Errorf("%s is no address that a pod can hold", l.Addr)
	}
	if held, ok := a.Held(l.Addr); ok {
		return &HeldError{Lease: held}
	}
	a.hold(l.Addr, l.CIDR)
	return nil
}

// Release gives addr back at the time now; it rests from then on. False: addr was
// not held. To restore a quarantine after a restart, Reserve the address and
// Release it with the time at which it was released.
func (a *Allocator) Release(addr netip.Addr, now time.Time) bool {
	l, ok := a.Held(addr)
	if !ok {
		return false
	}
	if a.orphan(l) {
		if a.retired[l.CIDR]--; a.retired[l.CIDR] == 0 {
			delete(a.retired, l.CIDR)
		}
	}
	a.put(addr, &address{released: a.sinceEpoch(now)})
	a.forget(FamilyOf(addr), now)
	return true
}

// Held returns the lease of addr, if it is held.
func (a *Allocator) Held(addr netip.Addr) (Lease, bool) {
	if !addr.IsValid() {
		return Lease{}, false
	}
	trie, length := a.trie(FamilyOf(addr))
	n, _ := (*trie).below(keyOf(addr), length)
	if n == nil || n.known == nil || !n.known.held {
		return Lease{}, false
	}
	return Lease{addr, n.known.cidr}, true
}

// Leases returns everything that is held, IPv6 first, in order.
func (a *Allocator) Leases() []Lease {
	var out []Lease
	for _, f := range []Family{IPv6, IPv4} {
		trie, length := a.trie(f)
		(*trie).addresses(func(k key, known *address) bool {
			if known.held {
				out = append(out, Lease{k.addr(length), known.cidr})
			}
			return true
		})
	}
	return out
}

// Orphans returns the leases from a CIDR that is no longer configured, where no
// configured one has taken its place.
func (a *Allocator) Orphans() []Lease {
	return slices.DeleteFunc(a.Leases(), func(l Lease) bool { return !a.orphan(l) })
}

// Retired returns the CIDRs of the orphans, in order: those that must stay routed
// until their last pod has gone.
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
	// Held and Resting count addresses; the resting ones were held before and
	// are in quarantine or remembered for the order of their release.
	Held, Resting int
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
	u := Usage{CIDR: p}
	trie, _ := a.trie(FamilyOf(p.Addr()))
	if n, _ := (*trie).below(keyOf(p.Addr()), p.Bits()); n != nil {
		u.Held, u.Resting = int(n.held), int(n.resting)
	}
	return u
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

// wanted is the address that r would like to have of the prefix, and whether it
// may be one at rest.
func (a *Allocator) wanted(r Request, within netip.Prefix) (near key, resting bool, err error) {
	switch {
	case r.Family == IPv4:
		return key{}, false, nil
	case r.Near != nil:
		return keyOf(r.Near(within)), true, nil
	}
	var iid [16]byte
	if _, err := io.ReadFull(a.random, iid[:]); err != nil {
		return key{}, false, fmt.Errorf("no randomness for an interface identifier: %w", err)
	}
	return keyOf(netip.AddrFrom16(iid)), false, nil
}

// nearest is node.nearest without the reserved interface identifiers: those it
// meets are excluded from then on.
func (a *Allocator) nearest(f Family, within netip.Prefix, near key, resting bool) (key, bool) {
	trie, length := a.trie(f)
	for {
		k, ok := (*trie).nearest(keyOf(within.Addr()), within.Bits(), length, near, resting)
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

// forget drops up to two addresses of which nothing has to be remembered any
// longer. Two, because each call of Release adds one at most.
func (a *Allocator) forget(f Family, now time.Time) {
	trie, length := a.trie(f)
	for range 2 {
		n := *trie
		if n == nil || n.oldest == never || !a.due(n, now) || f == IPv4 && n.resting <= remembered {
			return
		}
		*trie = edit(n, n.firstReleased(), length, func(n *node) { n.known = nil })
	}
}

// due says whether the first release below n is a quarantine ago.
func (a *Allocator) due(n *node, now time.Time) bool {
	return n.oldest+a.cfg.Quarantine <= a.sinceEpoch(now)
}

// sinceEpoch measures time from the first call, by the monotonic clock if now has it.
func (a *Allocator) sinceEpoch(now time.Time) time.Duration {
	if a.epoch.IsZero() {
		a.epoch = now
	}
	return now.Sub(a.epoch)
}

func (a *Allocator) hold(addr netip.Addr, cidr netip.Prefix) Lease {
	a.put(addr, &address{held: true, cidr: cidr})
	return Lease{addr, cidr}
}

func (a *Allocator) put(addr netip.Addr, known *address) {
	trie, length := a.trie(FamilyOf(addr))
	*trie = edit(*trie, keyOf(addr), length, func(n *node) { n.known = known })
	if l := (Lease{addr, known.cidr}); known.held && a.orphan(l) {
		a.retired[l.CIDR]++
	}
}

func (a *Allocator) exclude(p netip.Prefix) {
	trie, _ := a.trie(FamilyOf(p.Addr()))
	*trie = edit(*trie, keyOf(p.Addr()), p.Bits(), func(n *node) { n.excluded = true })
}

func (a *Allocator) orphan(l Lease) bool {
	return l.CIDR.IsValid() && !a.cfg.cidrOf(l.Addr).IsValid()
}

// trie returns the family's trie and the length of its addresses in bits.
func (a *Allocator) trie(f Family) (**node, int) {
	if f == IPv4 {
		return &a.v4, 32
	}
	return &a.v6, 128
}

func comparePrefixes(p, q netip.Prefix) int {
	if c := p.Addr().Compare(q.Addr()); c != 0 {
		return c
	}
	return p.Bits() - q.Bits()
}
