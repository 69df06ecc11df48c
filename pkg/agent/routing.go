//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/bird"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
	"flock.fritzlab.net/flock/pkg/routing/departure"
)

const (
	// conditionRouting: the routing daemon runs what the spec asks of it.
	conditionRouting = "RoutingConfigured"
	// conditionSessions: every session with a router is up.
	conditionSessions = "SessionsUp"
)

// router keeps the routing daemon at the NodeConfig in force, the AddressPools and
// the passwords shared with routers.
type router struct {
	departing cell.Reader[departure.Decision]
	namespace string       // of the Secrets
	addresses []netip.Addr // the Node's InternalIPs
	opened    cell.Reader[opened]
	state     cell.Reader[nodeState]
	pools     cell.Reader[poolSet]
	log       *slog.Logger

	bird    *bird.Applier
	daemon  cell.Cell[daemon]  // written by bird's OnChange
	missing cell.Cell[missing] // in what bird has
	set     bool               // bird has got a configuration; follow's own
}

// missing says which passwords are missing.
type missing struct {
	err error
	// waits: for some of them it is not known yet that there is none.
	waits bool
}

// daemon is what BIRD has come to.
type daemon struct {
	bird.State
	// last are the sessions that BIRD reported last, also while it is away.
	last []routing.Session
}

// open makes dir, which holds the configuration and BIRD's socket.
func (r *router) open(dir string) error {
	if err := sys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	r.bird = bird.NewApplier(bird.ApplierConfig{
		Dir:    dir,
		Socket: filepath.Join(dir, "bird.ctl"),
		Check:  bird.CheckFile("bird"),
		OnChange: func(s bird.State) {
			last := s.Sessions
			if len(last) == 0 {
				last = r.daemon.Get().last
			}
			r.daemon.Set(daemon{s, last})
		},
		Log: r.log,
	})
	return nil
}

// Run renders the configuration again whenever that which it is made of changes.
func (r *router) Run(ctx context.Context) error {
	return together(ctx, r.follow, func(ctx context.Context) error { r.bird.Run(ctx); return nil })
}

func (r *router) follow(ctx context.Context) error {
	const poolsSettle = 100 * time.Millisecond // many at once are one change of BIRD's configuration
	state, pools, changed := cell.Signal(), cell.Signal(), cell.Signal()
	r.departing.Notify(changed)
	r.opened.Notify(changed)
	r.state.Notify(state)
	r.pools.Notify(pools)
	settled := settling{after: poolsSettle}
	var want *inForce // what was rendered last
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-state:
			now := r.state.Get().inForce
			if reflect.DeepEqual(now, want) {
				continue
			}
			want = now
		case <-changed:
		case <-pools:
			settled.begin()
			continue
		case <-settled.over:
			settled.over = nil
		}
		if want != nil {
			r.render(want)
		}
	}
}

// Unsettled implements Settler: an image with a configuration that BIRD refuses must not be
// rolled out further, and until BIRD has recovered from its start a withdrawal does not
// reach the routers. Nor must one be that gets no passwords, from a flock-controller of an
// earlier version, say. That BIRD is absent is for its own container's probe.
func (r *router) Unsettled() string {
	d := r.daemon.Get()
	if d.Err != nil && !errors.Is(d.Err, birdc.ErrAbsent) {
		return fmt.Sprintf("BIRD does not run this node's configuration: %v", d.Err)
	}
	if m := r.missing.Get(); m.waits {
		return m.err.Error()
	}
	return d.Recovering
}

// render gives the routing daemon its configuration. At the agent's start, where BIRD has run
// before, it waits until of each password is known what it is, or that there is none: without
// it a session that is up would end.
func (r *router) render(in *inForce) {
	intent := routing.IntentOf(in.node)
	intent.OnLink = in.onLink
	intent.Addresses, intent.Held = r.addresses, in.held
	intent.Departing = r.departing.Get().Withdraw
	pools := r.pools.Get()
	intent.Pools = routing.PoolsOf(slices.Concat(pools.pools, pools.retained))
	opened := r.opened.Get()
	var missing missing
	for _, ref := range intent.Secrets() {
		p, known := opened[ref]
		if !known {
			p = openedPassword{err: errors.New("flock-controller has not encrypted it for this node yet: see that it runs and is of this version"), waits: true}
		}
		if p.err != nil {
			missing.waits = missing.waits || p.waits
			missing.err = errors.Join(missing.err, fmt.Errorf("secret %s/%s, key %s: %w; the sessions that need it stay down", r.namespace, ref.Name, ref.Key, p.err))
			continue
		}
		if intent.Passwords == nil {
			intent.Passwords = map[config.SecretRef]routing.Password{}
		}
		intent.Passwords[ref] = p.password
	}
	if missing.waits && !r.set && r.bird.RanBefore() {
		missing.err = fmt.Errorf("BIRD keeps the configuration that it has until all passwords are there: %w", missing.err)
	} else {
		r.bird.Set(intent)
		r.set = true
	}
	if r.missing.Set(missing) && missing.err != nil {
		r.log.Warn("passwords shared with routers are missing", "error", missing.err)
	}
}

// Notify implements Follower.
func (r *router) Notify(ch chan<- struct{}) {
	r.daemon.Notify(ch)
	r.missing.Notify(ch)
}

// Conditions implements Conditioner.
func (r *router) Conditions() []metav1.Condition {
	daemon := r.daemon.Get()
	err := errors.Join(r.missing.Get().err, daemon.Err)
	loaded := condition(conditionRouting, err, "Loaded", "NotLoaded")
	if !daemon.Loaded {
		loaded.Status, loaded.Reason = metav1.ConditionFalse, "NotLoaded"
	}
	return []metav1.Condition{r.sessionsUp(daemon.State), loaded}
}

// sessionsUp judges what BIRD said last of its sessions. One that is disabled in the
// spec is not missed.
func (r *router) sessionsUp(s bird.State) metav1.Condition {
	all := s.Sessions
	c := metav1.Condition{Type: conditionSessions, Status: metav1.ConditionTrue, Reason: "AllUp"}
	asked := false
	disabled := map[string]bool{}
	if in := r.state.Get().inForce; in != nil {
		asked = in.node.OSPF != nil
		for _, p := range bgpPeers(in) {
			disabled[p.Name] = p.Disabled
			asked = asked || !p.Disabled
		}
	}
	if asked && s.Silent {
		c.Status, c.Reason, c.Message = metav1.ConditionUnknown, "NotKnown", "BIRD runs and does not answer: what is shown of its sessions is from before, and routers end them. Its container is restarted after two minutes of that; its log may say why"
		return c
	}
	if asked && len(all) == 0 {
		c.Status, c.Reason, c.Message = metav1.ConditionUnknown, "NotKnown", "BIRD does not report its sessions: see RoutingConfigured"
		return c
	}
	var down []string
	for _, s := range all {
		if !s.Up && !(s.Protocol == "bgp" && disabled[s.Name]) {
			down = append(down, fmt.Sprintf("%s %s: %s", s.Protocol, s.Name, strings.TrimSpace(s.State+" "+s.LastError)))
		}
	}
	if len(down) > 0 {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "SomeDown", strings.Join(down, "; ")
	}
	return c
}

func bgpPeers(in *inForce) []config.BGPPeer {
	if in == nil || in.node.BGP == nil {
		return nil
	}
	return in.node.BGP.Peers
}

// Report implements Reporter.
func (r *router) Report(_ context.Context, status *v1alpha1.NodeConfigStatus) {
	const most = 64
	status.Sessions = nil
	all := r.daemon.Get().Sessions
	for _, s := range all[:min(len(all), most)] {
		t := v1alpha1.SessionStatus{Protocol: s.Protocol, Peer: s.Name, Router: s.Router, Up: s.Up, State: s.State, LastError: s.LastError}
		if !s.Since.IsZero() {
			t.Since = &metav1.Time{Time: s.Since.Truncate(time.Second)}
		}
		for _, f := range s.Families {
			t.Sent += int32(f.Sent)
			t.Accepted += int32(f.Accepted)
			t.Rejected += int32(f.Rejected)
		}
		status.Sessions = append(status.Sessions, t)
	}
}

var (
	sessionMetric = metric.New(metric.Gauge, "flock_session_up",
		"1 while the session with a router is up; 0 while it is not, or BIRD is away.",
		"0: the router does not learn this node's routes by this session. The condition SessionsUp has the reason.", "protocol", "peer")
	appliesMetric = metric.New(metric.Counter, "flock_bird_applies_total",
		"Configurations that BIRD was asked to load.",
		"Rising while neither the NodeConfig nor an AddressPool or a Secret changes: something changes back and forth.")
	configuredMetric = metric.New(metric.Gauge, "flock_bird_configured",
		"1 while BIRD runs the node's configuration.",
		"0 for longer than a few seconds: BIRD is away or refused the configuration. The condition RoutingConfigured has the reason.")
)

// Describe implements prometheus.Collector.
func (r *router) Describe(ch chan<- *prometheus.Desc) {
	metric.Describe(ch, sessionMetric, appliesMetric, configuredMetric)
}

// Collect implements prometheus.Collector.
func (r *router) Collect(ch chan<- prometheus.Metric) {
	daemon := r.daemon.Get()
	ch <- appliesMetric.Value(float64(daemon.Applies))
	ch <- configuredMetric.Bool(daemon.Loaded)
	type session struct{ protocol, peer string }
	up := map[session]bool{}
	for _, s := range daemon.last {
		up[session{s.Protocol, s.Name}] = false
	}
	for _, p := range bgpPeers(r.state.Get().inForce) {
		up[session{"bgp", p.Name}] = false
	}
	for _, s := range daemon.Sessions {
		up[session{s.Protocol, s.Name}] = s.Up
	}
	for s, is := range up {
		ch <- sessionMetric.Bool(is, s.protocol, s.peer)
	}
}
