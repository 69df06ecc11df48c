package bird

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// TestReload changes one peer's options one after the other. The other peer's
// session and routes stay untouched by each; which of them reset the peer's own
// session is what docs/routing.md says.
func TestReload(t *testing.T) {
	t.Parallel()
	node, left := pair(t)
	right := routingtest.NewNS(t, "right")
	routingtest.Connect(node, "eth1", right, "eth0")
	node.IP("addr add 2001:db8:0:2::11/64 dev eth1 nodad")
	right.IP("addr add 2001:db8:0:2::1/64 dev eth0 nodad")
	node.IP("-6 route add unreachable 2001:db8:100:1::/64 proto 85 metric 512")

	config := external
	config.Announce = prefixes(3)
	if _, err := routingtest.StartBIRDRouter(left, config); err != nil {
		t.Fatal(err)
	}
	config.LocalAS, config.Neighbor = 64513, netip.MustParseAddr("2001:db8:0:2::11")
	if _, err := routingtest.StartBIRDRouter(right, config); err != nil {
		t.Fatal(err)
	}
	conf := func(bgp, peer string) []byte {
		return nodeWith(t, bgp+`
    peers:
      - {name: left, address: "2001:db8:0:1::1", remoteAS: 64512`+peer+`}
      - {name: right, address: "2001:db8:0:2::1", remoteAS: 64513, import: {policy: default},
         bfd: {transmitMilliseconds: 1000, receiveMilliseconds: 1000}} # not so quick that a busy machine ends it`)
	}
	b := startNode(t, node, conf("", ""))
	established(t, b, "peer_left")
	established(t, b, "peer_right")
	summary := map[string]string{"2001:db8:100:1::/64": "2001:db8:0:2::11"}
	wantRoutes(t, right, summary)
	moved := right.Monitor("route")
	since := b.Protocol("peer_right").Since

	resets := 0
	for _, change := range []struct {
		bgp, peer string
		resets    bool
	}{
		{peer: `, export: {communities: ["64512:100"]}`},
		{peer: `, export: {med: 10, prepend: 2, largeCommunities: ["1:2:3"]}`},
		{peer: `, gracefulShutdown: true`},
		{peer: `, import: {policy: all}`},
		{peer: `, import: {policy: prefixes, prefixes: [{prefix: "2001:db8:200::/48", le: 64}]}`},
		{peer: `, import: {policy: all, maxPrefixes: 100}`},
		{peer: `, import: {policy: all, maxPrefixes: 100, maxPrefixesAction: warn}`},
		{peer: ``, bgp: "    multipath: 2\n"},
		{peer: ``, bgp: "    sourceAddresses: {ipv6: \"2001:db8:0:1::11\"}\n"},
		{peer: `, bfd: {}`},
		{peer: `, bfd: {receiveMilliseconds: 200}`},
		{peer: ``},
		{peer: `, timers: {holdSeconds: 12}`, resets: true},
		{peer: `, gracefulRestart: {mode: aware}`, resets: true},
		{peer: `, gracefulRestart: {longLivedStaleSeconds: 60}`, resets: true},
		{peer: `, addPaths: both`, resets: true},
		{peer: `, allowASIn: 1, import: {policy: all}`, resets: true},
		{peer: `, families: [ipv6]`, resets: true},
		{peer: `, families: [ipv6], disabled: true`, resets: true},
		{peer: ``}, // comes up again
	} {
		reconfigure(t, node, b, conf(change.bgp, change.peer))
		if change.resets {
			resets++
		}
		routingtest.Eventually(t, 15*time.Second, func() error {
			p, disabled := b.Protocol("peer_left"), strings.Contains(change.peer, "disabled")
			got := strings.Count(b.Log(), "peer_left: Shutting down")
			if got != resets || disabled != (p.State == "down") || !disabled && p.BGP.State != "Established" {
				return fmt.Errorf("%s%s: %d resets up to here, want %d, and %+v", change.bgp, change.peer, got, resets, p)
			}
			return nil
		})
		if p := b.Protocol("peer_right"); p.BGP.State != "Established" || p.Since.Sub(since).Abs() >= jitter {
			t.Errorf("%s%s: the other session was reset: %+v", change.bgp, change.peer, p)
		}
	}
	if log := b.Log(); strings.Contains(log, "Restarting protocol kernel") {
		t.Errorf("a kernel protocol was restarted:\n%s", log)
	}
	wantRoutes(t, right, summary)
	if s := moved(); strings.Contains(s, fmt.Sprint(netip.MustParsePrefix("2001:db8:100:1::/64"))) {
		t.Errorf("the other router's routes moved:\n%s", s)
	}
}
