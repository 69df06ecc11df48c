package rtnl

import (
	"net/netip"
	"os"
)

// A Link is a network device as the kernel describes it.
type Link struct {
	Index int
	Name  string
	Alias string
	Kind  string // "veth", "bridge", …; empty for hardware
	MAC   [6]byte
	MTU   int
	Group uint32
	// Master is the index of the bridge or VRF that the link is a port of; 0: none.
	Master int
	// XDP says that a program is attached that sees packets before all else.
	XDP bool
	Up  bool // administratively (IFF_UP)
	// Running says that the link can carry traffic (IFF_RUNNING).
	Running  bool
	Loopback bool
	// NoARP: neighbours are not resolved on it (IFF_NOARP).
	NoARP bool
	// Peer is the index of a veth's other end, in the namespace of that end.
	Peer int
	// HasIPv6 is false if the device has no IPv6 at all, as below an MTU of
	// 1280 or with ipv6.disable=1; then AddrGenMode and IPv6 say nothing.
	HasIPv6 bool
	// AddrGenMode is how the kernel makes IPv6 link-local addresses
	// (IN6_ADDR_GEN_MODE_…).
	AddrGenMode uint8
	// IPv4 and IPv6 are the device's settings under /proc/sys/net/ipvX/conf.
	IPv4 IPv4Conf
	IPv6 IPv6Conf
}

// AddrGenNone is IN6_ADDR_GEN_MODE_NONE: no automatic link-local address.
const AddrGenNone = 1

// IPv4Conf is what flock reads and sets of a device's IPv4 settings.
type IPv4Conf struct{ Forwarding, RPFilter uint32 }

// IPv6Conf is what flock reads of a device's IPv6 settings.
type IPv6Conf struct{ Forwarding, AcceptRA, DisableIPv6 int32 }

// VethPair describes a veth and where its peer comes to be.
type VethPair struct {
	Name, PeerName string
	MAC, PeerMAC   [6]byte
	MTU            int // of both ends, 0 for the kernel's default
	PeerNetns      *os.File
}

// LinkChange is what SetLink sets; nil leaves a setting as it is.
type LinkChange struct {
	Name        *string
	Up          *bool
	NoARP       *bool
	MAC         *[6]byte
	MTU         *int
	Master      *int
	Group       *uint32
	Alias       *string
	AddrGenMode *uint8
	IPv4        *IPv4Conf
}

// An Addr is an address on a link.
type Addr struct {
	Link   int
	Prefix netip.Prefix // with the address, not masked; with a Peer, a whole address
	// Peer is the address at the other end of a link with two ends. The kernel then has a
	// route to it, and none to a prefix.
	Peer netip.Addr
	// Proto says who added it (IFAPROT_…, kernel 5.18 and newer; else 0).
	Proto uint8
	// Tentative: duplicate address detection is not over, or has failed.
	Tentative bool
}

// ProtoRouterAdvertisement is IFAPROT_KERNEL_RA: the kernel made the address
// from a router advertisement.
const ProtoRouterAdvertisement = 2

// A Neigh is a neighbor with a permanent link-layer address (NUD_PERMANENT).
type Neigh struct {
	Link int
	Addr netip.Addr
	MAC  [6]byte
	// Proto says who added it (NDA_PROTOCOL).
	Proto uint8
}

// A Route is an entry of the main table.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr // invalid: none
	Src     netip.Addr // preferred source; invalid: none
	// Link is the outgoing link, 0 for unreachable routes; Links are those of a
	// multipath route, which is only read.
	Link  int
	Links []int
	// Nexthop is the ID of the nexthop that the route is on, in place of Link
	// and Gateway; 0: none.
	Nexthop uint32
	Metric  uint32
	Proto   uint8 // RTPROT_…
	Type    RouteType
	// Extra says that the route has what flock does not set, such as an MTU or an
	// encapsulation. It is only read.
	Extra bool
}

// RouteType is what becomes of a packet that a route matches.
type RouteType uint8

const (
	Unicast     RouteType = iota // sent on
	Unreachable                  // answered with ICMP "unreachable"
	Blackhole                    // dropped
	Prohibit                     // answered with ICMP "administratively prohibited"
)

func (t RouteType) String() string {
	return [...]string{"unicast", "unreachable", "blackhole", "prohibit"}[t]
}

func (r Route) String() string {
	s := r.Dst.String()
	if r.Type != Unicast {
		s = r.Type.String() + " " + s
	}
	if r.Gateway.IsValid() {
		s += " via " + r.Gateway.String()
	}
	return s
}

// RouteFilter narrows Routes; zero fields don't. The kernel filters, so routes that
// are left out cost only the kernel's look at them.
type RouteFilter struct {
	Link   int
	Proto  uint8
	Family uint8 // AF_INET or AF_INET6
	Type   RouteType
}

// A Rule is one of the routing policy's: which packets take which table (ip-rule(8)).
type Rule struct {
	IPv6     bool
	Priority uint32
	// Action is what becomes of a packet that it matches (FR_ACT_…).
	Action uint8
	Table  uint32
	// Src and Dst are invalid where any address matches; In and Out are names of links.
	Src, Dst netip.Prefix
	In, Out  string
	// Selective: it matches only some packets, by what is not read here.
	Selective bool
}

// What becomes of packets that a rule matches, beside being dropped.
const (
	RuleToTable = 1 // FR_ACT_TO_TBL
	RuleGoto    = 2 // FR_ACT_GOTO
	RuleNop     = 3 // FR_ACT_NOP
)

// A Qdisc is a queueing discipline on a link (tc(8)).
type Qdisc struct {
	Link int
	Kind string // "noqueue", "clsact", …
}
