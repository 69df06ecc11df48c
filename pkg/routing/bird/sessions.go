package bird

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
)

func isOSPF(p birdc.Protocol) bool { return p.Kind == "OSPF" }

// sessions reads what BIRD says of the protocols that Render has named.
func sessions(protocols []birdc.Protocol, neighbors []birdc.OSPFNeighbor) []routing.Session {
	var out []routing.Session
	for _, p := range protocols {
		if name, ok := strings.CutPrefix(p.Name, peerPrefix); ok && p.BGP != nil {
			s := bgpSession(p)
			s.Name = bgpName(p.Name)
			// The session of an unnumbered peer is a protocol of its own.
			if i := slices.IndexFunc(protocols, func(child birdc.Protocol) bool { return isSessionOf(child, name) }); i >= 0 {
				child := bgpSession(protocols[i])
				child.Name = s.Name
				s = child
			}
			out = append(out, s)
		}
		if isOSPF(p) {
			out = append(out, ospfSessions(p, neighbors)...)
		}
	}
	slices.SortStableFunc(out, func(a, b routing.Session) int {
		return strings.Compare(a.Protocol+" "+a.Name, b.Protocol+" "+b.Name)
	})
	return out
}

// bgpName is the name of a peer in the NodeConfig, by that of its protocol.
func bgpName(protocol string) string {
	return strings.ReplaceAll(strings.TrimPrefix(protocol, peerPrefix), "_", "-")
}

// jitter is more than two answers of BIRD differ by about one moment: it counts
// back from its clock, which it reads once in a round of its loop. No session ends
// and is back within it, see connectDelay.
const jitter = connectDelay / 2

// keepSince gives sessions that have not changed the time that BIRD gave first.
func keepSince(now, before []routing.Session) {
	for i := range now {
		s := &now[i]
		for _, b := range before {
			if b.Protocol == s.Protocol && b.Name == s.Name && b.Router == s.Router && b.State == s.State && s.Since.Sub(b.Since).Abs() < jitter {
				s.Since = b.Since
			}
		}
	}
}

// isSessionOf reports whether BIRD made p for a router that has connected to an unnumbered
// peer.
func isSessionOf(p birdc.Protocol, word string) bool {
	number, ok := strings.CutPrefix(p.Name, dynamicPrefix(word))
	return ok && p.BGP != nil && p.BGP.State == stateUp && strings.Trim(number, "0123456789") == ""
}

const stateUp = "Established"

func bgpSession(p birdc.Protocol) routing.Session {
	s := routing.Session{
		Protocol: "bgp", Router: p.BGP.Neighbor, AS: p.BGP.NeighborAS,
		Up: p.BGP.State == stateUp, State: p.BGP.State, Since: p.Since,
		Restarting: p.BGP.RestartingPeer, LastError: p.BGP.LastError,
	}
	for _, c := range p.Channels {
		s.Families = append(s.Families, familyOf(c))
	}
	return s
}

func familyOf(c birdc.Channel) routing.SessionFamily {
	return routing.SessionFamily{
		Family: c.Name, Up: c.State == "UP",
		Sent: c.Exported, Accepted: c.Imported,
		Received: c.Received, Rejected: c.Invalid + c.Filtered, LimitHit: c.LimitHit,
	}
}

// ospfSessions are the neighbors of one instance, or one session that is down if
// there are none.
func ospfSessions(p birdc.Protocol, neighbors []birdc.OSPFNeighbor) []routing.Session {
	var out []routing.Session
	var families []routing.SessionFamily
	for _, c := range p.Channels {
		families = append(families, familyOf(c))
	}
	for _, n := range neighbors {
		if n.Protocol == p.Name {
			out = append(out, routing.Session{
				Protocol: "ospf", Name: n.Interface + " " + n.RouterID, Router: n.Address,
				Up: n.State == "Full", State: n.State + "/" + n.Role, Families: families,
			})
		}
	}
	if len(out) == 0 {
		out = []routing.Session{{Protocol: "ospf", Name: p.Name, State: "no neighbor", Families: families}}
	}
	return out
}

// noListener is BIRD's last error of a session that could not listen on its port.
const noListener = "No listening socket"

// withoutListener are the protocols that BIRD has stopped because their port was
// taken, and that in wants to run.
func withoutListener(protocols []birdc.Protocol, in routing.Intent) (names []string) {
	for _, p := range protocols {
		if p.BGP == nil || p.State != "down" || !strings.Contains(p.BGP.LastError, noListener) {
			continue
		}
		if peer, ok := peerOf(in, bgpName(p.Name)); ok && !peer.Disabled {
			if _, known := in.Passwords[orNone(peer.Password)]; known || peer.Password == nil {
				names = append(names, p.Name)
			}
		}
	}
	return names
}

func orNone(ref *config.SecretRef) config.SecretRef {
	if ref == nil {
		return config.SecretRef{}
	}
	return *ref
}

func peerOf(in routing.Intent, name string) (config.BGPPeer, bool) {
	if in.BGP != nil {
		for _, p := range in.BGP.Peers {
			if p.Name == name {
				return p, true
			}
		}
	}
	return config.BGPPeer{}, false
}

// explain replaces BIRD's last error, or its silence, where the reason why a session
// is down can be read from the node, and adds the remedy.
func explain(in routing.Intent, s *routing.Session) {
	p, ok := peerOf(in, s.Name)
	if !ok || s.Protocol != "bgp" || s.Up || p.Disabled {
		return
	}
	switch {
	case strings.Contains(s.LastError, noListener):
		s.LastError = fmt.Sprintf("another program on the node listens on TCP port %d: stop it (ss -ltnp 'sport = :%d' shows which), or set spec.bgp.listenPort", in.BGP.ListenPort, in.BGP.ListenPort)
	case p.Source.IsValid() && !in.Has(p.Source):
		s.LastError = fmt.Sprintf("sourceAddress %s is on no interface of the node: change it, or leave it out for an address of the link", p.Source)
	case s.State == "Idle" && p.Addr.IsValid() && p.Multihop == 0 && !p.Addr.IsLinkLocalUnicast() && !onLink(in, p):
		s.LastError = fmt.Sprintf("address %s is on no subnet of the node's links: set multihop to the number of hops (2 with one router in between), or give the link an address of the router's subnet", p.Addr)
	}
}

func onLink(in routing.Intent, p config.BGPPeer) bool {
	return slices.ContainsFunc(in.OnLink, func(link netip.Prefix) bool { return link.Contains(p.Addr) })
}

// recovery says for which routers BIRD waits before it announces and withdraws again,
// after its start as a restart (RFC 4724 section 4.1); "" if for none.
func recovery(protocols []birdc.Protocol) string {
	var pending []string
	for _, p := range protocols {
		if slices.ContainsFunc(p.Channels, func(c birdc.Channel) bool { return c.RecoveryPending }) {
			pending = append(pending, bgpName(p.Name))
		}
	}
	if len(pending) == 0 {
		return ""
	}
	slices.Sort(pending)
	return fmt.Sprintf("BIRD has started again and announces and withdraws nothing until it has the routes of %s, or gives up waiting", strings.Join(pending, ", "))
}
