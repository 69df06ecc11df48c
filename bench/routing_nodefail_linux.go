package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
)

// routingNodefail measures how long clients of an anycast address go on being sent
// to a node that is gone without a word.
var routingNodefail = Bench{
	Name:  "routing.nodefail",
	About: "a node is cut off, no link goes down: until clients are answered by another; with BFD a fifth, with hold time a twentieth as often",
	Run: func(ctx context.Context, l *cluster.Lab, n int) ([]Result, error) {
		g, err := newRoutingGround(ctx, l)
		if err != nil {
			return nil, err
		}
		results, err := nodefail(ctx, g, max(1, n/5), max(1, n/20))
		return results, errors.Join(err, g.remove(ctx))
	},
}

const (
	// probeEvery is the pace of the probes, probeFlows how many source ports they
	// have: the router spreads them over the two nodes.
	probeEvery = 500 * time.Microsecond
	probeFlows = 16
	// holdTime is the lab's, of nodes and router.
	holdTime = 9 * time.Second
	// settled is how long nothing is to happen before a cut, and to be lost after
	// the router has another way.
	settled = 300 * time.Millisecond
)

// failNodes have the pods that share the address.
var failNodes = plan.Nodes(2)

// failTimes are durations by cut: until traffic flows, and until the router's
// kernel has no way by the node any more.
type failTimes struct {
	Flows, Routed []time.Duration
	due, sent     int
}

func (t failTimes) results(how string) []Result {
	return []Result{
		{Name: "routing.nodefail." + how, Unit: "ms", Figures: Milliseconds(t.Flows)},
		{Name: "routing.nodefail." + how + ".routed", Unit: "ms", Figures: Milliseconds(t.Routed)},
	}
}

// nodefail cuts, turn by turn, some nodes off that speak BFD and one that does not.
func nodefail(ctx context.Context, g *ground, withBFD, withHold int) (results []Result, err error) {
	addr := anycastAddr(0, 1)
	began := monotonic()
	seen, err := observing(ctx, observeInput{PodsAPI: g.podsAPI(), Namespace: anycastName, Router: member.Of(g.lab.Dir, plan.Tor).NetNS()})
	if err != nil {
		return nil, err
	}
	defer seen.close()
	for _, n := range failNodes {
		if err := g.createOn(ctx, n.Name(), "fail-"+n.Name(), addr); err != nil {
			return nil, err
		}
	}
	if _, err := seen.await(ctx, began, podPatience, mark{routed, addr, true}); err != nil {
		return nil, err
	}
	f := failing{ground: g, seen: seen, addr: addr}
	defer func() { err = errors.Join(err, f.bfd(context.WithoutCancel(ctx), false)) }()
	var bfd, hold failTimes
	for i := range withHold {
		if err := f.bfd(ctx, true); err != nil {
			return nil, err
		}
		for range withBFD*(i+1)/withHold - withBFD*i/withHold {
			if err := f.cut(ctx, &bfd, 0); err != nil {
				return nil, fmt.Errorf("with BFD: %w", err)
			}
		}
		if err := f.bfd(ctx, false); err != nil {
			return nil, err
		}
		if err := f.cut(ctx, &hold, holdTime); err != nil {
			return nil, fmt.Errorf("with hold time: %w", err)
		}
	}
	results, base := bfd.results("bfd"), hold.results("hold")
	for i := range results {
		results[i].Baseline = &base[i]
	}
	return append(append(results, base...), unsent("routing.nodefail", bfd.due+hold.due, bfd.sent+hold.sent)), nil
}

// unsent is the share of a bench's packets that the machine had no time to send.
func unsent(bench string, due, sent int) Result {
	share := 100 * float64(due-sent) / float64(max(1, due))
	return Result{Name: bench + ".unsent", Unit: "%", Figures: Figures{N: due, P50: share, P99: share, Max: share}}
}

// failing are the two nodes.
type failing struct {
	*ground
	seen  *sightings
	addr  netip.Addr
	isBFD bool
	turn  int
}

// bfd has the nodes speak BFD with flock's defaults, or not.
func (f *failing) bfd(ctx context.Context, on bool) error {
	if on == f.isBFD {
		return nil
	}
	for _, n := range failNodes {
		type change struct {
			Op    string          `json:"op"`
			Path  string          `json:"path"`
			Value json.RawMessage `json:"value,omitempty"`
		}
		var patch []change
		for peer := range n.LAN().All() { // one over each family
			c := change{Op: "remove", Path: fmt.Sprintf("/spec/bgp/peers/%d/bfd", peer)}
			if on {
				c.Op, c.Value = "add", json.RawMessage("{}")
			}
			patch = append(patch, c)
		}
		body, err := json.Marshal(patch)
		if err != nil {
			return err
		}
		if _, err := f.lab.Kubectl(ctx, "", "patch", "nodeconfig", n.Name(), "--type=json", "--patch="+string(body)); err != nil {
			return err
		}
	}
	f.isBFD = on
	if err := awaitBFD(ctx, f.lab, on, failNodes...); err != nil {
		return err
	}
	if !on {
		// BIRD stops without a word, and the router takes the node for dead.
		for _, n := range failNodes {
			if err := restartSessions(ctx, f.lab, n.Name()); err != nil {
				return err
			}
		}
	}
	return f.whole(ctx)
}

// whole waits until both nodes announce the address.
func (f *failing) whole(ctx context.Context) error {
	for _, n := range failNodes {
		if err := awaitSessions(ctx, f.lab, n.Name(), false, nil); err != nil {
			return err
		}
	}
	return awaitVia(ctx, f.lab, f.addr, failNodes)
}

// cut cuts the nodes off in turn. It connects the node again when others have taken
// over, which takes at least atLeast.
func (f *failing) cut(ctx context.Context, times *failTimes, atLeast time.Duration) (err error) {
	node := failNodes[f.turn%len(failNodes)].Name()
	f.turn++
	s, err := streamTogether(ctx, streamsInput{
		Streams: []stream{{
			Name: "outside to anycast", NetNS: member.Of(f.lab.Dir, plan.Outside).NetNS(),
			To: netip.AddrPortFrom(f.addr, cluster.EchoPort), Flows: probeFlows,
		}},
		Every: probeEvery,
	})
	if err != nil {
		return err
	}
	time.Sleep(settled)
	at := monotonic()
	defer func() {
		err = errors.Join(err, fabric.Restore(f.lab.Dir, node))
		if err == nil {
			err = f.reconnect(ctx, node)
		}
	}()
	if err := fabric.Cut(f.lab.Dir, node); err != nil {
		return errors.Join(err, s.end())
	}
	// The route by way of both nodes is replaced by one, which is seen as its coming.
	moved := mark{routed, f.addr, true}
	routes, err := f.seen.await(ctx, at, atLeast+seenPatience, moved)
	if err != nil {
		return errors.Join(fmt.Errorf("%s is cut off: %w", node, err), s.end())
	}
	time.Sleep(settled)
	reports, err := s.stop()
	if err != nil {
		return err
	}
	r := reports[0]
	switch {
	case r.Lost == 0 || r.FirstLost < at-int64(settled):
		return fmt.Errorf("%s is cut off and %d of %d probes were lost: want some, and none long before", node, r.Lost, r.Sent)
	case r.Recovered == 0:
		return fmt.Errorf("%s is cut off and the last probes were lost as well, %d of %d", node, r.Lost, r.Sent)
	}
	times.Flows = append(times.Flows, time.Duration(r.Recovered-at))
	times.Routed = append(times.Routed, time.Duration(routes[moved]-at))
	times.due, times.sent = times.due+r.Due, times.sent+r.Sent
	return nil
}

// reconnect restarts a node's sessions and waits until they are up.
func (f *failing) reconnect(ctx context.Context, node string) error {
	if err := restartSessions(ctx, f.lab, node); err != nil {
		return err
	}
	if f.isBFD {
		if err := awaitBFD(ctx, f.lab, true, failNodes...); err != nil {
			return err
		}
	}
	return f.whole(ctx)
}
