//go:build linux

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/address/ipam"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/routing"
)

// conditionAccepted: the spec is valid and in force.
const conditionAccepted = "Accepted"

// nodeState is what has become of the node's NodeConfig.
type nodeState struct {
	// inForce is what pods get now. While it is nil, they are not served, and
	// unavailable has the reason.
	inForce     *inForce
	unavailable string
	// fault is why the node's own routes and settings in the kernel are not what they
	// should be; empty: they are.
	fault string
	// newest is the NodeConfig that was seen last, and err why it is not in force.
	// The UID is empty if there was none.
	newest struct {
		uid        types.UID
		generation int64
		err        error
	}
}

// inForce is a configuration that the node has been brought to. It is replaced as
// a whole, so that a call sees one configuration from beginning to end.
type inForce struct {
	node   config.Node
	addrs  []netip.Addr   // of the node's own interfaces
	onLink []netip.Prefix // their subnets
	held   []netip.Addr   // of all links, for sessions
	mtu    int            // of pods' links, in bytes
}

// node brings the node to its NodeConfig: it configures the allocator and the
// routes of the pod CIDRs, again whenever the NodeConfig, the CIDRs in use or the
// node's uplinks change.
type node struct {
	name      string
	configs   cell.Reader[observed]
	templates cell.Reader[fleet.Decision]
	allocator allocator
	retired   *cell.Topic // when allocator.Retired may have changed
	kernel    *cell.Topic // when what in the kernel cannot be repaired has changed
	host      *wiring.Host
	log       *slog.Logger

	cell.Cell[nodeState] // what was published last
	// What follows is Run's alone.
	state   nodeState
	newest  observed
	current observed // newest, or the last before it that is valid
	deleted bool     // newest is not there any more
	applied struct {
		uplinks uplinks
		retired []netip.Prefix
	}
}

// allocator is the ledger, as the node uses it.
type allocator interface {
	Configure(ipam.Config)
	// Retired are CIDRs in which pods hold addresses still, though the NodeConfig
	// does not have them any more.
	Retired() []netip.Prefix
}

func (n *node) open() {
	n.state.unavailable = fmt.Sprintf("flock's agent on node %s is starting", n.name)
	n.Set(n.state)
}

// Run applies the NodeConfig, at first the copy kept on the node.
func (n *node) Run(ctx context.Context) error {
	links, kernel := cell.Signal(), cell.Signal()
	n.kernel.Notify(kernel)
	return together(ctx,
		func(ctx context.Context) error { return n.follow(ctx, links, kernel) },
		func(ctx context.Context) error {
			return n.host.WatchUplinks(ctx, func() { cell.Wake(links) })
		})
}

func (n *node) follow(ctx context.Context, links, kernel <-chan struct{}) error {
	const linksSettle = time.Second // while an interface is being set up
	changed := cell.Signal()
	n.configs.Notify(changed)
	n.templates.Notify(changed)
	n.retired.Notify(changed)
	delay := backoff.Backoff{First: 200 * time.Millisecond, Last: 10 * time.Second}
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	settled := settling{after: linksSettle}
	for {
		due := false
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
			due = true
		case <-kernel: // perhaps of the node's own routes and settings
			due = n.state.inForce != nil
		case <-links:
			settled.begin()
		case <-settled.over:
			settled.over = nil
			now, err := readUplinks(n.host)
			due = err != nil || !reflect.DeepEqual(now, n.applied.uplinks)
		case <-changed:
			due = n.observe(n.configs.Get())
			due = due || n.state.inForce != nil && !slices.Equal(n.allocator.Retired(), n.applied.retired)
		}
		if !due || n.current.object == nil {
			continue
		}
		err := n.apply()
		if err != nil {
			after := delay.Next()
			n.log.Warn("cannot apply the NodeConfig, will retry", "error", err, "after", after)
			n.setUnavailable("flock's agent on node %s cannot apply NodeConfig %s: %s", n.name, n.name, err)
			retry.Reset(after)
		} else {
			retry.Stop()
			delay.Reset()
		}
		if n.newest.same(n.current) { // else the refusal of the newest would be overwritten
			n.setNewest(err)
		}
	}
}

// settling turns the events of a while into one, that long after the first of them.
// It does not wait for them to end: they may never.
type settling struct {
	after time.Duration
	over  <-chan time.Time // nil while there was none
}

func (s *settling) begin() {
	if s.over == nil {
		s.over = time.After(s.after)
	}
}

// observe takes in the NodeConfig that was seen last and says whether it is to be
// applied. An object that is refused or gone leaves in force what is: deleting an
// object must not take pods off the network.
func (n *node) observe(now observed) (due bool) {
	switch {
	case now.object == nil && !now.synced:
		n.setUnavailable("flock's agent on node %s is waiting for NodeConfig %s from the API server", n.name, n.name)
	case now.object == nil:
		if n.state.inForce != nil && !n.deleted {
			n.log.Warn("the NodeConfig was deleted; the last one stays in force until flock is removed from this node", "nodeConfig", n.name)
		}
		n.deleted = true
		n.setUnavailable("node %s has no NodeConfig: create NodeConfig %s with spec.podCIDRs%s", n.name, n.name, withoutTemplate(n.templates.Get()))
	case now.same(n.newest):
		n.deleted = false
	case now.err != nil:
		n.newest, n.deleted = now, false
		n.log.Error("ignoring an invalid NodeConfig", "error", now.err)
		n.setNewest(now.err)
		n.setUnavailable("%s: fix the object", now.err)
	default:
		n.newest, n.current, n.deleted = now, now, false
		return true
	}
	return false
}

// setUnavailable says why pods are not served, unless they are.
func (n *node) setUnavailable(format string, args ...any) {
	if n.state.inForce != nil {
		return
	}
	n.state.unavailable = fmt.Sprintf(format, args...)
	if n.Set(n.state) {
		n.log.Info("not serving pods", "reason", n.state.unavailable)
	}
}

func (n *node) setNewest(err error) {
	n.state.newest.uid, n.state.newest.generation, n.state.newest.err = n.newest.object.UID, n.newest.object.Generation, err
	n.Set(n.state)
}

// apply brings the node to the current NodeConfig. All of it can be repeated.
func (n *node) apply() error {
	want := n.current.node
	now, err := readUplinks(n.host)
	if err != nil {
		return err
	}
	exclude := slices.Clone(want.Exclude)
	for _, addr := range now.addrs {
		exclude = append(exclude, netip.PrefixFrom(addr, addr.BitLen()))
	}
	n.allocator.Configure(ipam.Config{
		Node: n.name, IPv6: want.IPv6, IPv4: want.IPv4, Exclude: exclude, Quarantine: want.Quarantine,
	})
	retired := n.allocator.Retired()
	n.state.fault = ""
	if _, err := n.host.ApplyNode(wiring.NodeState{Summaries: slices.Concat(want.Summaries(), retired)}); err != nil {
		n.state.fault = err.Error()
		n.Set(n.state)
		return err
	}
	mtu := want.MTU
	if mtu == 0 {
		if now.mtuErr != nil {
			return now.mtuErr
		}
		mtu = now.mtu
	}
	if n.state.inForce == nil {
		n.log.Info("serving pods", "ipv6", want.IPv6, "ipv4", want.IPv4, "mtu", mtu)
	}
	n.applied.uplinks, n.applied.retired = now, retired
	n.state.inForce = &inForce{node: want, addrs: now.addrs, onLink: now.onLink, held: now.held, mtu: mtu}
	n.state.unavailable = ""
	n.Set(n.state)
	return nil
}

// uplinks are what a configuration in force takes from the node's own links.
type uplinks struct {
	addrs  []netip.Addr
	onLink []netip.Prefix
	held   []netip.Addr // of all links
	mtu    int          // in bytes
	mtuErr error
}

func readUplinks(host *wiring.Host) (u uplinks, err error) {
	if u.addrs, err = host.Addrs(); err != nil {
		return u, err
	}
	slices.SortFunc(u.addrs, netip.Addr.Compare)
	links, err := sys.InterfaceAddrs()
	if err != nil {
		return u, err
	}
	u.onLink, u.held = routing.OnLink(links), netaddr.Held(links)
	u.mtu, u.mtuErr = host.UplinkMTU()
	return u, nil
}

// Unready implements Readier.
func (n *node) Unready() (reason, message string) {
	if state := n.Get(); state.inForce != nil {
		return "KernelOutOfSync", state.fault
	}
	return "Waiting", n.Get().unavailable
}

// Conditions implements Conditioner.
func (n *node) Conditions() []metav1.Condition {
	return []metav1.Condition{condition(conditionAccepted, n.Get().newest.err, "InForce", "NotInForce")}
}

// condition is True if there is no error, and else False with the error's text.
func condition(kind string, err error, reason, elseReason string) metav1.Condition {
	if err != nil {
		return metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: elseReason, Message: err.Error()}
	}
	return metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: reason}
}

var servingMetric = metric.New(metric.Gauge, "flock_serving",
	"1 while the agent serves pods: a NodeConfig is in force.",
	"0 for longer than a minute: pods of the node cannot start. The condition Ready of the NodeConfig says why.")

// Describe implements prometheus.Collector.
func (n *node) Describe(ch chan<- *prometheus.Desc) { ch <- servingMetric.Desc }

// Collect implements prometheus.Collector.
func (n *node) Collect(ch chan<- prometheus.Metric) {
	ch <- servingMetric.Bool(n.Get().inForce != nil)
}
