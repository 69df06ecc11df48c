package bird

import (
	"slices"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// poolsWithAttributes are a pool with them, and one without that was carved out of it.
const poolsWithAttributes = `
---
metadata: {name: wide}
spec:
  cidrs: ["2001:db8:a::/48", 203.0.113.0/24, "2001:db8:100::/48"]
  uses: [static, anycast, service]
  namespaceSelector: {}
  routing: {communities: ["64512:7"], largeCommunities: ["4200000001:1:7"], localPreference: 300, med: 7, prepend: 1}
---
metadata: {name: carved}
spec: {cidrs: ["2001:db8:a:b::/64", 203.0.113.128/26], uses: [static, service], namespaceSelector: {}}
`

// announceHosts makes routes to anycast and static addresses, and to those of Services, alone
// and aggregated, as the agent does.
func announceHosts(node *routingtest.NS) {
	node.IP("-6 route add 2001:db8:a::a/128 dev pod proto 85 metric 512")
	node.IP("route add 203.0.113.7/32 dev pod proto 85 metric 768")
	node.IP("-6 route add 2001:db8:a:b::b/128 dev pod proto 85 metric 768")
	for _, prefix := range []string{"2001:db8:a::80/128", "2001:db8:a::/48", "2001:db8:a:b::80/128", "2001:db8:a:b::/64"} {
		node.IP("-6 route add " + prefix + " dev pod proto 85 metric 640")
	}
	for _, prefix := range []string{"203.0.113.80/32", "203.0.113.0/24", "203.0.113.180/32", "203.0.113.128/26"} {
		node.IP("route add " + prefix + " dev pod proto 85 metric 640")
	}
}

// checkPools: the routes to addresses of a pool have its attributes, whoever has them, and a
// pool that is announced as a whole has its own. The summaries have the peer's, though the
// pool is around one of them.
func checkPools(t *testing.T, p play) {
	routingtest.Connect(p.node, "pod", routingtest.NewNS(t, "pod"), "eth0")
	announceHosts(p.node)
	for _, prefix := range []string{"2001:db8:a::a/128", "203.0.113.7/32", "2001:db8:a::80/128", "2001:db8:a::/48", "203.0.113.80/32", "203.0.113.0/24"} {
		routingtest.WantRoute(t, p.router, prefix, func(p routingtest.Path) error {
			return want(p, slices.Equal(p.ASPath, []uint32{nodeAS, nodeAS}) && p.MED == 7 &&
				slices.Equal(p.Communities, []string{"64512:100", "64512:7"}) && slices.Equal(p.Large, []string{"4200000001:1:7"}))
		})
	}
	for _, prefix := range []string{"2001:db8:a:b::b/128", "2001:db8:a:b::80/128", "2001:db8:a:b::/64", "203.0.113.180/32", "203.0.113.128/26", "2001:db8:100:1::/64", "10.244.1.0/24"} {
		routingtest.WantRoute(t, p.router, prefix, func(p routingtest.Path) error {
			return want(p, slices.Equal(p.ASPath, []uint32{nodeAS, nodeAS, nodeAS, nodeAS}) && p.MED == 50 &&
				slices.Equal(p.Communities, []string{"64512:100"}) && len(p.Large) == 0)
		})
	}
}

func checkPoolsInternally(t *testing.T, p play) {
	routingtest.Connect(p.node, "pod", routingtest.NewNS(t, "pod"), "eth0")
	announceHosts(p.node)
	for prefix, pref := range map[string]uint32{"2001:db8:a::a/128": 300, "2001:db8:a::80/128": 300, "2001:db8:a::/48": 300, "2001:db8:a:b::b/128": 200, "2001:db8:a:b::80/128": 200, "2001:db8:100:1::/64": 200} {
		routingtest.WantRoute(t, p.router, prefix, func(p routingtest.Path) error {
			return want(p, p.LocalPref == pref)
		})
	}
}

// TestPoolsReload changes a pool while its addresses are announced: the router
// hears of it, over the session that stands.
func TestPoolsReload(t *testing.T) {
	t.Parallel()
	node, tor := pair(t)
	router, err := routingtest.StartBIRDRouter(tor, external)
	if err != nil {
		t.Fatal(err)
	}
	const peers = `
    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512, export: {communities: ["64512:100"]}}]`
	b := startNode(t, node, nodeWith(t, peers+poolsWithAttributes))
	announceHosts(node)
	established(t, b, "peer_tor")
	since := b.Protocol("peer_tor").Since
	for _, change := range []struct {
		pools string
		want  []string
	}{
		{poolsWithAttributes, []string{"64512:100", "64512:7"}},
		{strings.Replace(poolsWithAttributes, "64512:7", "64512:8", 1), []string{"64512:100", "64512:8"}},
		{"", []string{"64512:100"}},
		{poolsWithAttributes, []string{"64512:100", "64512:7"}},
	} {
		reconfigure(t, node, b, nodeWith(t, peers+change.pools))
		routingtest.WantRoute(t, router, "2001:db8:a::a/128", func(p routingtest.Path) error {
			return want(p, slices.Equal(p.Communities, change.want))
		})
		if p := b.Protocol("peer_tor"); p.BGP.State != "Established" || p.Since.Sub(since).Abs() >= jitter {
			t.Errorf("the session was reset: %+v", p)
		}
	}
}
