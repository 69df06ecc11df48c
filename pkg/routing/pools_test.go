package routing_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

// The uses of a pool, as bits.
const static, anycast, service = 1, 2, 4

func pool(name string, uses int, community uint16, cidrs ...string) config.Pool {
	p := config.Pool{Name: name, Static: uses&static != 0, Anycast: uses&anycast != 0, Service: uses&service != 0, Namespaces: labels.Everything()}
	for _, c := range cidrs {
		p.CIDRs = append(p.CIDRs, netip.MustParsePrefix(c))
	}
	if community != 0 {
		p.Routing.Export.Communities = []config.Community{{High: 64512, Low: community}}
	}
	return p
}

func TestPoolsOf(t *testing.T) {
	const all, both = static | anycast | service, static | anycast
	for _, tc := range []struct {
		name  string
		pools []config.Pool
		want  []string // prefix, community of static, anycast and Services' routes
	}{
		{"none", nil, nil},
		{"without attributes", []config.Pool{pool("a", both, 0, "2001:db8::/32"), pool("b", both, 0, "2001:db8:b::/48")}, nil},
		{"both families, the longest first", []config.Pool{pool("a", both, 1, "2001:db8::/32", "203.0.113.7/32"), pool("b", static, 2, "203.0.113.0/24", "2001:db8:b::/48")}, []string{
			"2001:db8:b::/48 2 2 2", "203.0.113.7/32 1 1 1", "2001:db8::/32 1 1 1", "203.0.113.0/24 2 2 2",
		}},
		{"carved out without attributes", []config.Pool{pool("a", both, 1, "2001:db8::/32"), pool("b", both, 0, "2001:db8:b::/48", "2001:db9:b::/48")}, []string{
			"2001:db8:b::/48 0 0 0", "2001:db8::/32 1 1 1",
		}},
		{"carved out with the same", []config.Pool{pool("a", both, 1, "2001:db8::/32"), pool("b", anycast, 1, "2001:db8:b::/48"), pool("c", both, 0, "2001:db8:b:c::/64")}, []string{
			"2001:db8:b:c::/64 0 0 0", "2001:db8::/32 1 1 1",
		}},
		{"the same prefix: the first by name", []config.Pool{pool("b", both, 2, "2001:db8::/32"), pool("a", both, 1, "2001:db8::/32")}, []string{"2001:db8::/32 1 1 1"}},
		{"the same prefix: by use", []config.Pool{pool("a", anycast, 1, "2001:db8::/32"), pool("b", static, 2, "2001:db8::/32"), pool("c", both, 3, "2001:db8::/32")}, []string{"2001:db8::/32 2 1 1"}},
		{"the same prefix: Services alone differ", []config.Pool{pool("a", both, 0, "2001:db8::/32"), pool("b", service, 2, "2001:db8::/32")}, []string{"2001:db8::/32 0 0 2"}},
		{"carved out for Services alone", []config.Pool{pool("a", all, 1, "2001:db8::/32"), pool("b", all, 1, "2001:db8:b::/48"), pool("c", service, 2, "2001:db8:c::/48")}, []string{
			"2001:db8:c::/48 2 2 2", "2001:db8::/32 1 1 1",
		}},
		{"the same prefix: the first has none", []config.Pool{pool("a", both, 0, "2001:db8::/32"), pool("b", both, 2, "2001:db8::/32")}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			low := func(e config.Export) uint16 {
				if len(e.Communities) == 0 {
					return 0
				}
				return e.Communities[0].Low
			}
			var got []string
			for _, r := range routing.PoolsOf(tc.pools) {
				got = append(got, fmt.Sprintf("%s %d %d %d", r.Within, low(r.Static), low(r.Anycast), low(r.Service)))
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("have %q, want %q", got, tc.want)
			}
		})
	}
}

// TestPoolsOfGrants: the attributes of an address are those of the pool that
// grants it, whatever the pools.
func TestPoolsOfGrants(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	granted := 0
	for range 2000 {
		var pools []config.Pool
		for i := range 1 + random.IntN(6) {
			cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(random.IntN(16))}), 26+random.IntN(7)).Masked()
			pools = append(pools, pool(fmt.Sprint(i), 1+random.IntN(7), uint16(random.IntN(3)), cidr.String()))
		}
		random.Shuffle(len(pools), func(i, j int) { pools[i], pools[j] = pools[j], pools[i] })
		of := routing.PoolsOf(pools)
		at := func(p netip.Prefix) routing.PoolRoutes {
			if i := slices.IndexFunc(of, func(r routing.PoolRoutes) bool { return r.Within.Overlaps(p) && r.Within.Bits() <= p.Bits() }); i >= 0 {
				return of[i]
			}
			return routing.PoolRoutes{}
		}
		for last := range byte(16) {
			addr := netip.AddrFrom4([4]byte{203, 0, 113, last})
			if i := slices.IndexFunc(config.Deciding(pools, addr), func(p config.Pool) bool { return p.Service }); i >= 0 {
				p := config.Deciding(pools, addr)[i]
				aggregate, _ := p.Covering(addr)
				for _, route := range []netip.Prefix{netip.PrefixFrom(addr, 32), aggregate} {
					if got := at(route).Service; !reflect.DeepEqual(got, p.Routing.Export) {
						t.Fatalf("%s of a Service is of pool %s of %+v, and has %+v of %+v", route, p.Name, pools, got, of)
					}
				}
			}
			for _, static := range []bool{true, false} {
				request := annotation.Request{Anycast: []netip.Addr{addr}}
				if static {
					request = annotation.Request{IPv4: true, Static: []netip.Addr{addr}}
				}
				plan, err := grant.Decide(grant.Input{Request: request, Pools: pools, Holder: func(netip.Addr) (grant.Holder, bool) { return grant.Holder{}, false }})
				if err != nil {
					continue // no such route
				}
				granted++
				name := slices.Concat(plan.Anycast, plan.Secondary)
				if static {
					name = append(name, *plan.IPv4.Static)
				}
				i := slices.IndexFunc(pools, func(p config.Pool) bool { return p.Name == name[0].Pool })
				got := at(netip.PrefixFrom(addr, 32)).Anycast
				if static {
					got = at(netip.PrefixFrom(addr, 32)).Static
				}
				if !reflect.DeepEqual(got, pools[i].Routing.Export) {
					t.Fatalf("%s, static %v, is granted by pool %s of %+v, and has %+v of %+v", addr, static, name[0].Pool, pools, got, of)
				}
			}
		}
	}
	if granted < 1000 {
		t.Errorf("only %d addresses were granted", granted)
	}
}
