package bird

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/birdc"
	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

const (
	nodeAS   = 64601
	routerAS = 64512
)

var (
	nodeAddr   = netip.MustParseAddr("2001:db8:0:1::11")
	routerAddr = netip.MustParseAddr("2001:db8:0:1::1")
)

// cell is an option, set at the node and at its router.
type cell struct {
	// bgp and peer are YAML: fields of spec.bgp, and of the peer.
	bgp, peer string
	// pools are AddressPools, YAML documents.
	pools string
	// router is what the option means there.
	router routingtest.RouterConfig
	// missing says which implementations do not have the option, in the words of
	// their error.
	missing map[string]string
	// unreliable says of which implementations the option cannot be relied upon,
	// and why: what they do is not a matter of flock.
	unreliable map[string]string
	// check looks at a session that is up, with both summaries announced.
	check func(t *testing.T, p play)
	// down: the session must not come up.
	down bool
}

// play is a node and a router that talk.
type play struct {
	node, tor *routingtest.NS
	bird      *routingtest.BIRD
	conf      []byte
	router    routingtest.Router
	make      string // the router's
}

const numbered = `address: "2001:db8:0:1::1", remoteAS: 64512`

var external = routingtest.RouterConfig{LocalAS: routerAS, RemoteAS: nodeAS, Neighbor: nodeAddr}

// with is external with one thing changed.
func with(change func(*routingtest.RouterConfig)) routingtest.RouterConfig {
	c := external
	change(&c)
	return c
}

// TestMatrix sets each option of a peer with each implementation as the router.
func TestMatrix(t *testing.T) {
	cells := map[string]cell{
		"external": {
			peer: numbered, router: external,
			check: routes(func(p routingtest.Path) error {
				return want(p, slices.Equal(p.ASPath, []uint32{nodeAS}) && p.MED <= 0 && len(p.Communities)+len(p.Large) == 0)
			}),
		},
		"internal": {
			peer:   `address: "2001:db8:0:1::1", peerType: internal, export: {localPreference: 200}`,
			router: with(func(c *routingtest.RouterConfig) { c.LocalAS = nodeAS }),
			check: routes(func(p routingtest.Path) error {
				return want(p, len(p.ASPath) == 0 && p.LocalPref == 200)
			}),
		},
		"ipv4 over ipv6": { // no interface has an IPv4 address
			peer: numbered, router: external,
			check: func(t *testing.T, p play) {
				routingtest.WantRoute(t, p.router, "10.244.1.0/24", func(path routingtest.Path) error {
					return want(path, path.NextHop == nodeAddr.String())
				})
			},
		},
		"unnumbered": {
			missing: map[string]string{"bird": "BIRD 2.0.12 as the router does not find an unnumbered neighbor by itself: give it the node's link-local address, or the node its own"},
			peer:    `interface: eth0, peerType: external`,
			router:  routingtest.RouterConfig{LocalAS: routerAS, RemoteAS: nodeAS, Interface: "eth0"},
			check:   func(*testing.T, play) {},
		},
		"link-local": {
			peer:   `address: "fe80::1", interface: eth0, remoteAS: 64512`,
			router: with(func(c *routingtest.RouterConfig) { c.Neighbor, c.Interface = netip.MustParseAddr("fe80::11"), "eth0" }),
			check:  func(*testing.T, play) {},
		},
		"passive": {
			peer: numbered + `, passive: true`, router: external,
			check: func(*testing.T, play) {},
		},
		"local AS, any remote AS": {
			peer:   `address: "2001:db8:0:1::1", peerType: external, localAS: 4200000001`,
			router: with(func(c *routingtest.RouterConfig) { c.RemoteAS = 4200000001 }),
			check: routes(func(p routingtest.Path) error {
				return want(p, slices.Equal(p.ASPath, []uint32{4200000001}))
			}),
		},
		"md5": {
			peer:   numbered + `, passwordSecretRef: {name: bgp, key: tor}`,
			router: with(func(c *routingtest.RouterConfig) { c.MD5 = "correct-horse-battery-staple" }),
			check:  func(*testing.T, play) {},
		},
		"md5 of another password": {
			peer:   numbered + `, passwordSecretRef: {name: bgp, key: tor}`,
			router: with(func(c *routingtest.RouterConfig) { c.MD5 = "another" }),
			down:   true,
		},
		"gtsm": {
			peer:   numbered + `, ttlSecurity: true`,
			router: with(func(c *routingtest.RouterConfig) { c.GTSM = true }),
			check:  func(*testing.T, play) {},
		},
		"bfd": {
			missing: map[string]string{"gobgp": "GoBGP 3.10 has no BFD"},
			peer:    numbered + `, bfd: {}, timers: {holdSeconds: 90}`,
			router:  with(func(c *routingtest.RouterConfig) { c.BFD = true }),
			check:   checkBFD,
		},
		"graceful restart": {
			peer:   numbered,
			router: with(func(c *routingtest.RouterConfig) { c.GracefulRestart = true }),
			check:  checkRestart,
		},
		"graceful restart and bfd": {
			missing: map[string]string{"gobgp": "GoBGP 3.10 has no BFD"},
			peer:    numbered + `, bfd: {}`,
			router:  with(func(c *routingtest.RouterConfig) { c.GracefulRestart, c.BFD = true, true }),
			check:   checkRestartWithBFD,
		},
		"unnumbered graceful restart": {
			missing:    map[string]string{"bird": "BIRD 2.0.12 as the router does not find an unnumbered neighbor by itself: give it the node's link-local address, or the node its own"},
			unreliable: map[string]string{"frr": "FRR 8.4.4 may stay in Active, without trying to connect, when an unnumbered neighbor of its restarts; clear bgp eth0 helps"},
			peer:       `interface: eth0, peerType: external`,
			router:     routingtest.RouterConfig{LocalAS: routerAS, RemoteAS: nodeAS, Interface: "eth0", GracefulRestart: true},
			check:      checkRestart,
		},
		"attributes": {
			peer:   numbered + `, export: {communities: ["64512:100", "64512:7"], largeCommunities: ["4200000001:1:100"], med: 50, prepend: 2}`,
			router: external,
			check: routes(func(p routingtest.Path) error {
				return want(p, slices.Equal(p.ASPath, []uint32{nodeAS, nodeAS, nodeAS}) && p.MED == 50 &&
					slices.Equal(p.Communities, []string{"64512:100", "64512:7"}) && slices.Equal(p.Large, []string{"4200000001:1:100"}))
			}),
		},
		"attributes of pools": {
			peer: numbered + `, export: {communities: ["64512:100"], med: 50, prepend: 3}`, pools: poolsWithAttributes,
			router: external,
			check:  checkPools,
		},
		"local preference of pools": {
			peer: `address: "2001:db8:0:1::1", peerType: internal, export: {localPreference: 200}`, pools: poolsWithAttributes,
			router: with(func(c *routingtest.RouterConfig) { c.LocalAS = nodeAS }),
			check:  checkPoolsInternally,
		},
		"graceful shutdown": {
			peer: numbered + `, gracefulShutdown: true`, router: external,
			check: routes(func(p routingtest.Path) error {
				return want(p, slices.Equal(p.Communities, []string{"65535:0"}))
			}),
		},
		"max-prefix restart": {
			peer:   numbered + `, import: {policy: all, maxPrefixes: 3, maxPrefixesAction: restart}`,
			router: with(func(c *routingtest.RouterConfig) { c.Announce = prefixes(5) }),
			check:  checkLimitRestart,
		},
		"max-prefix block": {
			peer:   numbered + `, import: {policy: all, maxPrefixes: 3}`,
			router: with(func(c *routingtest.RouterConfig) { c.Announce = prefixes(5) }),
			check:  checkLimitBlock,
		},
	}
	for name, c := range cells {
		for _, m := range routingtest.Makes {
			t.Run(name+"/"+m.Name, func(t *testing.T) {
				t.Parallel()
				if why := c.unreliable[m.Name]; why != "" {
					t.Log(why)
					return
				}
				if name == "max-prefix restart" && routingtest.BIRD3() {
					t.Log("BIRD 3 disables a session that hits the limit within 5 s of its start")
					return
				}
				c.run(t, m)
			})
		}
	}
}

func (c cell) run(t *testing.T, m routingtest.Make) {
	p := play{node: routingtest.NewNS(t, "node"), tor: routingtest.NewNS(t, m.Name), make: m.Name}
	routingtest.Connect(p.node, "eth0", p.tor, "eth0")
	p.node.IP("addr add 2001:db8:0:1::11/64 dev eth0 nodad")
	p.tor.IP("addr add 2001:db8:0:1::1/64 dev eth0 nodad")
	p.node.IP("addr add fe80::11/64 dev eth0 nodad")
	p.tor.IP("addr add fe80::1/64 dev eth0 nodad")
	p.node.IP("-6 route add unreachable 2001:db8:100:1::/64 proto 85 metric 512")
	p.node.IP("route add unreachable 10.244.1.0/24 proto 85 metric 512")

	var err error
	p.router, err = m.Start(p.tor, c.router)
	var missing routingtest.Unsupported
	if errors.As(err, &missing) {
		if c.missing[m.Name] != string(missing) {
			t.Errorf("not documented as missing: %v", missing)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", m.Name, p.router.Log())
		}
	})
	p.conf = nodeWith(t, c.bgp+"\n    peers: [{name: tor, "+c.peer+"}]"+c.pools)
	p.bird = startNode(t, p.node, p.conf, "-R")
	if c.down {
		neverUp(t, p)
		return
	}
	routingtest.Established(t, p.router)
	routingtest.WantRoute(t, p.router, "2001:db8:100:1::/64", func(routingtest.Path) error { return nil })
	routingtest.WantRoute(t, p.router, "10.244.1.0/24", func(routingtest.Path) error { return nil })
	c.check(t, p)
}

// want is an error that shows p unless ok.
func want(p routingtest.Path, ok bool) error {
	if !ok {
		return fmt.Errorf("the route is %s", p)
	}
	return nil
}

// routes checks both summaries.
func routes(check func(routingtest.Path) error) func(*testing.T, play) {
	return func(t *testing.T, p play) {
		t.Helper()
		routingtest.WantRoute(t, p.router, "2001:db8:100:1::/64", check)
		routingtest.WantRoute(t, p.router, "10.244.1.0/24", check)
	}
}

// prefixes are n that a router may announce.
func prefixes(n int) []netip.Prefix {
	var out []netip.Prefix
	for i := range n {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("2001:db8:200:%d::/64", i)))
	}
	return out
}

// neverUp watches three attempts fail.
func neverUp(t *testing.T, p play) {
	t.Helper()
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if s := p.router.State(); s == "established" {
			t.Fatal("the session came up")
		}
	}
}

// checkBFD cuts the path without taking the link down: the session ends by BFD,
// long before the hold time.
func checkBFD(t *testing.T, p play) {
	routingtest.Eventually(t, 30*time.Second, func() error {
		if !p.router.BFD() {
			return errors.New("BFD is not up")
		}
		return nil
	})
	p.tor.Sysctl("ipv6/conf/eth0/disable_ipv6", "1")
	start := time.Now()
	routingtest.Eventually(t, 20*time.Second, func() error {
		if s := p.bird.Protocol("peer_tor"); s.BGP.State == "Established" {
			return fmt.Errorf("the session still stands: %+v", s)
		}
		return nil
	})
	t.Logf("the node ended the session %s after the cut", time.Since(start).Round(10*time.Millisecond))
}

// checkRestart kills BIRD: the router keeps its routes until it is back.
func checkRestart(t *testing.T, p play) {
	p.bird.Kill()
	routingtest.Eventually(t, 30*time.Second, func() error {
		if s := p.router.State(); s == "established" {
			return errors.New("the router has not noticed")
		}
		return nil
	})
	for _, prefix := range []string{"2001:db8:100:1::/64", "10.244.1.0/24"} {
		if _, ok := p.router.Route(prefix); !ok {
			t.Errorf("the router has dropped %s", prefix)
		}
	}
	start := time.Now()
	b := startNode(t, p.node, p.conf, "-R")
	routingtest.Eventually(t, 30*time.Second, func() error {
		if s := b.Protocol(protocolOf(b)); s.BGP == nil || s.BGP.State != stateUp || slices.ContainsFunc(s.Channels, func(c birdc.Channel) bool { return c.RecoveryPending || c.RecoveryWaiting }) {
			return fmt.Errorf("BIRD is recovering: %+v", s)
		}
		return nil
	})
	t.Logf("BIRD has recovered %s after its start", time.Since(start).Round(10*time.Millisecond))
	routingtest.Established(t, p.router)
	routes(func(routingtest.Path) error { return nil })(t, p)
}

// protocolOf is the one session of a node: that of an unnumbered peer has a number.
func protocolOf(b *routingtest.BIRD) string {
	if len(b.Show("show protocols unnumbered_tor_1")) > 1 {
		return "unnumbered_tor_1"
	}
	return "peer_tor"
}

// checkRestartWithBFD kills BIRD, and its BFD ends with it. FRR keeps the routes as
// without BFD; BIRD as the router takes the node for dead, restart or not.
func checkRestartWithBFD(t *testing.T, p play) {
	bfd := func(want bool) {
		t.Helper()
		routingtest.Eventually(t, 30*time.Second, func() error {
			if up := p.router.BFD(); up != want {
				return fmt.Errorf("BFD is up: %t, want %t", up, want)
			}
			return nil
		})
	}
	bfd(true)
	p.bird.Kill()
	bfd(false)
	kept := p.make != "bird"
	for _, prefix := range []string{"2001:db8:100:1::/64", "10.244.1.0/24"} {
		routingtest.Eventually(t, 5*time.Second, func() error {
			if _, ok := p.router.Route(prefix); ok != kept {
				return fmt.Errorf("%s: the router has it: %t, want %t", prefix, ok, kept)
			}
			return nil
		})
	}
	startNode(t, p.node, p.conf, "-R")
	routingtest.Established(t, p.router)
	routes(func(routingtest.Path) error { return nil })(t, p)
}

func checkLimitRestart(t *testing.T, p play) {
	routingtest.Eventually(t, 30*time.Second, func() error {
		if s := p.router.Notification(); s == "" {
			return errors.New("the router got no notification")
		} else {
			t.Log(s)
		}
		return nil
	})
}

func checkLimitBlock(t *testing.T, p play) {
	routingtest.Eventually(t, 30*time.Second, func() error {
		s := p.bird.Protocol("peer_tor")
		if len(s.Channels) == 0 || s.Channels[0].Imported != 3 || !s.Channels[0].LimitHit || s.BGP.State != "Established" {
			return fmt.Errorf("want 3 routes, the limit hit and the session up: %+v", s)
		}
		return nil
	})
	routingtest.Eventually(t, 30*time.Second, func() error {
		if n := len(p.node.Routes("proto bird")); n != 3 {
			return fmt.Errorf("the kernel has %d routes, want 3", n)
		}
		return nil
	})
}
