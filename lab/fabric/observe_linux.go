package fabric

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/state"
)

// Route is one of the router's kernel routes.
type Route struct {
	Prefix netip.Prefix
	Via    netip.Addr // invalid: on link, or several next hops
	Proto  netlink.RouteProtocol
}

func (r Route) String() string {
	if !r.Via.IsValid() {
		return fmt.Sprintf("%s proto %s", r.Prefix, r.Proto)
	}
	return fmt.Sprintf("%s via %s proto %s", r.Prefix, r.Via, r.Proto)
}

// Routes are those of the router's main table, of both families. A way by the
// link-local address of a node, as OSPFv3 has it, is one by the node's address.
func Routes(dir state.Dir, nodes []plan.Node) ([]Route, error) {
	global, err := linkLocals(dir, nodes)
	if err != nil {
		return nil, err
	}
	var routes []Route
	err = in(member.Of(dir, plan.Tor), func(h *netlink.Handle) error {
		for _, family := range []int{netlink.FAMILY_V6, netlink.FAMILY_V4} {
			dump, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return fmt.Errorf("list the router's routes: %w", err)
			}
			for _, r := range dump {
				via := addr(r.Gw)
				if via.IsLinkLocalUnicast() {
					if node, ok := global[via]; ok {
						via = node
					}
				}
				routes = append(routes, Route{Prefix: prefix(r.Dst), Via: via, Proto: r.Protocol})
			}
		}
		return nil
	})
	return routes, err
}

// linkLocals are the nodes' link-local addresses on the LAN, with the planned ones
// that belong to them.
func linkLocals(dir state.Dir, nodes []plan.Node) (map[netip.Addr]netip.Addr, error) {
	found := map[netip.Addr]netip.Addr{}
	for _, n := range nodes {
		err := in(member.Of(dir, n.Name()), func(h *netlink.Handle) error {
			link, err := h.LinkByName(uplink)
			if err != nil {
				return err
			}
			addrs, err := h.AddrList(link, netlink.FAMILY_V6)
			for _, a := range addrs {
				if a := addr(a.IP); a.IsLinkLocalUnicast() {
					found[a] = n.LAN().IPv6.Addr()
				}
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", n.Name(), err)
		}
	}
	return found, nil
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr(n.IP), bits)
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// Session is one of the router's BGP sessions, or what OSPF has with a node.
type Session struct {
	Name string // node1_ipv6
	// State is BIRD's word: Established, Passive, Active, … or with OSPF Full,
	// ExStart, …
	State string
	// Since is the time of the last change by the router's clock, zero with OSPF.
	Since time.Time
	// Restarting reports that the node's BIRD is down or has not finished its start,
	// and that the router keeps its routes (RFC 4724). Only the long form of the
	// answer has it.
	Restarting bool
}

// BirdJitter is more than two answers of BIRD differ by in one time: it counts back
// from its clock, which it reads once in a round of its loop.
const BirdJitter = 500 * time.Millisecond

// Same reports whether the session has not changed since it was other.
func (s Session) Same(other Session) bool {
	near := s.Since.Sub(other.Since).Abs() < BirdJitter
	s.Since = other.Since
	return near && s == other
}

// BirdTime reads a time that BIRD printed with date and milliseconds. It has no
// zone: it can be compared with others of the same BIRD.
func BirdTime(s string) (time.Time, error) { return time.Parse("2006-01-02 15:04:05.000", s) }

// Established reports whether routes are exchanged.
func (s Session) Established() bool { return s.State == "Established" || s.State == "Full" }

// ParseSessions reads the answer of birdc show protocols, as the router prints it:
// name, "BGP", table, state, date, time, what BGP says; in the long form (all) with
// details behind each.
func ParseSessions(birdc string) []Session {
	var sessions []Session
	for line := range strings.Lines(birdc) {
		if n := len(sessions); n > 0 && strings.Contains(line, "Neighbor graceful restart active") {
			sessions[n-1].Restarting = true
		}
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "BGP" {
			continue
		}
		since, _ := BirdTime(f[4] + " " + f[5])
		sessions = append(sessions, Session{Name: f[0], State: strings.Join(f[6:], " "), Since: since})
	}
	return sessions
}

// ParseNeighbors reads the answer of birdc show ospf neighbors for one instance:
// router ID, priority, state/role, time, interface, address. Each node has a
// Session of this family, by its router ID; one that is not in the answer has not
// been heard.
func ParseNeighbors(birdc, family string, nodes []plan.Node) []Session {
	states := map[string]string{}
	for line := range strings.Lines(birdc) {
		if f := strings.Fields(line); len(f) == 6 && f[4] == bridge {
			states[f[0]], _, _ = strings.Cut(f[2], "/")
		}
	}
	var sessions []Session
	for _, n := range nodes {
		s := Session{Name: n.Name() + "_" + family, State: states[n.RouterID().String()]}
		if s.State == "" {
			s.State = "not heard"
		}
		sessions = append(sessions, s)
	}
	return sessions
}
