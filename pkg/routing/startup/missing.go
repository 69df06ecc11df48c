package startup

import (
	"fmt"
	"net/netip"
	"strings"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

// Missing says, for the operator, what keeps the node from taking pods; "" if
// nothing does. It looks at each address family that the node has pod CIDRs of and
// that is announced to one of its routers.
//
// A router has the routes when its session is up and BIRD has announced some over it:
// after its own restart BIRD has sessions over which it announces nothing yet. The node
// does not wait for a router that does not speak the family.
func Missing(n config.Node, sessions []routing.Session) string {
	if n.StartupSessions == v1alpha1.StartupNone {
		return ""
	}
	routers := routersOf(n)
	var wants []string
	for _, f := range []struct {
		key, name string
		cidrs     []netip.Prefix
	}{{"ipv6", "IPv6", n.IPv6}, {"ipv4", "IPv4", n.IPv4}} {
		if len(f.cidrs) == 0 {
			continue
		}
		var informed, uninformed int
		var why []string
		for _, r := range routers {
			if !r.families[f.key] {
				continue
			}
			switch what := r.progress(f.key, sessions); what {
			case knows:
				informed++
			case doesNotSpeak:
			default:
				uninformed++
				why = append(why, r.what+" "+string(what))
			}
		}
		if uninformed > 0 && (informed == 0 || n.StartupSessions == v1alpha1.StartupAll) {
			wants = append(wants, fmt.Sprintf("%s: %s", f.name, strings.Join(why, ", ")))
		}
	}
	if len(wants) == 0 {
		return ""
	}
	which := "no router has"
	if n.StartupSessions == v1alpha1.StartupAll {
		which = "not all routers have"
	}
	return fmt.Sprintf("%s the routes to this node's pods yet: %s (NodeConfig spec.startup.sessions: %s)", which, strings.Join(wants, "; "), n.StartupSessions)
}

// router is a neighbor that the configuration asks for.
type router struct {
	what     string // in words
	protocol string
	is       func(sessionName string) bool
	families map[string]bool // that are announced to it
}

func routersOf(n config.Node) (rs []router) {
	if n.BGP != nil {
		for _, p := range n.BGP.Peers {
			if !p.Disabled {
				rs = append(rs, router{
					what: "BGP peer " + p.Name, protocol: "bgp",
					is:       func(name string) bool { return name == p.Name },
					families: map[string]bool{"ipv6": p.IPv6, "ipv4": p.IPv4},
				})
			}
		}
	}
	if n.OSPF != nil {
		for _, i := range n.OSPF.Interfaces {
			rs = append(rs, router{
				what: "OSPF on " + i.Name, protocol: "ospf",
				is:       func(name string) bool { return strings.HasPrefix(name, i.Name+" ") },
				families: map[string]bool{"ipv6": n.OSPF.IPv6, "ipv4": n.OSPF.IPv4},
			})
		}
	}
	return rs
}

// progress is how far a router has come to know a family.
type progress string

const (
	knows        progress = "knows"
	doesNotSpeak progress = "does not speak it"
	isSilent     progress = "is up, but nothing has been announced to it"
	isDown       progress = "is down"
)

// progress is the best of the sessions with r: on a link with several routers OSPF
// has one with each, and one that is full is enough.
func (r router) progress(family string, sessions []routing.Session) progress {
	best, lastError := isDown, ""
	for _, s := range sessions {
		if s.Protocol != r.protocol || !r.is(s.Name) {
			continue
		}
		here := false // OSPF has a session for each family
		for _, f := range s.Families {
			here = here || f.Family == family
			switch {
			case f.Family != family || !s.Up:
			case f.Up && f.Sent > 0:
				return knows
			case f.Up:
				best = isSilent
			case best == isDown:
				best = doesNotSpeak
			}
		}
		if !s.Up && (here || s.Protocol == "bgp") {
			lastError = s.LastError
		}
	}
	if best == isDown && lastError != "" {
		return progress(fmt.Sprintf("%s (%s)", isDown, lastError))
	}
	return best
}
