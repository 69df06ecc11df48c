package grant

import (
	"cmp"
	"net/netip"
	"slices"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/config"
)

// Retained returns what pools have granted and would not any more: their addresses that
// are in use, with the routing that they keep until the last user is gone. A pool that
// was narrowed is in pools, and its routing is what pools says; gone are the last valid
// versions of those that were deleted or made invalid. What is returned grants nothing.
//
// An address that the granting pool still covers follows pools, also where a longer
// prefix was carved out of the pool.
func Retained(granted []address.Granted, pools, gone []config.Pool) []config.Pool {
	named := func(from []config.Pool, name string) (config.Pool, bool) {
		i := slices.IndexFunc(from, func(p config.Pool) bool { return p.Name == name })
		if i < 0 {
			return config.Pool{}, false
		}
		return from[i], true
	}
	covered, retained := map[netip.Addr]bool{}, map[string]config.Pool{}
	for _, g := range granted {
		if p, ok := named(pools, g.Pool); ok {
			if _, covers := p.Covering(g.Addr); covers {
				covered[g.Addr] = true
			}
		}
	}
	for _, g := range granted {
		p, ok := named(pools, g.Pool)
		if !ok {
			p, ok = named(gone, g.Pool)
		}
		if !ok || covered[g.Addr] {
			continue
		}
		r := retained[g.Pool]
		r.Name, r.Routing = g.Pool, p.Routing
		if host := netip.PrefixFrom(g.Addr, g.Addr.BitLen()); !slices.Contains(r.CIDRs, host) {
			r.CIDRs = append(r.CIDRs, host)
		}
		retained[g.Pool] = r
	}
	var out []config.Pool
	for _, r := range retained {
		slices.SortFunc(r.CIDRs, netip.Prefix.Compare)
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b config.Pool) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// PoolOf returns the name of the pool by which an address in use must have been granted,
// as far as pools still say: the first by name of those with the longest prefix.
func PoolOf(addr netip.Addr, anycast bool, pools []config.Pool) string {
	name, longest := "", -1
	for _, p := range pools {
		cidr, covers := p.Covering(addr)
		if !covers || anycast && !p.Anycast || !anycast && !p.Static {
			continue
		}
		if cidr.Bits() > longest || cidr.Bits() == longest && p.Name < name {
			name, longest = p.Name, cidr.Bits()
		}
	}
	return name
}
