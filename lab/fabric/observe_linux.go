package fabric

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

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

// Routes are those of the router's main table, of both families.
func Routes(dir state.Dir) ([]Route, error) {
	var routes []Route
	err := in(member.Of(dir, plan.Tor), func(h *netlink.Handle) error {
		for _, family := range []int{netlink.FAMILY_V6, netlink.FAMILY_V4} {
			dump, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return fmt.Errorf("list the router's routes: %w", err)
			}
			for _, r := range dump {
				routes = append(routes, Route{Prefix: prefix(r.Dst), Via: addr(r.Gw), Proto: r.Protocol})
			}
		}
		return nil
	})
	return routes, err
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

// Session is one of the router's BGP sessions.
type Session struct {
	Name string
	// State is BIRD's word: Established, Passive, Active, …
	State string
	// Since is the time of the last change.
	Since string
	// Restarting: the node's BIRD is away or not done yet, and the router keeps
	// its routes (RFC 4724). Only the long form of the answer tells.
	Restarting bool
}

// Established tells whether routes are exchanged.
func (s Session) Established() bool { return s.State == "Established" }

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
		sessions = append(sessions, Session{Name: f[0], State: strings.Join(f[6:], " "), Since: f[4] + " " + f[5]})
	}
	return sessions
}
