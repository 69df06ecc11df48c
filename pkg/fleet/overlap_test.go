package fleet

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestOverlaps(t *testing.T) {
	cidrs := func(s ...string) (ps []netip.Prefix) {
		for _, c := range s {
			ps = append(ps, netip.MustParsePrefix(c))
		}
		return ps
	}
	own := cidrs("2001:db8:100:7::/64", "10.244.7.0/24")
	for _, tc := range []struct {
		name string
		all  map[string][]netip.Prefix
		want string
	}{
		{"alone", map[string][]netip.Prefix{"node7": own}, "[]"},
		{"beside", map[string][]netip.Prefix{"node7": own, "node8": cidrs("2001:db8:100:8::/64", "10.244.8.0/24")}, "[]"},
		{"no NodeConfig", nil, "[]"},
		{"within, around and the same", map[string][]netip.Prefix{
			"node9": cidrs("10.244.7.128/25", "2001:db8:100:7::/64"), "node7": own, "node8": cidrs("10.244.0.0/16"),
		}, "[{2001:db8:100:7::/64 2001:db8:100:7::/64 node9} {10.244.7.0/24 10.244.0.0/16 node8} {10.244.7.0/24 10.244.7.128/25 node9}]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := "["
			for i, o := range Overlaps("node7", own, tc.all) {
				if i > 0 {
					got += " "
				}
				got += fmt.Sprintf("{%s %s %s}", o.Own, o.Other, o.Node)
			}
			if got += "]"; got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}
