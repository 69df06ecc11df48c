package bird

import (
	"context"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
)

// Backend is BIRD as a routing.Backend.
type Backend struct {
	Socket string // BIRD's control socket
}

var _ routing.Backend = Backend{}

// Render is the function of that name.
func (Backend) Render(in routing.Intent) []byte { return Render(in) }

// Sessions asks the running BIRD.
func (b Backend) Sessions(ctx context.Context) ([]routing.Session, error) {
	conn, err := birdc.Dial(ctx, b.Socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	protocols, err := conn.ShowProtocols(ctx)
	if err != nil {
		return nil, err
	}
	var neighbors []birdc.OSPFNeighbor
	if slices.ContainsFunc(protocols, isOSPF) {
		if neighbors, err = conn.ShowOSPFNeighbors(ctx); err != nil {
			return nil, err
		}
	}
	return sessions(protocols, neighbors), nil
}

func isOSPF(p birdc.Protocol) bool { return p.Kind == "OSPF" }

// sessions reads what BIRD says of the protocols that Render has named.
func sessions(protocols []birdc.Protocol, neighbors []birdc.OSPFNeighbor) []routing.Session {
	var out []routing.Session
	for _, p := range protocols {
		if name, ok := strings.CutPrefix(p.Name, peerPrefix); ok && p.BGP != nil {
			s := bgpSession(p)
			s.Name = strings.ReplaceAll(name, "_", "-")
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

// jitter is more than two answers of BIRD differ by about one moment: it counts
// back from its clock, which it reads once in a round of its loop. No session ends
// and is back within it, see connectDelay.
const jitter = connectDelay / 2

// keepSince gives sessions that stand as they were the time that was told first.
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

// isSessionOf tells whether BIRD made p for a router that called on an unnumbered
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
