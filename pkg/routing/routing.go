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

// Intent is what a node asks of its routing daemon. The zero value announces
// nothing and imports nothing.
type Intent struct {
	// Own are the node's pod CIDRs. Routes to them are refused from routers.
	Own []netip.Prefix
	// OnLink are the subnets of the node's links, see OnLink. They are refused
	// from routers too: a route into the node's own subnet, more specific than
	// the link's, would send its traffic through the router.
	OnLink []netip.Prefix
	// Addresses are the node's InternalIPs, by which routers know it. A session
	// comes from one of them where the router is on the same subnet and the
	// configuration names no other. Without one the daemon takes any address of
	// the link, and after a restart perhaps another: one from a router
	// advertisement, or a virtual one.
	Addresses []netip.Addr
	// Held are the addresses that the node's interfaces have, see Held. An
	// InternalIP that is not among them, after the node was renumbered, is no
	// session's source. If it is empty, all are assumed to exist.
	Held []netip.Addr
	// Pools are what goes with the host routes of granted addresses, the longest
	// prefix first, see PoolsOf.
	Pools []PoolRoutes
	// Departing: the node is about to leave the network. Its anycast addresses are not
	// announced, and routers are asked to prefer other paths to the rest (RFC 8326).
	Departing bool
	// BGP is nil where the node does not speak it.
	BGP *config.BGP
	// OSPF is nil where the node does not speak it.
	OSPF *config.OSPF
	// Passwords has the passwords by their references in the configuration. A session
	// without its password stays down.
	Passwords map[config.SecretRef]Password
}

// IntentOf is the routing part of a node's configuration. The caller adds OnLink,
// Addresses, Held, Pools and Passwords.
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
		if !in.Has(a) {
			continue
		}
		for _, link := range in.OnLink {
			if link.Contains(a) && link.Contains(p.Addr) {
				return a
			}
		}
	}
	return netip.Addr{}
}

// Has reports whether the node has the address, or may have it.
func (in Intent) Has(a netip.Addr) bool {
	return len(in.Held) == 0 || slices.Contains(in.Held, a)
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
