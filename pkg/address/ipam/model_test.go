package ipam

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/address"
)

// model is the allocator as one would write it if time and memory were free: what
// is held and in quarantine in maps, the choice by looking at every address.
type model struct {
	cfg         Config
	held        map[netip.Addr]netip.Prefix // by address: the CIDR it came from
	quarantined map[netip.Addr]time.Time
	owners      map[netip.Addr]Owner     // of what was released, by whom last
	before      map[netip.Addr]time.Time // by held address: its last release
}

// menu holds what a configuration is put together from: small ranges that fill up,
// parts of one another, and reserved identifiers.
var menu = struct{ v4, v6, exclude []netip.Prefix }{
	v4:      prefixes("10.0.0.0/29", "10.0.0.8/30", "10.0.1.0/28", "10.0.2.0/31"),
	v6:      prefixes("2001:db8::/125", "2001:db8::8/126", "2001:db8:1::fdff:ffff:ffff:ff00/120", "2001:db8:2::/122"),
	exclude: prefixes("10.0.0.4/30", "10.0.0.0/30", "10.0.1.0/28", "10.0.1.7/32", "2001:db8::4/126", "2001:db8:2::20/123", "2001:db8:1::fdff:ffff:ffff:ff00/121", "2001:db8:2::18/125", "2001:db8::3/128"),
}

// menuConfig makes a configuration of the bits: b of CIDRs, x of exclusions.
func menuConfig(b byte, x uint16) Config {
	pick := func(from []netip.Prefix, bits uint16) (out []netip.Prefix) {
		for i, p := range from {
			if bits>>i&1 == 1 {
				out = append(out, p)
			}
		}
		return out
	}
	return Config{Node: "n", IPv4: pick(menu.v4, uint16(b)), IPv6: pick(menu.v6, uint16(b)>>4), Exclude: pick(menu.exclude, x), Quarantine: 10 * time.Second}
}

func all(p netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for a := p.Masked().Addr(); p.Contains(a); a = a.Next() {
		out = append(out, a)
	}
	return out
}

// may returns what an allocation may give, each with its CIDR: exactly one answer
// for IPv4 and computed addresses, any of several for random ones.
func (m *model) may(r Request, now time.Time) map[netip.Addr]netip.Prefix {
	out := map[netip.Addr]netip.Prefix{}
	var oldest netip.Addr
	due := func(a netip.Addr) bool { return !now.Before(m.quarantined[a].Add(m.cfg.Quarantine)) }
	for _, cidr := range m.cfg.cidrs(r.Family) {
		within := cidr
		if r.Within.IsValid() {
			if !cidr.Contains(r.Within.Addr()) || cidr.Bits() > r.Within.Bits() {
				continue
			}
			within = r.Within
		}
		var best netip.Addr
		for _, a := range all(within) {
			_, held := m.held[a]
			_, quarantined := m.quarantined[a]
			switch {
			case held || m.cfg.KeptBack(a) != "":
			case r.Near != nil && quarantined && !due(a) && (r.Owner == "" || m.owners[a] != r.Owner):
			case r.Near != nil:
				if near := r.Near(within); !best.IsValid() || distance(a, near) < distance(best, near) {
					best = a
				}
			case r.Family == IPv6 && due(a):
				out[a] = cidr
			case r.Family == IPv4 && !quarantined:
				return map[netip.Addr]netip.Prefix{a: cidr}
			case quarantined && due(a) && (!oldest.IsValid() || m.quarantined[a].Before(m.quarantined[oldest])):
				oldest = a
			}
		}
		if best.IsValid() {
			return map[netip.Addr]netip.Prefix{best: cidr}
		}
	}
	if oldest.IsValid() {
		out[oldest] = m.cfg.cidrOf(oldest)
	}
	return out
}

func (m *model) hold(a netip.Addr, cidr netip.Prefix) {
	if since, ok := m.quarantined[a]; ok {
		m.before[a] = since
	}
	delete(m.quarantined, a)
	m.held[a] = cidr
}

func (m *model) release(a netip.Addr, owner Owner, at time.Time) {
	since, used := m.before[a]
	delete(m.before, a)
	delete(m.held, a)
	switch {
	case !at.IsZero():
		m.quarantined[a], m.owners[a] = at, owner
	case used:
		m.quarantined[a] = since
	}
}

// owner makes one of three of a byte, the first of them nobody in particular.
func owner(b byte) Owner { return []Owner{"", "shop/web", "dns/resolver"}[b%3] }

// distance is right for addresses that share their first 64 bits.
func distance(a, b netip.Addr) uint64 { return keyOf(a).lo ^ keyOf(b).lo }

// play runs script, a few bytes an operation, against the allocator and the model
// and returns the first difference.
func play(script []byte) error {
	var random [32]byte
	copy(random[:], script)
	source := rand.NewChaCha8(random)
	in := bytes.NewReader(script)
	next := func() byte { b, _ := in.ReadByte(); return b }

	now := t0
	m := &model{cfg: menuConfig(0xff, 0), held: map[netip.Addr]netip.Prefix{}, quarantined: map[netip.Addr]time.Time{}, owners: map[netip.Addr]Owner{}, before: map[netip.Addr]time.Time{}}
	a := New(m.cfg, source)
	for step := 0; in.Len() > 0; step++ {
		op := next()
		var did string
		switch op % 8 {
		case 0, 1, 2, 3: // allocate
			r := Request{Family: []Family{IPv4, IPv6}[op%2]}
			if x := next(); x&1 == 1 {
				from := [][]netip.Prefix{menu.v4, menu.v6}[op%2]
				cidr := from[int(x>>1)%len(from)]
				r.Within = netip.PrefixFrom(all(cidr)[int(x>>3)%len(all(cidr))], min(cidr.Bits()+int(x>>6), cidr.Addr().BitLen())).Masked()
			}
			if op&2 != 0 && r.Family == IPv6 {
				n := uint64(next() & 0x3f)
				r.Owner = owner(next())
				r.Near = func(p netip.Prefix) netip.Addr {
					k := keyOf(p.Addr())
					return k.then(p.Bits(), key{k.hi, k.lo ^ n}).addr(128)
				}
			}
			may := m.may(r, now)
			l, err := a.Allocate(r, now)
			did = fmt.Sprintf("allocate %v within %v for %q: %v, %v; may be %v", r.Family, r.Within, r.Owner, l, err, may)
			switch cidr, ok := may[l.Addr]; {
			case err != nil && len(may) > 0, err == nil && (!ok || cidr != l.CIDR):
				return fmt.Errorf("step %d: %s", step, did)
			case err == nil:
				m.hold(l.Addr, l.CIDR)
			}
		case 4: // release one of the held, or an address that is not
			held := slices.SortedFunc(maps.Keys(m.held), netip.Addr.Compare)
			gone := all(menu.v4[2])[next()%16]
			if len(held) > 0 && op&8 == 0 {
				gone = held[int(next())%len(held)]
			}
			_, was := m.held[gone]
			at := now
			if op&16 != 0 { // an ADD is undone: the address was not used
				at = time.Time{}
			}
			by := owner(next())
			if got := a.Release(gone, by, at); got != was {
				return fmt.Errorf("step %d: release of %v: %v, want %v", step, gone, got, was)
			}
			if was {
				m.release(gone, by, at)
			}
		case 5: // a static address
			static := all(slices.Concat(menu.v4, menu.v6)[int(op>>3)%8])
			want := static[int(next())%len(static)]
			_, was := m.held[want]
			by := owner(next())
			since, quarantined := m.quarantined[want]
			refused := quarantined && now.Before(since.Add(m.cfg.Quarantine)) && (by == "" || m.owners[want] != by)
			if err := a.ReserveFor(address.Granted{Addr: want, CIDR: m.cfg.cidrOf(want)}, by, now); (err != nil) != (was || refused) {
				return fmt.Errorf("step %d: reserve of %v for %q: %v, held before: %v, in quarantine of another: %v", step, want, by, err, was, refused)
			}
			if !was && !refused {
				m.hold(want, m.cfg.cidrOf(want))
			}
		case 6: // the operator changes the configuration
			m.cfg = menuConfig(next(), uint16(next())<<8|uint16(next()))
			a.Configure(m.cfg)
		case 7:
			now = now.Add(time.Duration(next()%16) * time.Second)
			if op&8 != 0 { // the agent restarts, or crashes: the store is what is left
				a = New(m.cfg, source)
				clear(m.before) // records do not contain when an address was used before
				for addr, cidr := range m.held {
					if err := a.Reserve(address.Granted{Addr: addr, CIDR: cidr}); err != nil {
						return fmt.Errorf("step %d: restart: %w", step, err)
					}
				}
				bySince := func(x, y netip.Addr) int { return m.quarantined[x].Compare(m.quarantined[y]) }
				for _, addr := range slices.SortedFunc(maps.Keys(m.quarantined), bySince) { // as the ledger does
					if err := a.Reserve(address.Granted{Addr: addr}); err != nil {
						return fmt.Errorf("step %d: restart: %w", step, err)
					}
					a.Release(addr, m.owners[addr], m.quarantined[addr])
				}
			}
		}
		if err := m.agrees(a); err != nil {
			return fmt.Errorf("step %d, op %d (%s): %w", step, op, did, err)
		}
	}
	return nil
}

// agrees checks that nothing is lost, doubled or forgotten.
func (m *model) agrees(a *Allocator) error {
	leases := a.AllHeld()
	if len(leases) != len(m.held) {
		return fmt.Errorf("%d leases %v, want %d %v", len(leases), leases, len(m.held), m.held)
	}
	retired := map[netip.Prefix]bool{}
	for _, l := range leases {
		cidr, ok := m.held[l.Addr]
		if !ok || cidr != l.CIDR {
			return fmt.Errorf("lease %v, want it from %v", l, cidr)
		}
		if cidr.IsValid() && !m.cfg.cidrOf(l.Addr).IsValid() {
			retired[cidr] = true
		}
	}
	if got, want := a.Retired(), slices.SortedFunc(maps.Keys(retired), comparePrefixes); !slices.Equal(got, want) {
		return fmt.Errorf("retired %v, want %v", got, want)
	}
	for _, u := range a.Usage() {
		held := 0
		for addr := range m.held {
			if u.CIDR.Contains(addr) {
				held++
			}
		}
		if u.Held != held {
			return fmt.Errorf("usage %+v, want %d held", u, held)
		}
	}
	return nil
}

func TestAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for round := range 50 {
		script := make([]byte, 1500)
		for i := range script {
			script[i] = byte(random.Uint32())
		}
		if err := play(script); err != nil {
			t.Fatalf("seed %d, round %d: %v", seed, round, err)
		}
	}
}

func FuzzAllocator(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 2, 0, 3, 0, 7, 4, 4, 0, 15, 1})
	f.Add([]byte{6, 0x11, 0, 0, 0, 0, 0, 4, 1, 6, 0x22, 0xff, 0, 0, 15, 12, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		if err := play(script); err != nil {
			t.Fatal(err)
		}
	})
}
