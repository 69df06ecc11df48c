package anycast

import (
	"context"
	"fmt"
	"net/netip"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

var _ datapath.Feature = (*Controller)(nil)

// Name implements [datapath.Feature].
func (c *Controller) Name() string { return "anycast" }

// Kinds implements [datapath.Feature].
func (c *Controller) Kinds() []kernel.Kind {
	return []kernel.Kind{kernel.Route, kernel.Nexthop, kernel.Sysctl}
}

// Sync implements [datapath.Feature] for nexthops and for routes on them. It waits for Run to
// be running, or for the context's end.
func (c *Controller) Sync(ctx context.Context) ([]datapath.Repair, error) {
	answer := make(chan synced, 1)
	c.inbox.Put(message{sync: answer})
	select {
	case s := <-answer:
		return s.repairs, s.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// synced is the answer to a Sync.
type synced struct {
	repairs []datapath.Repair
	err     error
}

// repair is a change in words, where it was not decided but found.
func (c Change) repair() datapath.Repair {
	r := datapath.Repair{Kind: kernel.Route, Found: datapath.Missing}
	route := func(metric uint32) string {
		return fmt.Sprintf("%v proto %d metric %d", netip.PrefixFrom(c.Addr, c.Addr.BitLen()), kernel.RouteProtocol, metric)
	}
	switch c.Op {
	case Withdraw, Announce:
		r.Object = route(kernel.MetricAnnounced)
	case DelLocal, AddLocal:
		r.Object = route(kernel.MetricLocal)
	default:
		r.Kind, r.Object = kernel.Nexthop, "nexthop group of "+c.Addr.String()
	}
	switch c.Op {
	case Withdraw, DelLocal, DelGroup:
		r.Found = datapath.Stray
	case SetGroup:
		r.Found = "other members"
	}
	return r
}
