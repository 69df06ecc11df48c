package wiring

import (
	"net/netip"
	"slices"
	"testing"

	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

func TestPlanNode(t *testing.T) {
	t.Parallel()
	prefixes := func(ss ...string) (ps []netip.Prefix) {
		for _, s := range ss {
			ps = append(ps, netip.MustParsePrefix(s))
		}
		return ps
	}
	ready := NodeActual{Forwarding4: true, Forwarding6: true, HasIPv6: true}
	with := func(f func(*NodeActual)) NodeActual {
		have := ready
		f(&have)
		return have
	}
	for name, tc := range map[string]struct {
		want NodeState
		have NodeActual
		plan []string
	}{
		"nothing to do": {
			NodeState{prefixes("2001:db8:1::/64")}, with(func(h *NodeActual) { h.Summaries = prefixes("2001:db8:1::/64") }), nil,
		},
		"a new node": {
			NodeState{prefixes("2001:db8:1::/64", "10.1.0.0/24")}, NodeActual{HasIPv6: true}, []string{
				"set net/ipv6/conf/all/forwarding to 1",
				"set net/ipv4/ip_forward to 1",
				"add route unreachable 2001:db8:1::/64",
				"add route unreachable 10.1.0.0/24",
			},
		},
		"router advertisements are kept before the node forwards": {
			NodeState{}, NodeActual{HasIPv6: true, Forwarding4: true, Advertised: []AdvertisedLink{{"eth0", 1}, {"eth1", 0}, {"eth2", 2}}}, []string{
				"set net/ipv6/conf/eth0/accept_ra to 2",
				"set net/ipv6/conf/all/forwarding to 1",
			},
		},
		"and when it does already": {
			NodeState{}, with(func(h *NodeActual) { h.Advertised = []AdvertisedLink{{"eth0.100", 1}} }), []string{
				"set net/ipv6/conf/eth0.100/accept_ra to 2",
			},
		},
		"a kernel without IPv6": {
			NodeState{prefixes("10.1.0.0/24")}, NodeActual{}, []string{
				"set net/ipv4/ip_forward to 1",
				"add route unreachable 10.1.0.0/24",
			},
		},
		"new summaries come before old ones go": {
			NodeState{prefixes("10.2.0.0/24")}, with(func(h *NodeActual) { h.Summaries = prefixes("10.1.0.0/24") }), []string{
				"add route unreachable 10.2.0.0/24",
				"delete route unreachable 10.1.0.0/24",
			},
		},
		"what is in the way goes first": {
			NodeState{prefixes("10.2.0.0/24")}, with(func(h *NodeActual) {
				h.Strays = []rtnl.Route{{Dst: netip.MustParsePrefix("10.2.0.0/24"), Metric: 512, Type: rtnl.Blackhole}}
			}), []string{
				"delete route blackhole 10.2.0.0/24",
				"add route unreachable 10.2.0.0/24",
			},
		},
		"host bits do not matter": {
			NodeState{prefixes("10.1.0.7/24")}, with(func(h *NodeActual) { h.Summaries = prefixes("10.1.0.0/24") }), nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, c := range PlanNode(tc.want, tc.have) {
				got = append(got, c.String())
			}
			if !slices.Equal(got, tc.plan) {
				t.Errorf("plan:\n%q\nwant:\n%q", got, tc.plan)
			}
		})
	}
}
