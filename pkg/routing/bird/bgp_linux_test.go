package bird

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// TestMultihop: a router behind another has the node's routes. Of its own the node
// takes those with a next hop on a link, and installs no unreachable route for others.
func TestMultihop(t *testing.T) {
	t.Parallel()
	node, tor := pair(t)
	far := routingtest.NewNS(t, "far")
	routingtest.Connect(tor, "eth1", far, "eth0")
	tor.IP("addr add 2001:db8:0:9::1/64 dev eth1 nodad")
	far.IP("addr add 2001:db8:0:9::2/64 dev eth0 nodad")
	tor.Sysctl("ipv6/conf/all/forwarding", "1")
	node.IP("-6 route add default via 2001:db8:0:1::1 metric 1024")
	far.IP("-6 route add default via 2001:db8:0:9::1")
	node.IP("-6 route add unreachable 2001:db8:100:1::/64 proto 85 metric 512")

	const onLink, offLink = "2001:db8:200::/48", "2001:db8:300::/48"
	router, err := routingtest.StartBIRDRouter(far, routingtest.RouterConfig{
		LocalAS: routerAS, RemoteAS: nodeAS, Neighbor: nodeAddr, Multihop: 2, Local: netip.MustParseAddr("2001:db8:0:9::2"), BFD: true, GTSM: true,
		Announce:    []netip.Prefix{netip.MustParsePrefix(offLink)},
		AnnounceVia: map[string]string{onLink: "2001:db8:0:1::1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	startNode(t, node, nodeWith(t, `
    peers: [{name: far, address: "2001:db8:0:9::2", remoteAS: 64512, multihop: 2, ttlSecurity: true, sourceAddress: "2001:db8:0:1::11", bfd: {}, import: {policy: all}}]`))
	routingtest.Established(t, router)
	routingtest.WantRoute(t, router, "2001:db8:100:1::/64", func(p routingtest.Path) error {
		return want(p, p.NextHop == "2001:db8:0:1::11")
	})
	routingtest.Eventually(t, 10*time.Second, func() error {
		if !router.BFD() {
			return fmt.Errorf("BFD is not up")
		}
		return nil
	})
	wantRoutes(t, node, map[string]string{onLink: "2001:db8:0:1::1"})
	if out := node.IP("-6 route get 2001:db8:300::1"); !strings.Contains(out, "via 2001:db8:0:1::1") {
		t.Errorf("the node's own default route no longer holds: %s", out)
	}
}

// TestSparedRouter: of two routers, the one that announces its shutdown gets no
// more traffic (RFC 8326).
func TestSparedRouter(t *testing.T) {
	t.Parallel()
	node, left := pair(t)
	right := routingtest.NewNS(t, "right")
	routingtest.Connect(node, "eth1", right, "eth0")
	node.IP("addr add 2001:db8:0:2::11/64 dev eth1 nodad")
	right.IP("addr add 2001:db8:0:2::1/64 dev eth0 nodad")
	config := external
	config.Announce = prefixes(1)
	leftConfig := config
	leftConfig.Community = "65535:0"
	if _, err := routingtest.StartBIRDRouter(left, leftConfig); err != nil {
		t.Fatal(err)
	}
	config.LocalAS, config.Neighbor = 64513, netip.MustParseAddr("2001:db8:0:2::11")
	if _, err := routingtest.StartBIRDRouter(right, config); err != nil {
		t.Fatal(err)
	}
	b := startNode(t, node, nodeWith(t, `
    peers:
      - {name: left, address: "2001:db8:0:1::1", remoteAS: 64512, import: {policy: all}}
      - {name: right, address: "2001:db8:0:2::1", remoteAS: 64513, import: {policy: all}}`))
	established(t, b, "peer_left")
	established(t, b, "peer_right")
	wantRoutes(t, node, map[string]string{prefixes(1)[0].String(): "2001:db8:0:2::1"})
}

// TestCapabilities: what is only said in a session's opening reaches the router.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	node, tor := pair(t)
	router, err := routingtest.StartBIRDRouter(tor, external)
	if err != nil {
		t.Fatal(err)
	}
	startNode(t, node, nodeWith(t, `
    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512, addPaths: both, timers: {holdSeconds: 30}, gracefulRestart: {restartSeconds: 77, longLivedStaleSeconds: 7200}}]`), "-R")
	routingtest.Established(t, router)
	out := strings.Join(router.(interface{ Show(string) []string }).Show("show protocols all node"), "\n")
	_, neighbor, _ := strings.Cut(out, "Neighbor capabilities")
	for _, want := range []string{"Restart time: 77", "AF supported: ipv4 ipv6", "LL stale time: 7200", "ADD-PATH", "RX: ipv4 ipv6", "TX: ipv4 ipv6", "/30"} {
		if !strings.Contains(neighbor, want) {
			t.Errorf("want %q in what the router knows of the node:\n%s", want, neighbor)
		}
	}
}

// TestManyRoutes lets a thousand pods and a hundred anycast addresses come and go:
// the router has the addresses at once, the session stands and nothing is
// reconfigured.
func TestManyRoutes(t *testing.T) {
	t.Parallel()
	node, tor := pair(t)
	if _, err := routingtest.StartBIRDRouter(tor, external); err != nil {
		t.Fatal(err)
	}
	b := startNode(t, node, nodeWith(t, `
    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512}]`))
	established(t, b, "peer_tor")
	since := b.Protocol("peer_tor").Since
	batch := func(verb string) {
		var lines strings.Builder
		for i := range 1000 {
			fmt.Fprintf(&lines, "route %s 2001:db8:100:1::%x/128 dev pod proto 85 metric 1024\n", verb, i+1)
		}
		for i := range 100 {
			fmt.Fprintf(&lines, "route %s 2001:db8:a::%x/128 dev pod proto 85 metric 512\n", verb, i+1)
		}
		node.IPBatch(lines.String())
	}
	for range 2 {
		batch("add")
		wantCount(t, tor, 100)
		batch("del")
		wantCount(t, tor, 0)
	}
	if p := b.Protocol("peer_tor"); p.BGP.State != "Established" || p.Since.Sub(since).Abs() >= jitter {
		t.Errorf("the session was reset: %+v", p)
	}
	if log := b.Log(); strings.Contains(log, "Reconfigur") {
		t.Errorf("BIRD was reconfigured:\n%s", log)
	}
}

func wantCount(t *testing.T, ns *routingtest.NS, want int) {
	t.Helper()
	start := time.Now()
	routingtest.Eventually(t, 10*time.Second, func() error {
		if got := len(ns.Routes("proto bird")); got != want {
			return fmt.Errorf("the router's kernel has %d routes, want %d", got, want)
		}
		return nil
	})
	t.Logf("%d routes at the router after %s", want, time.Since(start).Round(10*time.Millisecond))
}
