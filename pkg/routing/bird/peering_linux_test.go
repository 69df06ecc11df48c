package bird

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// exampleOf returns the block of code behind a marker in a page of docs/.
func exampleOf(t *testing.T, page, marker string) string {
	t.Helper()
	text, err := os.ReadFile("../../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "<!-- "+marker+" -->\n```")
	_, rest, newline := strings.Cut(rest, "\n")
	block, _, end := strings.Cut(rest, "\n```")
	if !found || !newline || !end {
		t.Fatalf("%s has no block of code behind %q", page, marker)
	}
	return block + "\n"
}

// TestPeeringPages runs the router's configuration of each page that says so, with two
// nodes of the example in docs/peering/README.md.
func TestPeeringPages(t *testing.T) {
	routers := map[string]func(*testing.T, *routingtest.NS, string) (log func() string){
		"frr.md": func(t *testing.T, ns *routingtest.NS, conf string) func() string {
			return routingtest.StartFRRWith(ns, conf)
		},
		"bird.md": func(t *testing.T, ns *routingtest.NS, conf string) func() string {
			return routingtest.StartBIRDWith(ns, conf).Log
		},
	}
	for page, start := range routers {
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			conf := exampleOf(t, "peering/"+page, "run")
			tor := newLAN(t, page)
			log := start(t, tor, conf)
			t.Cleanup(func() {
				if t.Failed() {
					t.Log(log())
				}
			})
			_, bird1 := startExample(t, tor, 1)
			node2, _ := startExample(t, tor, 2)

			// Each node's pod CIDRs by the one session, IPv4 with an IPv6 next hop, and the
			// addresses that both announce with both as next hops.
			for n := range 2 {
				hop := fmt.Sprintf("2001:db8:0:1::1%d", n+1)
				wantHops(t, tor, fmt.Sprintf("2001:db8:100:%d::/64", n+1), hop)
				wantHops(t, tor, fmt.Sprintf("10.244.%d.0/24", n+1), hop)
			}
			for _, prefix := range []string{"2001:db8:53::53/128", "203.0.113.53/32"} {
				wantHops(t, tor, prefix, "2001:db8:0:1::11", "2001:db8:0:1::12")
			}
			// The filter admits nothing else. What a node announces comes in one go, and the
			// other prefixes of it are here.
			for _, prefix := range foreign {
				if hops := hopsOf(tor, prefix); hops != nil {
					t.Errorf("the router took %s, via %v", prefix, hops)
				}
			}
			// A restart of a node's BIRD withdraws nothing. The router has noticed when it has
			// closed its end, and acted on it when a later route of the other node is there.
			if socketsTo(tor, "2001:db8:0:1::11") == "" {
				t.Fatal("no connection of the node is seen")
			}
			bird1.Kill()
			routingtest.Eventually(t, 60*time.Second, func() error {
				if sockets := socketsTo(tor, "2001:db8:0:1::11"); sockets != "" {
					return errors.New("the router has not closed its end: " + sockets)
				}
				return nil
			})
			node2.IP("route add unreachable 203.0.113.54 proto 85 metric 512")
			wantHops(t, tor, "203.0.113.54/32", "2001:db8:0:1::12")
			wantHops(t, tor, "2001:db8:100:1::/64", "2001:db8:0:1::11")
			wantHops(t, tor, "203.0.113.53/32", "2001:db8:0:1::11", "2001:db8:0:1::12")
		})
	}
}

// foreign are prefixes that a node should not announce: another pool's, another node's
// length, a part of a pool, the default route's neighbor.
var foreign = []string{"2001:db8:66::1/128", "2001:db8:100:7:8::/80", "2001:db8:53::/80", "198.51.100.7/32", "10.244.128.0/17"}

// TestReflectorPage lets the daemons load what docs/route-reflectors.md has for them.
func TestReflectorPage(t *testing.T) {
	t.Parallel()
	routingtest.StartFRRWith(routingtest.NewNS(t, "reflector"), exampleOf(t, "route-reflectors.md", "run"))
	routingtest.StartBIRDWith(routingtest.NewNS(t, "router"), exampleOf(t, "route-reflectors.md", "router"))
}

// newLAN makes the namespace of a router with a bridge to which nodes are linked.
func newLAN(t *testing.T, role string) *routingtest.NS {
	t.Helper()
	ns := routingtest.NewNS(t, role)
	// Without an address of its own it has the lowest of its ports': another one when a node
	// joins, at which those that joined before lose the router for up to a minute.
	ns.IP("link add lan address 02:66:6c:00:00:01 type bridge")
	ns.IP("link set lan addrgenmode none")
	ns.IP("link set lan up")
	ns.IP("addr add fe80::1/64 dev lan nodad") // without one FRRouting has no session
	ns.IP("addr add 2001:db8:0:1::1/64 dev lan nodad")
	ns.IP("addr add 192.0.2.1/24 dev lan")
	return ns
}

// join links eth0 of ns to the bridge of lan. The kernel gives none of the links an
// address of its own: whether it is there in time would decide about next hops.
func join(ns, lan *routingtest.NS, port string) {
	routingtest.Connect(ns, "eth0", lan, port)
	lan.IP("link set " + port + " master lan")
	ns.IP("link set eth0 addrgenmode none")
	ns.IP("addr flush dev eth0")
	lan.IP("link set " + port + " addrgenmode none")
	lan.IP("addr flush dev " + port)
}

// startExample starts the node of the example as node n.
func startExample(t *testing.T, tor *routingtest.NS, n int) (*routingtest.NS, *routingtest.BIRD) {
	t.Helper()
	node := routingtest.NewNS(t, fmt.Sprintf("node%d", n))
	join(node, tor, node.Role)
	node.IP(fmt.Sprintf("addr add fe80::1%d/64 dev eth0 nodad", n))
	node.IP(fmt.Sprintf("addr add 2001:db8:0:1::1%d/64 dev eth0 nodad", n))
	for _, prefix := range append([]string{fmt.Sprintf("2001:db8:100:%d::/64", n), fmt.Sprintf("10.244.%d.0/24", n), "2001:db8:53::53/128", "203.0.113.53/32"}, foreign...) {
		node.IP("route add unreachable " + prefix + " proto 85 metric 512")
	}
	own := strings.NewReplacer("node1", fmt.Sprintf("node%d", n), ":100:1::", fmt.Sprintf(":100:%d::", n), "10.244.1.", fmt.Sprintf("10.244.%d.", n),
		"64601", fmt.Sprintf("6460%d", n), "192.0.2.11", fmt.Sprintf("192.0.2.1%d", n)).Replace(exampleOf(t, "peering/README.md", "node"))
	in := intentOf(t, []byte(own))
	in.OnLink = []netip.Prefix{netip.MustParsePrefix("2001:db8:0:1::/64")}
	in.Addresses = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8:0:1::1%d", n))}
	return node, startNode(t, node, Render(in), "-R")
}

// wantHops waits until the router's kernel has a route with these next hops.
func wantHops(t *testing.T, tor *routingtest.NS, prefix string, want ...string) {
	t.Helper()
	routingtest.Eventually(t, 90*time.Second, func() error {
		got := hopsOf(tor, prefix)
		for _, w := range want {
			if !strings.Contains(strings.Join(got, " ")+" ", w+" ") {
				return fmt.Errorf("the router has %s via %v, want %v", prefix, got, want)
			}
		}
		if len(got) != len(want) {
			return fmt.Errorf("the router has %s via %v, want %v", prefix, got, want)
		}
		return nil
	})
}

// hopsOf are the next hops of a route in the kernel's table, nil without one. A node sends
// two, and the router may use either: the link-local one stands for the other.
func hopsOf(ns *routingtest.NS, prefix string) (hops []string) {
	for _, r := range ns.Routes("table main") {
		if r.Prefix() != prefix {
			continue
		}
		for _, hop := range []string{r.Gateway, r.Via.Host} {
			if hop != "" {
				hops = append(hops, hop)
			}
		}
		for _, h := range r.NextHops {
			hops = append(hops, h.Gateway+h.Via.Host)
		}
	}
	for i, hop := range hops {
		hops[i] = strings.Replace(hop, "fe80::", "2001:db8:0:1::", 1)
	}
	return hops
}

// socketsTo lists the namespace's TCP sockets to addr that a program holds.
func socketsTo(ns *routingtest.NS, addr string) string {
	out, err := ns.Command("ss", "-Htn", "state", "connected", "exclude", "time-wait", "dst", "["+addr+"]").CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}
