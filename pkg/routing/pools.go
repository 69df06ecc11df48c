package routing

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"

	"flock.fritzlab.net/flock/pkg/config"
)

// PoolRoutes are the routes within a prefix, to addresses that AddressPools grant,
// and what goes with them in addition to a peer's export. Their single values go
// before the peer's. Routes of pods are host routes; those of Services are host
// routes, or a pool's whole CIDR if it is aggregated.
type PoolRoutes struct {
	Within netip.Prefix
	// Static, Anycast and Service differ only where pools have the very same prefix.
	Static, Anycast, Service config.Export
}

// PoolsOf is what pools ask for their addresses, the longest prefix first: the
// first that contains an address decides, as it does in what the pools grant. Of
// pools with the very same prefix it is the first by name that has the use; whom
// it admits cannot be seen from a route.
//
// What would change nothing is left out. So there is nothing where no pool has
// attributes, and a pool without any appears only if it was carved out of one
// that has some.
func PoolsOf(pools []config.Pool) []PoolRoutes {
	type uses struct{ first, static, anycast, service *config.Export }
	at := map[netip.Prefix]uses{}
	pools = slices.Clone(pools)
	slices.SortFunc(pools, func(a, b config.Pool) int { return cmp.Compare(a.Name, b.Name) })
	for i := range pools {
		export := &pools[i].Routing.Export
		for _, c := range pools[i].CIDRs {
			u := at[c]
			if u.first == nil {
				u.first = export
			}
			if pools[i].Static && u.static == nil {
				u.static = export
			}
			if pools[i].Anycast && u.anycast == nil {
				u.anycast = export
			}
			if pools[i].Service && u.service == nil {
				u.service = export
			}
			at[c] = u
		}
	}
	routes := func(within netip.Prefix) PoolRoutes {
		u := at[within]
		return PoolRoutes{within, *cmp.Or(u.static, u.first), *cmp.Or(u.anycast, u.first), *cmp.Or(u.service, u.first)}
	}
	var out []PoolRoutes
	for within := range at {
		r, wider := routes(within), PoolRoutes{}
		for bits := within.Bits() - 1; bits >= 0; bits-- {
			if p := netip.PrefixFrom(within.Addr(), bits).Masked(); at[p].first != nil {
				wider = routes(p)
				break
			}
		}
		if !r.SameAs(wider) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b PoolRoutes) int {
		return cmp.Or(b.Within.Bits()-a.Within.Bits(), a.Within.Compare(b.Within))
	})
	return out
}

// SameAs reports whether the same goes with the routes of both.
func (r PoolRoutes) SameAs(s PoolRoutes) bool {
	s.Within = r.Within
	return reflect.DeepEqual(r, s)
}
