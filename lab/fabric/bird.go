package fabric

import (
	"fmt"
	"strings"

	"flock.fritzlab.net/flock/lab/plan"
)

// Routing tells how the router learns the way to the pods.
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
// It behaves as routers do that nobody has prepared for the nodes: it takes what
// they announce and announces all it knows to them, its connected subnets and
// their own neighbours' routes included.
func BirdConfig(nodes []plan.Node, how Routing) string {
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
		fmt.Fprintf(&b, "\nprotocol static nodes6 {\n  ipv6;\n")
		for _, n := range nodes {
			fmt.Fprintf(&b, "  route %s via %s;\n", n.Pods().IPv6, n.LAN().IPv6.Addr())
		}
		fmt.Fprintf(&b, "}\nprotocol static nodes4 {\n  ipv4;\n")
		for _, n := range nodes {
			fmt.Fprintf(&b, "  route %s via %s;\n", n.Pods().IPv4, n.LAN().IPv4.Addr())
		}
		b.WriteString("}\n")
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
		for _, family := range []struct{ version, number int }{{3, 6}, {2, 4}} {
			fmt.Fprintf(&b, `
protocol ospf v%[1]d nodes%[2]d {
  ipv%[2]d { import filter from_node%[2]d; export all; };
  merge external on;
  area 0 {
    interface "%[3]s" { type broadcast; cost %[4]d; hello %[5]d; dead %[6]d; };
  };
}
`, family.version, family.number, bridge, OSPFLinkCost, OSPFHelloSeconds, OSPFDeadSeconds)
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
		fmt.Fprintf(&b, `protocol bgp %[1]s_ipv6 from node {
  source address %[2]s;
  neighbor %[3]s as %[4]d;
  ipv6 { import filter from_node6; export all; };
}
protocol bgp %[1]s_ipv4 from node {
  source address %[5]s;
  neighbor %[6]s as %[4]d;
  ipv4 { import filter from_node4; export all; };
}
`, n.Name(), plan.TorLAN.IPv6.Addr(), n.LAN().IPv6.Addr(), n.AS(), plan.TorLAN.IPv4.Addr(), n.LAN().IPv4.Addr())
	}
	return b.String()
}
