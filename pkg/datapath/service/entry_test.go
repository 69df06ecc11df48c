package service

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestPlan(t *testing.T) {
	t.Parallel()
	a, b := netip.MustParsePrefix("203.0.113.7/32"), netip.MustParsePrefix("2001:db8:5::7/128")
	announced, local, nothing := Entry{Announced: true, Local: true}, Entry{Local: true}, Entry{}
	for _, tc := range []struct {
		want, have map[netip.Prefix]Entry
		plan       string
	}{
		{map[netip.Prefix]Entry{a: announced}, nil, "[add local 203.0.113.7/32 announce 203.0.113.7/32]"},
		{map[netip.Prefix]Entry{a: local}, map[netip.Prefix]Entry{a: announced}, "[withdraw 203.0.113.7/32]"},
		{map[netip.Prefix]Entry{a: nothing}, map[netip.Prefix]Entry{a: announced}, "[withdraw 203.0.113.7/32 delete local 203.0.113.7/32]"},
		{map[netip.Prefix]Entry{a: announced, b: local}, map[netip.Prefix]Entry{b: announced},
			"[withdraw 2001:db8:5::7/128 add local 203.0.113.7/32 announce 203.0.113.7/32]"},
		{map[netip.Prefix]Entry{a: announced}, map[netip.Prefix]Entry{a: announced, b: announced}, "[]"}, // b is not asked about
	} {
		if got := fmt.Sprint(Plan(tc.want, tc.have)); got != tc.plan {
			t.Errorf("from %v to %v: %s, want %s", tc.have, tc.want, got, tc.plan)
		}
	}
}
