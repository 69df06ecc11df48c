package routing_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"flock.fritzlab.net/flock/pkg/annotation"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/grant"
	"flock.fritzlab.net/flock/pkg/routing"
)

func pool(name string, static, anycast bool, community uint16, cidrs ...string) config.Pool {
	p := config.Pool{Name: name, Static: static, Anycast: anycast, Namespaces: labels.Everything()}
	for _, c := range cidrs {
		p.CIDRs = append(p.CIDRs, netip.MustParsePrefix(c))
	}
	if community != 0 {
		p.Routing.Export.Communities = []config.Community{{High: 64512, Low: community}}
	}
	return p
}

func TestPoolsOf(t *testing.T) {
	const both, static, anycast = 3, 1, 2
	of := func(name string, uses int, community uint16, cidrs ...string) config.Pool {
		return pool(name, uses&static != 0, uses&anycast != 0, community, cidrs...)
	}
	for _, tc := range []struct {
		name  string
		pools []config.Pool
		want  []string // prefix, community of static and of anycast routes
	}{
		{"none", nil, nil},
		{"without attributes", []config.Pool{of("a", both, 0, "2001:db8::/32"), of("b", both, 0, "2001:db8:b::/48")}, nil},
		{"both families, the longest first", []config.Pool{of("a", both, 1, "2001:db8::/32", "203.0.113.7/32"), of("b", static, 2, "203.0.113.0/24", "2001:db8:b::/48")}, []string{
			"2001:db8:b::/48 2 2", "203.0.113.7/32 1 1", "2001:db8::/32 1 1", "203.0.113.0/24 2 2",
		}},
		{"carved out without attributes", []config.Pool{of("a", both, 1, "2001:db8::/32"), of("b", both, 0, "2001:db8:b::/48", "2001:db9:b::/48")}, []string{
			"2001:db8:b::/48 0 0", "2001:db8::/32 1 1",
		}},
		{"carved out with the same", []config.Pool{of("a", both, 1, "2001:db8::/32"), of("b", anycast, 1, "2001:db8:b::/48"), of("c", both, 0, "2001:db8:b:c::/64")}, []string{
			"2001:db8:b:c::/64 0 0", "2001:db8::/32 1 1",
		}},
		{"the same prefix: the first by name", []config.Pool{of("b", both, 2, "2001:db8::/32"), of("a", both, 1, "2001:db8::/32")}, []string{"2001:db8::/32 1 1"}},
		{"the same prefix: by use", []config.Pool{of("a", anycast, 1, "2001:db8::/32"), of("b", static, 2, "2001:db8::/32"), of("c", both, 3, "2001:db8::/32")}, []string{"2001:db8::/32 2 1"}},
		{"the same prefix: the first has none", []config.Pool{of("a", both, 0, "2001:db8::/32"), of("b", both, 2, "2001:db8::/32")}, nil},
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
				got = append(got, fmt.Sprintf("%s %d %d", r.Within, low(r.Static), low(r.Anycast)))
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
			uses := 1 + random.IntN(3)
			cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(random.IntN(16))}), 26+random.IntN(7)).Masked()
			pools = append(pools, pool(fmt.Sprint(i), uses&1 != 0, uses&2 != 0, uint16(random.IntN(3)), cidr.String()))
		}
		random.Shuffle(len(pools), func(i, j int) { pools[i], pools[j] = pools[j], pools[i] })
		of := routing.PoolsOf(pools)
		for last := range byte(16) {
			addr := netip.AddrFrom4([4]byte{203, 0, 113, last})
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
				name := slices.Concat(plan.Anycast, plan.Further)
				if static {
					name = append(name, *plan.IPv4.Static)
				}
				i := slices.IndexFunc(pools, func(p config.Pool) bool { return p.Name == name[0].Pool })
				var got config.Export
				if j := slices.IndexFunc(of, func(r routing.PoolRoutes) bool { return r.Within.Contains(addr) }); j >= 0 && static {
					got = of[j].Static
				} else if j >= 0 {
					got = of[j].Anycast
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
