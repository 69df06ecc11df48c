//go:build linux

package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/pkg/datapath/nodeguard"
)

// nodeGuard keeps the node guard at the configuration in force.
type nodeGuard struct {
	*nodeguard.Guard
	state  cell.Reader[nodeState]
	onLink func() ([]netip.Prefix, error) // by the kernel's routes
	log    *slog.Logger
}

// guardOf is what the node guard keeps with a configuration.
func guardOf(in *inForce) nodeguard.Desired {
	d := nodeguard.Desired{OnLink: slices.Clone(in.onLink)}
	if in.node.BGP != nil {
		d.BGPPort = in.node.BGP.ListenPort
	}
	return d
}

// onLinkEvery is how often the node's routes are read. Nothing here follows the kernel's
// notifications of routes that other programs change, and a late limit does no lasting harm.
const onLinkEvery = 30 * time.Second

// with adds the destinations of routes.
func with(d nodeguard.Desired, routed []netip.Prefix) nodeguard.Desired {
	d.OnLink = append(d.OnLink, routed...)
	slices.SortFunc(d.OnLink, netip.Prefix.Compare)
	d.OnLink = slices.Compact(d.OnLink)
	return d
}

// Run follows the configuration in force and the node's routes.
func (g nodeGuard) Run(ctx context.Context) error {
	changed := cell.Signal()
	g.state.Notify(changed)
	delay := backoff.Backoff{First: 200 * time.Millisecond, Last: 10 * time.Second}
	again := time.NewTimer(onLinkEvery)
	defer again.Stop()
	var routed []netip.Prefix // as read last
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again.C:
		}
		in := g.state.Get().inForce
		if in == nil {
			again.Reset(onLinkEvery)
			continue // what is in the kernel goes on
		}
		now, err := g.onLink()
		if err == nil {
			routed = now
		}
		if err := errors.Join(err, g.Set(with(guardOf(in), routed))); err != nil {
			after := delay.Next()
			g.log.Warn("cannot keep pods from services of the node, will retry", "error", err, "after", after)
			again.Reset(after)
			continue
		}
		again.Reset(onLinkEvery)
		delay.Reset()
	}
}

var (
	toNodeMetric = metric.New(metric.Counter, "flock_pod_to_node_dropped_packets_total",
		"Packets of pods to services of the node that are not for pods: BGP, BFD, OSPF, and what listens at link-local and multicast addresses.",
		"Rising: a pod tries them. See docs/antispoofing.md.")
	toNeighboursMetric = metric.New(metric.Counter, "flock_pod_to_neighbors_dropped_packets_total",
		"Packets of pods to addresses on the node's own subnets that were dropped because there were too many new addresses each second.",
		"Rising: a pod scans a subnet of the node, or more of its hosts are addressed at once than the limit allows. See docs/antispoofing.md.")
)

// Describe implements prometheus.Collector.
func (g nodeGuard) Describe(ch chan<- *prometheus.Desc) {
	metric.Describe(ch, toNodeMetric, toNeighboursMetric)
}

// Collect implements prometheus.Collector.
func (g nodeGuard) Collect(ch chan<- prometheus.Metric) {
	if d, err := g.Dropped(); err == nil {
		ch <- toNodeMetric.Value(float64(d.ToNode))
		ch <- toNeighboursMetric.Value(float64(d.ToNeighbours))
	}
}
