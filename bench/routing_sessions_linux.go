package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// sessionPatience is for sessions to come up again.
const sessionPatience = 45 * time.Second

// newRoutingGround is newGround in a lab with a router that speaks BGP.
func newRoutingGround(ctx context.Context, l *cluster.Lab) (*ground, error) {
	if l.Routing == fabric.OSPF {
		return nil, fmt.Errorf("lab %s speaks %s: bring it up with --routing %s", l.Dir.Lab(), l.Routing, fabric.BGP)
	}
	return newGround(ctx, l)
}

// sessionsOf are the router's sessions with a node.
func sessionsOf(l *cluster.Lab, node string) ([]fabric.Session, error) {
	all, err := l.Sessions()
	of := slices.DeleteFunc(all, func(s fabric.Session) bool { return !strings.HasPrefix(s.Name, node+"_") })
	if err == nil && len(of) == 0 {
		err = fmt.Errorf("the router has no BGP session with %s: see lab exec %s -- birdc show protocols", node, plan.Tor)
	}
	return of, err
}

// awaitSessions waits until the node's sessions are up and, if they have been
// replaced, none of them is one of before. A session is up when the node has said
// all that it has to: one that ends before that in a restart does lose its routes
// (RFC 4724 section 4.2).
func awaitSessions(ctx context.Context, l *cluster.Lab, node string, replaced bool, before []fabric.Session) error {
	ctx, cancel := context.WithTimeout(ctx, sessionPatience)
	defer cancel()
	return process.Await(ctx, "the sessions of "+node, nil, func(context.Context) error {
		now, err := sessionsOf(l, node)
		if err != nil {
			return err
		}
		for _, s := range now {
			switch {
			case !s.Established() || s.Restarting:
				return fmt.Errorf("%s: %s since %s, restarting: %t", s.Name, s.State, s.Since, s.Restarting)
			case replaced && slices.ContainsFunc(before, s.Same):
				return fmt.Errorf("%s: still up since %s", s.Name, s.Since)
			}
		}
		return nil
	})
}

// restartSessions restarts both ends of a node's sessions. After several errors in a
// row they would wait longer and longer before the next attempt.
func restartSessions(ctx context.Context, l *cluster.Lab, node string) error {
	for _, at := range [][]string{
		{plan.Tor, "birdc", "restart", `"` + node + `_*"`},
		{node, "birdc", "-s", birdControl, "restart", `"peer_*"`},
	} {
		if _, err := on(l, at[0], at[1:]...); err != nil {
			return err
		}
	}
	return awaitSessions(ctx, l, node, false, nil)
}

// on runs a command in a member and returns what it printed.
func on(l *cluster.Lab, member string, argv ...string) (string, error) {
	cmd, err := l.Command(member, argv...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s on %s: %w: %s", strings.Join(argv, " "), member, err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// awaitBFD waits until the router has, or has not, BFD sessions up with all
// addresses of the nodes.
func awaitBFD(ctx context.Context, l *cluster.Lab, up bool, nodes ...plan.Node) error {
	ctx, cancel := context.WithTimeout(ctx, sessionPatience)
	defer cancel()
	return process.Await(ctx, "BFD at the router", nil, func(context.Context) error {
		said, err := on(l, plan.Tor, "birdc", "show", "bfd", "sessions")
		if err != nil {
			return err
		}
		var wrong []error
		for _, n := range nodes {
			for _, p := range n.LAN().All() {
				if is := bfdUp(said, p.Addr().String()); is != up {
					wrong = append(wrong, fmt.Errorf("%s: up: %t, want %t", p.Addr(), is, up))
				}
			}
		}
		return errors.Join(wrong...)
	})
}

// bfdUp reads the answer of birdc show bfd sessions: address, interface, state, …
func bfdUp(birdc, addr string) bool {
	for line := range strings.Lines(birdc) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == addr {
			return f[2] == "Up"
		}
	}
	return false
}

// awaitVia waits until the router's kernel spreads what is for an address over all
// these nodes.
func awaitVia(ctx context.Context, l *cluster.Lab, addr netip.Addr, nodes []plan.Node) error {
	ctx, cancel := context.WithTimeout(ctx, sessionPatience)
	defer cancel()
	return process.Await(ctx, fmt.Sprintf("the router's routes to %s", addr), nil, func(context.Context) error {
		route, err := on(l, plan.Tor, "ip", "-6", "route", "show", addr.String())
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if via := n.LAN().IPv6.Addr().String(); !strings.Contains(route, "via "+via+" ") {
				return fmt.Errorf("none via %s: %q", via, strings.TrimSpace(route))
			}
		}
		return nil
	})
}
