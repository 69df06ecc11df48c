package wiring

import (
	"errors"
	"net/netip"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// Observed is a pod's link with what hangs on it on the node's side: enough to know
// which addresses the pod has and how they are routed, with no other memory.
type Observed struct {
	Link
	// Addrs are the pod's addresses: those of the permanent neighbours.
	Addrs []netip.Addr
	// Routed and Announced are the addresses with a host route of
	// [kernel.MetricLocal] and of [kernel.MetricStatic] to the link.
	Routed, Announced []netip.Addr
}

// Observe reads the links of all pods but those that were released, and the node's
// summaries. It fails where a pod's link has another name and does not get its own back: its
// pod must not be taken for gone.
func (h *Host) Observe() (pods []Observed, summaries []netip.Prefix, err error) {
	have, err := h.look()
	if err = errors.Join(err, have.unnamed); err != nil {
		return nil, nil, err
	}
	for _, k := range have.links {
		if kernel.IsReleased(k.Group) {
			continue
		}
		o := Observed{Link: listed(k)}
		for _, n := range have.neighs[k.Index] {
			if netaddr.UnroutableReason(n.addr) == "" { // the other is the pod's link-local address
				o.Addrs = append(o.Addrs, n.addr)
			}
		}
		for _, r := range have.routes[k.Index] {
			switch {
			case !r.Dst.IsSingleIP():
			case r.Metric == kernel.MetricLocal:
				o.Routed = append(o.Routed, r.Dst.Addr())
			case r.Metric == kernel.MetricStatic:
				o.Announced = append(o.Announced, r.Dst.Addr())
			}
		}
		pods = append(pods, o)
	}
	return pods, have.node.Summaries, nil
}
