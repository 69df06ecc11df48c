// Package routing says what a node asks of its routing daemon, and what the
// daemon says of it.
//
// The kernel's FIB is the interface between flock and the daemon: the agent
// installs routes with flock's own protocol number, the daemon learns them over
// netlink and announces them. So an Intent holds only what changes with the
// node's configuration; a pod or an anycast address that comes or goes is a
// route in the kernel and never a new Intent.
//
// The package is pure. The daemons are behind it: package bird renders an Intent
// for BIRD and keeps the daemon to it.
package routing

import (
	"net"
	"net/netip"
	"slices"

	"flock.fritzlab.net/flock/pkg/config"
)

const (
	// Protocol is the route protocol number (rtm_protocol, rtnetlink(7)) of
	// every route that the agent installs.
	Protocol = 85
	// LocalMetric is the metric of flock's routes that stay on the node: the
	// host routes of pods, which a summary covers. Every other metric means
	// that the route is to be announced.
	LocalMetric = 1024
	// StaticMetric is the metric of the routes to static addresses that no summary
	// covers.
	StaticMetric = 768
)

// Intent is what a node asks of its routing daemon. The zero value announces
// nothing and imports nothing.
type Intent struct {
	// Own are the node's pod CIDRs: no router may tell it where they are.
	Own []netip.Prefix
	// OnLink are the subnets of the node's links, see OnLink. They are refused
	// from routers too: a route into the node's own subnet, more specific than
	// the link's, would send its traffic through the router.
	OnLink []netip.Prefix
	// Addresses are what routers know the node by: its InternalIPs. A session
	// comes from one of them where the router is on the same subnet and the
	// configuration does not say otherwise. Without it the daemon takes any of
	// the link's addresses, and after a restart perhaps another: one from a router
	// advertisement, or a virtual one.
	Addresses []netip.Addr
	// Pools are what goes with the host routes of granted addresses, the longest
	// prefix first, see PoolsOf.
	Pools []PoolRoutes
	// BGP is nil where the node does not speak it.
	BGP *config.BGP
	// OSPF is nil where the node does not speak it.
	OSPF *config.OSPF
	// Passwords by the reference that the configuration makes. A session whose
	// password is missing stays down.
	Passwords map[config.SecretRef]Password
}

// IntentOf is the routing part of a node's configuration. OnLink, Addresses, Pools
// and Passwords are for the caller to add.
func IntentOf(n config.Node) Intent {
	return Intent{Own: n.Summaries(), BGP: n.BGP, OSPF: n.OSPF}
}

// Source is the node's address for a session with p; invalid if the daemon is to
// choose.
func (in Intent) Source(p config.BGPPeer) netip.Addr {
	if p.Source.IsValid() || !p.Addr.IsValid() || p.Multihop > 0 {
		return p.Source
	}
	for _, a := range in.Addresses {
		for _, link := range in.OnLink {
			if link.Contains(a) && link.Contains(p.Addr) {
				return a
			}
		}
	}
	return netip.Addr{}
}

// Secrets are the references to passwords that in makes, without doubles.
func (in Intent) Secrets() []config.SecretRef {
	var refs []config.SecretRef
	add := func(ref config.SecretRef) {
		if !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	if in.BGP != nil {
		for _, p := range in.BGP.Peers {
			if p.Password != nil {
				add(*p.Password)
			}
		}
	}
	if in.OSPF != nil {
		for _, i := range in.OSPF.Interfaces {
			if i.Authentication != nil {
				add(i.Authentication.Password)
			}
		}
	}
	return refs
}

// OnLink picks from the addresses of all interfaces, as net.InterfaceAddrs gives
// them, the subnets that are on a link: ordered, without doubles, without
// link-local and loopback addresses, and without host addresses.
func OnLink(addrs []net.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		p = p.Masked()
		if p.IsSingleIP() || !p.Addr().IsGlobalUnicast() {
			continue
		}
		out = append(out, p)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}
