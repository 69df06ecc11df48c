package fabric

import (
	"fmt"
	"iter"
	"net/netip"
	"strings"

	"flock.fritzlab.net/flock/lab/plan"
)

// Routing is how the router learns the routes to the pods.
type Routing string

// The ways.
const (
	// BGP: a session with each node and family, which the node opens.
	BGP Routing = "bgp"
	// OSPF: an adjacency with each node, OSPFv3 for IPv6 and OSPFv2 for IPv4.
	OSPF Routing = "ospf"
	// Static routes to each node, for a CNI that announces nothing.
	Static Routing = "static"
)

// ParseRouting reads the value of --routing. Static is not among them: it goes
// with the CNI.
func ParseRouting(s string) (Routing, error) {
	switch r := Routing(s); r {
	case BGP, OSPF:
		return r, nil
	}
	return "", fmt.Errorf("--routing %q: want %q or %q", s, BGP, OSPF)
}

// OSPF's interval between hellos, and how long a router without any is taken for
// alive. Routers of a link must agree; their own 10 and 40 s would have a person
// wait for the lab.
const (
	OSPFHelloSeconds = 1
	OSPFDeadSeconds  = 4
)

// OSPFLinkCost is the router's own cost of the LAN.
const OSPFLinkCost = 10

// BirdConfig is the router's configuration for BIRD 2.
//
// It behaves like a router without a special configuration for the nodes: it accepts
// what they announce and announces all of its routes to them, its connected subnets
// and the routes of other nodes included.
func BirdConfig(nodes []plan.Node, families plan.Families, how Routing) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# The lab's top-of-rack router.
router id %s;
log stderr all;
timeformat protocol iso long ms;
watchdog warning 5 s;

protocol device {}
protocol direct connected { ipv6; ipv4; }
protocol kernel kernel6 {
  ipv6 { import none; export where source != RTS_DEVICE; };
  merge paths on;
  graceful restart;
}
protocol kernel kernel4 {
  ipv4 { import none; export where source != RTS_DEVICE; };
  merge paths on;
  graceful restart;
}
`, plan.TorLAN.IPv4.Addr())
	if how == Static {
		for i, lan := range families.Of(plan.TorLAN) {
			family := family(lan)
			fmt.Fprintf(&b, "\nprotocol static nodes%d {\n  ipv%[1]d;\n", family)
			for _, n := range nodes {
				fmt.Fprintf(&b, "  route %s via %s;\n", families.Of(n.Pods())[i], families.Of(n.LAN())[i].Addr())
			}
			b.WriteString("}\n")
		}
		return b.String()
	}
	fmt.Fprintf(&b, `
# The router's own networks and the default route are not the nodes' to announce.
filter from_node6 {
  if net = ::/0 || net ~ [ %s+, %s+ ] then reject;
  accept;
}
filter from_node4 {
  if net = 0.0.0.0/0 || net ~ [ %s+, %s+ ] then reject;
  accept;
}
`, plan.LAN6, plan.Outside6, plan.LAN4, plan.Outside4)
	if how == OSPF {
		for _, lan := range families.Of(plan.TorLAN) {
			family := family(lan)
			fmt.Fprintf(&b, `
protocol ospf v%[1]d nodes%[2]d {
  ipv%[2]d { import filter from_node%[2]d; export all; };
  merge external on;
  area 0 {
    interface "%[3]s" { type broadcast; cost %[4]d; hello %[5]d; dead %[6]d; };
  };
}
`, family/2, family, bridge, OSPFLinkCost, OSPFHelloSeconds, OSPFDeadSeconds)
		}
		return b.String()
	}
	// BIRD's defaults are an internet router's: 240 s of hold time, minutes
	// of waiting after an error.
	fmt.Fprintf(&b, `
# BFD is with the nodes that want it: the sessions of others stand without.
protocol bfd {}

template bgp node {
  local as %d;
  bfd on;
  passive on;
  hold time 9;
  keepalive time 3;
  error wait time 1, 5;
  graceful restart aware;
}
`, plan.TorAS)
	for _, n := range nodes {
		for i, lan := range families.Of(plan.TorLAN) {
			fmt.Fprintf(&b, `protocol bgp %[1]s_ipv%[2]d from node {
  source address %[3]s;
  neighbor %[4]s as %[5]d;
  ipv%[2]d { import filter from_node%[2]d; export all; };
}
`, n.Name(), family(lan), lan.Addr(), families.Of(n.LAN())[i].Addr(), n.AS())
		}
	}
	return b.String()
}

// OSPFInstances are the names of the router's OSPF instances by family, ipv6 or
// ipv4, in that order.
func OSPFInstances(families plan.Families) iter.Seq2[string, string] {
	return func(yield func(family, instance string) bool) {
		for _, lan := range families.Of(plan.TorLAN) {
			if number := family(lan); !yield(fmt.Sprintf("ipv%d", number), fmt.Sprintf("nodes%d", number)) {
				return
			}
		}
	}
}

// family is 6 or 4.
func family(p netip.Prefix) int {
	if p.Addr().Is6() {
		return 6
	}
	return 4
}
