package flockctl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// A route is how packets get from one end of a connection to the other, as far as the
// NodeConfigs say it.
type route struct {
	// Kind is node (within one node), podCIDR, static, anycast, node-address or outside.
	Kind string `json:"kind"`
	// Prefix is what leads to the destination; AnnouncedBy are the nodes that announce it.
	Prefix      string   `json:"prefix,omitempty"`
	AnnouncedBy []string `json:"announcedBy,omitempty"`
	// NextHops are the routers of the sender's node with a session that is up.
	NextHops []string `json:"nextHops,omitempty"`
	Problems []string `json:"problems,omitempty"`
}

func (r route) String() string {
	var out []string
	switch r.Kind {
	case "node":
		out = append(out, "within the node")
	case "outside":
		out = append(out, "as the routers know it")
	case "node-address":
		out = append(out, "to the node's own address, as the routers know it")
	default:
		by := "announced by " + strings.Join(r.AnnouncedBy, ", ")
		if len(r.AnnouncedBy) == 0 {
			by = "announced by no node"
		}
		if r.Prefix != "" {
			out = append(out, fmt.Sprintf("%s route %s, %s", r.Kind, r.Prefix, by))
		}
	}
	if len(r.NextHops) > 0 {
		out = append(out, "next hop "+strings.Join(r.NextHops, " or "))
	}
	out = append(out, r.Problems...)
	return strings.Join(out, "; ")
}

// route says which way packets to an end take.
func (f *policyFacts) route(from, to end) (r route) {
	problem := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	if from.Node != "" && from.Node == to.Node {
		r.Kind = "node"
		return r
	}
	r.Kind, r.Prefix, r.AnnouncedBy = f.destination(to)
	switch {
	case to.Node == "" && to.pod == nil:
		r.Kind = "outside"
	case to.Node == "":
		problem("the pod is not on a node yet")
	case r.Kind == "":
		problem("no prefix of node %s is around %s, so no route leads there", to.Node, to.Address)
	case r.Kind == "anycast" && !slices.Contains(r.AnnouncedBy, to.Node):
		problem("node %s does not announce it at present: flockctl anycast %s says why", to.Node, to.Address)
	}
	if from.Node == "" {
		return r
	}
	for _, s := range f.sessions(from.Node) {
		if s.Up {
			r.NextHops = append(r.NextHops, strings.TrimSpace(s.Peer+" "+s.Router))
		}
	}
	if len(r.NextHops) == 0 && f.config(from.Node) != nil {
		problem("node %s has no session with a router that is up", from.Node)
	}
	if slices.Contains(r.AnnouncedBy, to.Node) && !slices.ContainsFunc(f.sessions(to.Node), func(s v1alpha1.SessionStatus) bool { return s.Up }) {
		problem("node %s has no session with a router that is up", to.Node)
	}
	return r
}

func (f *policyFacts) sessions(node string) []v1alpha1.SessionStatus {
	for _, nc := range f.configs {
		if nc.Name == node {
			return nc.Status.Sessions
		}
	}
	return nil
}

// destination is the most specific of what nodes announce to lead to an end.
func (f *policyFacts) destination(to end) (kind, prefix string, by []string) {
	host := netip.PrefixFrom(to.addr, to.addr.BitLen()).String()
	anycast := false
	for _, nc := range f.configs {
		for _, a := range nc.Status.Anycast {
			if a.Address == to.Address {
				anycast = true
				if a.Announced && !slices.Contains(by, nc.Name) {
					by = append(by, nc.Name)
				}
			}
		}
	}
	if anycast {
		return "anycast", host, by
	}
	for _, c := range f.claims {
		if c.Spec.Address == to.Address {
			return "static", host, []string{c.Spec.NodeName}
		}
	}
	for i := range f.configs {
		nc := &f.configs[i]
		n, err := config.ParseNode(nc)
		if err != nil {
			continue
		}
		summaries := n.Summaries()
		for _, text := range nc.Status.RetiredCIDRs {
			if p, err := netip.ParsePrefix(text); err == nil {
				summaries = append(summaries, p)
			}
		}
		for _, p := range summaries {
			if p.Contains(to.addr) {
				return "podCIDR", p.String(), []string{nc.Name}
			}
		}
	}
	if to.pod == nil || to.hostNetwork {
		return "node-address", "", nil
	}
	return "", "", nil
}
