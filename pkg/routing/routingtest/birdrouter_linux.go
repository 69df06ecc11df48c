package routingtest

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

type birdRouter struct{ *BIRD }

// StartBIRDRouter starts BIRD as the node's router.
func StartBIRDRouter(ns *NS, c RouterConfig) (Router, error) {
	if !c.Neighbor.IsValid() {
		return nil, Unsupported("BIRD 2.0.12 as the router does not find an unnumbered neighbor by itself: give it the node's link-local address, or the node its own")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "log stderr all;\nrouter id 192.0.2.1;\ntimeformat base iso long ms;\ntimeformat protocol iso long ms;\nprotocol device {}\n")
	for _, family := range []int{6, 4} {
		fmt.Fprintf(&b, "protocol kernel { ipv%d { export where source = RTS_BGP; }; merge paths on; }\nprotocol static { ipv%d;\n", family, family)
		for _, p := range c.Announce {
			if p.Addr().Is6() == (family == 6) {
				fmt.Fprintf(&b, "\troute %s blackhole;\n", p)
			}
		}
		for p, via := range c.AnnounceVia {
			if is6(p) == (family == 6) {
				fmt.Fprintf(&b, "\troute %s blackhole { bgp_next_hop = %s; };\n", p, via)
			}
		}
		b.WriteString("}\n")
	}
	if c.BFD {
		b.WriteString("protocol bfd { interface \"*\" { interval 100 ms; multiplier 3; }; }\n")
	}
	port := ""
	if c.NeighborPort > 0 {
		port = fmt.Sprintf(" port %d", c.NeighborPort)
	}
	fmt.Fprintf(&b, "protocol bgp node {\n\tlocal as %d;\n\tneighbor %s%s as %d;\n", c.LocalAS, c.Neighbor, port, c.RemoteAS)
	if c.Multihop > 0 {
		fmt.Fprintf(&b, "\tmultihop %d;\n\tsource address %s;\n", c.Multihop, c.Local)
	} else {
		b.WriteString("\tdirect;\n")
	}
	fmt.Fprintf(&b, "\tconnect delay time 1; connect retry time %d; error wait time 1, 1;\n", max(c.ConnectRetry, 1))
	if c.Interface != "" {
		fmt.Fprintf(&b, "\tinterface \"%s\";\n", c.Interface)
	}
	if c.MD5 != "" {
		fmt.Fprintf(&b, "\tpassword \"%s\";\n", c.MD5)
	}
	if c.GTSM {
		b.WriteString("\tttl security on;\n")
	}
	if c.BFD {
		b.WriteString("\tbfd on;\n")
	}
	if !c.GracefulRestart {
		b.WriteString("\tgraceful restart off;\n")
	}
	if c.Passive {
		b.WriteString("\tpassive on;\n")
	}
	community := ""
	if c.Community != "" {
		community = "bgp_community.add((" + strings.Replace(c.Community, ":", ",", 1) + "));"
	}
	for _, family := range []int{6, 4} {
		fmt.Fprintf(&b, "\tipv%d { import all; add paths on; export filter { if source != RTS_STATIC then reject; %s accept; }; ", family, community)
		if family == 4 && c.Neighbor.Is6() {
			b.WriteString("extended next hop; ")
		}
		b.WriteString("};\n")
	}
	b.WriteString("}\n")
	return &birdRouter{startBIRDWith(ns, "bird", b.String())}, nil
}

func (r *birdRouter) State() string {
	p := r.Protocol("node")
	if p.BGP == nil {
		return "no session"
	}
	return strings.ToLower(p.BGP.State)
}

var attribute = regexp.MustCompile(`^\s+BGP\.(\w+): (.*)$`)

func (r *birdRouter) Route(prefix string) (Path, bool) {
	p := Path{MED: -1, LocalPref: 100}
	found := false
	for _, line := range r.Show("show route for " + prefix + " protocol node all") {
		found = found || strings.HasPrefix(line, prefix)
		m := attribute.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		value := strings.TrimSpace(m[2])
		switch m[1] {
		case "next_hop":
			p.NextHop, _, _ = strings.Cut(value, " ")
		case "as_path":
			for _, as := range strings.Fields(value) {
				p.ASPath = append(p.ASPath, number(as))
			}
		case "local_pref":
			p.LocalPref = number(value)
		case "med":
			p.MED = int64(number(value))
		case "community":
			p.Communities = tuples(value)
		case "large_community":
			p.Large = tuples(value)
		}
	}
	return p, found
}

func (r *birdRouter) BFD() bool {
	for _, line := range r.Show("show bfd sessions") {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "Up" {
			return true
		}
	}
	return false
}

func (r *birdRouter) Notification() string {
	if p := r.Protocol("node"); p.BGP != nil {
		return p.BGP.LastError
	}
	return ""
}

// tuples reads "(1,2) (3,4)" as 1:2 and 3:4, ordered.
func tuples(s string) []string {
	var out []string
	for _, t := range strings.Split(s, ") (") {
		out = append(out, strings.NewReplacer("(", "", ")", "", ",", ":", " ", "").Replace(t))
	}
	slices.Sort(out)
	return out
}

func number(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32)
	return uint32(n)
}
