package routingtest

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// RouterConfig is how a router is to peer with the node.
type RouterConfig struct {
	LocalAS, RemoteAS uint32
	// Neighbor is the node's address; invalid for unnumbered peering.
	Neighbor netip.Addr
	// NeighborPort is the node's port; 0 for 179. BIRD alone.
	NeighborPort int
	// Interface towards the node, for unnumbered peering and link-local addresses.
	Interface string

	MD5             string
	GTSM            bool
	BFD             bool // 100 ms times 3
	GracefulRestart bool // helps a node that restarts
	Passive         bool
	// ConnectRetry in seconds; 0 for 1.
	ConnectRetry int

	// Multihop is how many hops the node is away, seen from Local; 0 for a
	// neighbor. BIRD alone.
	Multihop int
	Local    netip.Addr

	// Announce these prefixes.
	Announce []netip.Prefix
	// AnnounceVia are prefixes with another next hop than the router. Not FRR.
	// GoBGP takes prefixes that other daemons refuse to announce.
	AnnounceVia map[string]string
	// Community goes with what is announced, as in 64512:100. BIRD alone.
	Community string
}

// Path is a route as the router has it from the node.
type Path struct {
	NextHop     string
	ASPath      []uint32
	Communities []string // 64512:100, ordered
	Large       []string // 4200000001:1:100, ordered
	LocalPref   uint32
	MED         int64 // -1: none
}

func (p Path) String() string {
	return fmt.Sprintf("via %s path %v communities %v large %v local-pref %d med %d", p.NextHop, p.ASPath, p.Communities, p.Large, p.LocalPref, p.MED)
}

// Router is a routing daemon that peers with the node.
type Router interface {
	// State of the session in lower case: "established", "active" …
	State() string
	// Route that the node announces, and whether there is one.
	Route(prefix string) (Path, bool)
	// BFD reports whether the path is up by BFD.
	BFD() bool
	// Notification is what the node said last when it closed the session, in the
	// router's words.
	Notification() string
	// Log is what the daemon logged.
	Log() string
}

// Unsupported is a router's lack of an option, in words for the documentation.
type Unsupported string

func (u Unsupported) Error() string { return string(u) }

// Make is an implementation of BGP.
type Make struct {
	Name string
	// Start runs one in ns. It returns an Unsupported if the configuration asks
	// for what this implementation does not have.
	Start func(ns *NS, c RouterConfig) (Router, error)
}

// Makes are the implementations that flock is tested with.
var Makes = []Make{
	{"bird", StartBIRDRouter},
	{"frr", StartFRR},
	{"gobgp", StartGoBGP},
}

// Established waits for the session.
func Established(t *testing.T, r Router) {
	t.Helper()
	Eventually(t, sessionWithin, func() error {
		if s := r.State(); s != "established" {
			return fmt.Errorf("the router's session is %s", s)
		}
		return nil
	})
}

// WantRoute waits until the router has the route and check finds nothing wrong.
func WantRoute(t *testing.T, r Router, prefix string, check func(Path) error) {
	t.Helper()
	Eventually(t, sessionWithin, func() error {
		p, ok := r.Route(prefix)
		if !ok {
			return fmt.Errorf("the router has no route to %s", prefix)
		}
		if err := check(p); err != nil {
			return fmt.Errorf("%s: %w", prefix, err)
		}
		return nil
	})
}

// is6 reports whether a prefix in text is of IPv6.
func is6(prefix string) bool { return strings.Contains(prefix, ":") }
