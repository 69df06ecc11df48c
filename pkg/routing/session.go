package routing

import "time"

// Session is what is between the node and one router.
type Session struct {
	// Protocol is bgp or ospf.
	Protocol string
	// Name of the peer in the node's configuration. For OSPF the interface, and
	// the router's ID behind it.
	Name string
	// Router is its address, "" if it has not been heard yet; AS its number, 0
	// for OSPF.
	Router string
	AS     uint32
	// Up: routes flow. State is the daemon's word for it: Established, Active,
	// Full …
	Up    bool
	State string
	// Since is when the daemon last changed its mind about Up; zero if it does
	// not say.
	Since time.Time
	// Restarting: the router's daemon is away and its routes are kept (RFC 4724).
	Restarting bool
	// LastError is why the session is down, or went down last: what flock finds wrong
	// on the node, with the remedy, or else the daemon's words.
	LastError string
	// Families that the session carries, IPv6 first.
	Families []SessionFamily
}

// SessionFamily are a session's routes of one address family.
type SessionFamily struct {
	Family string // ipv6 or ipv4
	Up     bool   // the router speaks it too
	// Sent and Accepted are routes at this moment: announced to the router, and
	// taken from it.
	Sent, Accepted int
	// Received and Rejected count the router's announcements since the session
	// came up, and those of them that were invalid or that the import refused.
	Received, Rejected int
	// LimitHit: the router announced more than maxPrefixes.
	LimitHit bool
}
