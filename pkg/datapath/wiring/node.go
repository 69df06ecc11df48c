package wiring

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// NodeState is what the node, beside its pods, shall be like.
type NodeState struct {
	// Summaries are the prefixes that pods' addresses come from. Each becomes an
	// unreachable route of [kernel.MetricAnnounced]: what the routing daemon announces,
	// and what ends packets to addresses that no pod has, which would loop
	// between node and router otherwise.
	Summaries []netip.Prefix
}

// NodeActual is what the node is like.
type NodeActual struct {
	// Summaries are the unreachable routes of flock's protocol and
	// [kernel.MetricAnnounced], Strays all others of its protocol that lead nowhere.
	// Routes of other protocols are not listed, and not touched.
	Summaries []netip.Prefix
	Strays    []rtnl.Route
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

// NodeChange is one step towards a NodeState: either a route or a sysctl.
type NodeChange struct {
	// Route is added, or removed where Remove says so.
	Route  rtnl.Route
	Remove bool
	// Sysctl is the path below /proc/sys/net of what is set to Value.
	Sysctl, Value string
}

func (c NodeChange) String() string {
	switch {
	case c.Sysctl != "":
		return "set net/" + c.Sysctl + " to " + c.Value
	case c.Remove:
		return fmt.Sprintf("delete route %v", c.Route)
	default:
		return fmt.Sprintf("add route %v", c.Route)
	}
}

// PlanNode is what leads from have to want, in the order it must be done:
// accept_ra before forwarding, for the kernel drops its advertised default route
// when it begins to forward, and no longer listens; what may be in the way of a summary before it, and new summaries before old ones
// go.
func PlanNode(want NodeState, have NodeActual) []NodeChange {
	var cs []NodeChange
	if have.HasIPv6 {
		for _, l := range have.Advertised {
			if l.AcceptRA == 1 {
				cs = append(cs, NodeChange{Sysctl: kernel.LinkSysctl("ipv6", l.Name, "accept_ra"), Value: strconv.Itoa(acceptAlways)})
			}
		}
		if !have.Forwarding6 {
			cs = append(cs, NodeChange{Sysctl: kernel.Forward6, Value: "1"})
		}
	}
	if !have.Forwarding4 {
		cs = append(cs, NodeChange{Sysctl: kernel.Forward4, Value: "1"})
	}
	for _, r := range have.Strays {
		cs = append(cs, NodeChange{Route: r, Remove: true})
	}
	for _, p := range want.Summaries {
		if !slices.Contains(have.Summaries, p.Masked()) {
			cs = append(cs, NodeChange{Route: summary(p.Masked())})
		}
	}
	for _, p := range have.Summaries {
		if !slices.ContainsFunc(want.Summaries, func(w netip.Prefix) bool { return w.Masked() == p }) {
			cs = append(cs, NodeChange{Route: summary(p), Remove: true})
		}
	}
	return cs
}

func summary(p netip.Prefix) rtnl.Route {
	return rtnl.Route{Dst: p, Metric: kernel.MetricAnnounced, Proto: kernel.RouteProtocol, Type: rtnl.Unreachable}
}

const (
	acceptAlways = 2
)
