package bird

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// nodeWith makes an Intent from the part of a NodeConfig below bgp.
func nodeWith(t testing.TB, bgp string) []byte {
	t.Helper()
	in := intentOf(t, []byte(`
spec:
  podCIDRs: {ipv6: ["2001:db8:100:1::/64"], ipv4: [10.244.1.0/24]}
  bgp:
    localAS: 64601
    routerID: 192.0.2.11
`+bgp))
	return Render(in)
}

// startNode starts BIRD on the node with a rendered configuration.
func startNode(t *testing.T, node *routingtest.NS, conf []byte, flags ...string) *routingtest.BIRD {
	t.Helper()
	file := filepath.Join(node.Dir, confName)
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	return routingtest.StartBIRD(node, file, flags...)
}

// reconfigure makes a running BIRD of the node load conf.
func reconfigure(t *testing.T, node *routingtest.NS, b *routingtest.BIRD, conf []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(node.Dir, confName), conf, 0o600); err != nil {
		t.Fatal(err)
	}
	b.Configure()
}

// poison is what a router announces in TestImportPoisoning: prefixes that the
// node may take under some policy, and prefixes that it must never take.
var (
	harmless = []string{
		"::/0", "0.0.0.0/0",
		"2001:db8:200::/48", "198.51.100.0/24", // like any
		"2001:db8:100:2::/64", "10.244.2.0/24", // another node's pods
		"2001:db8:100:2::7/128", "10.244.2.7/32", // one of them
		"2001:db8:100::/48", "10.0.0.0/8", // what covers the node's own
		"2001:db8::/32", "192.0.0.0/16", // what covers its link
	}
	poison = []string{
		"2001:db8:100:1::/64", "10.244.1.0/24", // the node's pods
		"2001:db8:100:1::7/128", "10.244.1.7/32", // one of them
		"2001:db8:100:1::/65", "10.244.1.128/25",
		"2001:db8:0:1::/64", "192.0.2.0/24", // the node's link
		"2001:db8:0:1::/65", "192.0.2.0/25", // halves of it
		"2001:db8:0:1:8000::/65", "192.0.2.128/25",
		"2001:db8:0:1::12/128", "192.0.2.12/32", // a neighbor on it
		"2001:db8:0:1::11/128", "192.0.2.11/32", // the node
		"fe80::/10", "fe80::/64", "fe80::1/128", "169.254.0.0/16", "169.254.1.1/32",
		"ff00::/8", "ff02::1/128", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
		"::/8", "::1/128", "::ffff:0:0/96", "127.0.0.0/8", "127.0.0.53/32", "0.0.0.0/8", "fec0::/10",
	}
	// badNextHop is announced with next hops that are on no link.
	badNextHop = map[string]string{"2001:db8:dead::/48": "2001:db8:ffff::1", "2001:db8:beef::/48": "2001:db8:0:1::11"}
)

// TestImportPoisoning: whatever a router announces, the node's kernel has what
// the policy says and nothing else.
func TestImportPoisoning(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		policy string
		want   []string
	}{
		"none":    {`{policy: none}`, nil},
		"default": {`{policy: default}`, []string{"::/0", "0.0.0.0/0"}},
		"all":     {`{policy: all}`, harmless},
		"prefixes": {
			`{policy: prefixes, prefixes: [{prefix: "2001:db8:100::/40", le: 64}, {prefix: 10.0.0.0/8, ge: 32}, {prefix: "2001:db8:0:1::/64", le: 128}, {prefix: 192.0.2.0/24, le: 32}, {prefix: "fe80::/10"}, {prefix: "2001:db8:dead::/48"}]}`,
			[]string{"2001:db8:100:2::/64", "2001:db8:100::/48", "10.244.2.7/32"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node, tor := pair(t)
			config := external
			for _, p := range slices.Concat(harmless, poison) {
				config.Announce = append(config.Announce, netip.MustParsePrefix(p))
			}
			config.AnnounceVia = badNextHop
			router, err := routingtest.StartGoBGP(tor, config)
			if err != nil {
				t.Fatal(err)
			}
			b := startNode(t, node, nodeWith(t, `
    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512, import: `+test.policy+`}]`))
			routingtest.Established(t, router)

			// Everything has arrived when as many announcements were counted; those
			// with a bad next hop BIRD takes for withdrawals.
			routingtest.Eventually(t, 20*time.Second, func() error {
				received := 0
				for _, c := range b.Protocol("peer_tor").Channels {
					received += c.Received
				}
				if all := len(harmless) + len(poison); received < all {
					return fmt.Errorf("the node has received %d of %d announcements", received, all)
				}
				return nil
			})
			want := slices.Sorted(slices.Values(test.want))
			routingtest.Eventually(t, 5*time.Second, func() error {
				var got []string
				for _, r := range node.Routes("proto bird") {
					got = append(got, r.Prefix())
					if r.Metric != kernelMetric || r.Gateway+r.Via.Host != routerAddr.String() {
						return fmt.Errorf("want metric %d and the router as next hop: %+v", kernelMetric, r)
					}
				}
				slices.Sort(got)
				if !slices.Equal(got, want) {
					return fmt.Errorf("the kernel has\n%v\nwant\n%v", got, want)
				}
				return nil
			})
		})
	}
}

// TestTwoRouters: equal routes are used together, the node sends from the
// address that is configured, an address that the node announces stays its own, and
// a router that asks to be spared is.
func TestTwoRouters(t *testing.T) {
	t.Parallel()
	node, left := pair(t)
	right := routingtest.NewNS(t, "right")
	routingtest.Connect(node, "eth1", right, "eth0")
	node.IP("addr add 2001:db8:0:2::11/64 dev eth1 nodad")
	right.IP("addr add 2001:db8:0:2::1/64 dev eth0 nodad")
	for _, a := range []string{"2001:db8:ffff::11/128", "203.0.113.11/32"} {
		node.IP("addr add " + a + " dev lo")
	}
	anycast := netip.MustParsePrefix("2001:db8:a::a/128")
	node.IP("-6 route add " + anycast.String() + " dev pod proto 85 metric 512")

	config := external
	config.Announce = []netip.Prefix{netip.MustParsePrefix("::/0"), netip.MustParsePrefix("0.0.0.0/0"), anycast}
	config.LocalAS = 64512
	leftRouter, err := routingtest.StartBIRDRouter(left, config)
	if err != nil {
		t.Fatal(err)
	}
	config.LocalAS, config.Neighbor = 64513, netip.MustParseAddr("2001:db8:0:2::11")
	rightRouter, err := routingtest.StartBIRDRouter(right, config)
	if err != nil {
		t.Fatal(err)
	}
	const peers = `
    multipath: %d
    sourceAddresses: {ipv6: "2001:db8:ffff::11", ipv4: 203.0.113.11}
    peers:
      - {name: left, address: "2001:db8:0:1::1", remoteAS: 64512, import: {policy: all}}
      - {name: right, address: "2001:db8:0:2::1", peerType: external, import: {policy: all}}`
	b := startNode(t, node, nodeWith(t, fmt.Sprintf(peers, 16)))
	for _, r := range []routingtest.Router{leftRouter, rightRouter} {
		routingtest.Established(t, r)
		routingtest.WantRoute(t, r, anycast.String(), func(routingtest.Path) error { return nil })
	}
	defaults := func(paths int) func() error {
		return func() error {
			rs := node.Routes("proto bird")
			if len(rs) != 2 {
				return fmt.Errorf("want the two defaults and no other route from the routers: %+v", rs)
			}
			for i, source := range []string{"2001:db8:ffff::11", "203.0.113.11"} {
				if got := max(len(rs[i].NextHops), 1); rs[i].Dst != "default" || got != paths || rs[i].PrefSrc != source {
					return fmt.Errorf("want a default over %d paths from %s: %+v", paths, source, rs[i])
				}
			}
			return nil
		}
	}
	routingtest.Eventually(t, 10*time.Second, defaults(2))
	if out := node.IP("route get 2001:db8:9::9"); !strings.Contains(out, "src 2001:db8:ffff::11") {
		t.Errorf("the node sends from another address: %s", out)
	}
	if out := node.IP("-6 route get " + anycast.Addr().String()); !strings.Contains(out, "dev pod") {
		t.Errorf("the anycast address has left the node: %s", out)
	}

	reconfigure(t, node, b, nodeWith(t, fmt.Sprintf(peers, 1)))
	routingtest.Eventually(t, 10*time.Second, defaults(1))
	if log := b.Log(); strings.Count(log, "State changed to up") != 2 || strings.Contains(log, "Restarting") {
		t.Errorf("multipath has restarted a protocol:\n%s", log)
	}
}

// TestAllowASIn: the node takes routes whose path has its own AS as often as allowed, and
// no others. So the nodes of a cluster with one AS can learn each other's prefixes.
func TestAllowASIn(t *testing.T) {
	t.Parallel()
	node, tor := pair(t)
	// Own is how often the node's AS stands in the path of the route.
	own := []string{"2001:db8:200:0::/64", "2001:db8:200:1::/64", "2001:db8:200:2::/64", "2001:db8:200:3::/64"}
	conf := `
log stderr all;
router id 192.0.2.1;
protocol device {}
protocol static {
	ipv6;
	route 2001:db8:200:0::/64 blackhole;
	route 2001:db8:200:1::/64 blackhole { bgp_path.prepend(64601); };
	route 2001:db8:200:2::/64 blackhole { bgp_path.prepend(64601); bgp_path.prepend(64601); };
	route 2001:db8:200:3::/64 blackhole { bgp_path.prepend(64601); bgp_path.prepend(64602); bgp_path.prepend(64601); bgp_path.prepend(64601); };
}
protocol bgp node {
	local as 64512; neighbor 2001:db8:0:1::11 as 64601;
	connect delay time 1; connect retry time 1; error wait time 1, 1;
	ipv6 { import all; export where source = RTS_STATIC; };
	ipv4 { import all; export none; extended next hop; };
}
`
	routingtest.StartBIRDWith(tor, conf)
	peer := func(more string) []byte {
		return nodeWith(t, `
    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512, import: {policy: all}`+more+`}]`)
	}
	b := startNode(t, node, peer(""))
	for _, allowed := range []int{0, 1, 2, 3} {
		if allowed > 0 {
			reconfigure(t, node, b, peer(fmt.Sprintf(", allowASIn: %d", allowed)))
		}
		want := map[string]string{}
		for _, p := range own[:allowed+1] {
			want[netip.MustParsePrefix(p).Masked().String()] = "2001:db8:0:1::1"
		}
		wantRoutes(t, node, want)
	}
}
