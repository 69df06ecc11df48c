package wiring

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// NodeState is what the node, beside its pods, shall be like.
type NodeState struct {
	// Summaries are the prefixes that pods' addresses come from. Each becomes an
	// unreachable route of MetricAnnounced: what the routing daemon announces,
	// and what ends packets to addresses that no pod has, which would loop
	// between node and router otherwise.
	Summaries []netip.Prefix
}

// NodeActual is what the node is like.
type NodeActual struct {
	// Summaries are the unreachable routes of flock's protocol and
	// MetricAnnounced; routes of others are not listed, and not touched.
	Summaries []netip.Prefix
	// Forwarding4 and Forwarding6 are net.ipv4.ip_forward and
	// net.ipv6.conf.all.forwarding; HasIPv6 is false where the kernel has none.
	Forwarding4, Forwarding6, HasIPv6 bool
	// Advertised are the links that have a route or an address from a router
	// advertisement.
	Advertised []AdvertisedLink
}

// AdvertisedLink is a link that lives on router advertisements.
type AdvertisedLink struct {
	Name string
	// AcceptRA is net.ipv6.conf.NAME.accept_ra: 0, if the advertisements are
	// read outside the kernel (systemd-networkd, NetworkManager); 1, accepted
	// while the node does not forward; 2, always.
	AcceptRA int
}

// NodeChange is one step towards a NodeState: either a summary or a sysctl.
type NodeChange struct {
	// Summary is added, or removed where Remove says so.
	Summary netip.Prefix
	Remove  bool
	// Sysctl is the path below /proc/sys/net of what is set to Value.
	Sysctl, Value string
}

func (c NodeChange) String() string {
	switch {
	case c.Sysctl != "":
		return "set net/" + c.Sysctl + " to " + c.Value
	case c.Remove:
		return fmt.Sprintf("delete unreachable route %v", c.Summary)
	default:
		return fmt.Sprintf("add unreachable route %v", c.Summary)
	}
}

// PlanNode is what leads from have to want, in the order it must be done:
// accept_ra before forwarding, for the kernel drops its advertised default route
// when it begins to forward, and no longer listens; new summaries before old ones
// go.
func PlanNode(want NodeState, have NodeActual) []NodeChange {
	var cs []NodeChange
	if have.HasIPv6 {
		for _, l := range have.Advertised {
			if l.AcceptRA == 1 {
				cs = append(cs, NodeChange{Sysctl: "ipv6/conf/" + l.Name + "/accept_ra", Value: strconv.Itoa(acceptAlways)})
			}
		}
		if !have.Forwarding6 {
			cs = append(cs, NodeChange{Sysctl: sysctlForward6, Value: "1"})
		}
	}
	if !have.Forwarding4 {
		cs = append(cs, NodeChange{Sysctl: sysctlForward4, Value: "1"})
	}
	for _, p := range want.Summaries {
		if !slices.Contains(have.Summaries, p.Masked()) {
			cs = append(cs, NodeChange{Summary: p.Masked()})
		}
	}
	for _, p := range have.Summaries {
		if !slices.ContainsFunc(want.Summaries, func(w netip.Prefix) bool { return w.Masked() == p }) {
			cs = append(cs, NodeChange{Summary: p, Remove: true})
		}
	}
	return cs
}

const (
	sysctlForward4 = "ipv4/ip_forward"
	sysctlForward6 = "ipv6/conf/all/forwarding"
	acceptAlways   = 2
)
