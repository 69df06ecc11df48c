//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/kube"
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
	api       secretReader
	state     cell.Reader[nodeState]
	pools     cell.Reader[poolSet]
	log       *slog.Logger

	bird    *bird.Applier
	daemon  cell.Cell[daemon] // written by bird's OnChange
	secrets cell.Cell[error]  // why passwords are missing in what bird has
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

type secretReader interface {
	SecretKey(ctx context.Context, namespace, name, key string) ([]byte, error)
}

// Run renders the configuration again whenever that which it is made of changes.
func (r *router) Run(ctx context.Context) error {
	return together(ctx, r.follow, func(ctx context.Context) error { r.bird.Run(ctx); return nil })
}

func (r *router) follow(ctx context.Context) error {
	const poolsSettle = 100 * time.Millisecond // many at once are one change of BIRD's configuration
	state, pools, departing, sessions := cell.Signal(), cell.Signal(), cell.Signal(), cell.Signal()
	r.daemon.Notify(sessions)
	r.departing.Notify(departing)
	r.state.Notify(state)
	r.pools.Notify(pools)
	delay := backoff.Backoff{First: 200 * time.Millisecond, Last: 10 * time.Second}
	again := time.NewTimer(0)
	again.Stop()
	defer again.Stop()
	settled := settling{after: poolsSettle}
	reread := newReread()
	var want *inForce // what was rendered last
	passwords := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		case <-state:
			now := r.state.Get().inForce
			if reflect.DeepEqual(now, want) {
				continue
			}
			want = now
		case <-departing:
		case <-pools:
			settled.begin()
			continue
		case <-sessions:
			if reread.sessions(r.sessionsUp(r.daemon.Get().Sessions).Status) && passwords && r.secrets.Get() == nil {
				again.Reset(reread.after())
			}
			continue
		case <-settled.over:
			settled.over = nil
		}
		if want == nil {
			continue
		}
		secrets, err := r.render(ctx, want)
		passwords = secrets
		r.secrets.Set(err)
		switch {
		case err != nil:
			after := delay.Next()
			r.log.Warn("cannot read the passwords shared with routers, will retry", "error", err, "after", after)
			again.Reset(after)
		case secrets:
			again.Reset(reread.after())
			delay.Reset()
		default:
			again.Stop()
			delay.Reset()
		}
	}
}

// reread says when to read the passwords again. A password that was changed at a router
// ends the session, so while one is down the Secrets are read more often.
type reread struct {
	down bool
	soon backoff.Backoff
}

// rereadEvery is how often passwords are read while all sessions are up; up to half more, so
// that nodes spread.
const rereadEvery = time.Minute

func newReread() reread {
	return reread{soon: backoff.Backoff{First: 5 * time.Second, Last: rereadEvery, Jitter: 0.5}}
}

// sessions takes the status of the condition of the sessions. It says whether one has just
// gone down, so that it is time to ask for after again.
func (r *reread) sessions(up metav1.ConditionStatus) (now bool) {
	down := up == metav1.ConditionFalse
	now = down && !r.down
	if now {
		r.soon.Reset()
	}
	r.down = down
	return now
}

// after is how long to wait before the next reading.
func (r *reread) after() time.Duration {
	if r.down {
		return r.soon.Next()
	}
	return rereadEvery + rand.N(rereadEvery/2)
}

// Unsettled implements Settler: an image with a configuration that BIRD refuses must not be
// rolled out further, and until BIRD has recovered from its start a withdrawal does not
// reach the routers. That BIRD is absent is for its own container's probe.
func (r *router) Unsettled() string {
	d := r.daemon.Get()
	if d.Err != nil && !errors.Is(d.Err, birdc.ErrAbsent) {
		return fmt.Sprintf("BIRD does not run this node's configuration: %v", d.Err)
	}
	return d.Recovering
}

// render gives the routing daemon its configuration. While a Secret cannot be read
// the daemon keeps what it has: without the password a session would end. secrets:
// the configuration takes passwords from Secrets.
func (r *router) render(ctx context.Context, in *inForce) (secrets bool, err error) {
	intent := routing.IntentOf(in.node)
	intent.OnLink = in.onLink
	intent.Addresses, intent.Held = r.addresses, in.held
	intent.Departing = r.departing.Get().Withdraw
	pools := r.pools.Get()
	intent.Pools = routing.PoolsOf(slices.Concat(pools.pools, pools.retained))
	refs := intent.Secrets()
	var missing error
	for _, ref := range refs {
		value, err := r.api.SecretKey(ctx, r.namespace, ref.Name, ref.Key)
		if err != nil && !errors.Is(err, kube.ErrNoSecret) {
			return true, err
		}
		var password routing.Password
		if err == nil {
			password, err = routing.ParsePassword(value)
		}
		if err != nil {
			missing = errors.Join(missing, fmt.Errorf("secret %s/%s, key %s: %w; the sessions that need it stay down", r.namespace, ref.Name, ref.Key, err))
			continue
		}
		if intent.Passwords == nil {
			intent.Passwords = map[config.SecretRef]routing.Password{}
		}
		intent.Passwords[ref] = password
	}
	r.bird.Set(intent)
	return len(refs) > 0, missing
}

// Notify implements Follower.
func (r *router) Notify(ch chan<- struct{}) {
	r.daemon.Notify(ch)
	r.secrets.Notify(ch)
}

// Conditions implements Conditioner.
func (r *router) Conditions() []metav1.Condition {
	daemon := r.daemon.Get()
	err := errors.Join(r.secrets.Get(), daemon.Err)
	loaded := condition(conditionRouting, err, "Loaded", "NotLoaded")
	if !daemon.Loaded {
		loaded.Status, loaded.Reason = metav1.ConditionFalse, "NotLoaded"
	}
	return []metav1.Condition{r.sessionsUp(daemon.Sessions), loaded}
}

// sessionsUp judges what BIRD said last of its sessions. One that is disabled in the
// spec is not missed.
func (r *router) sessionsUp(all []routing.Session) metav1.Condition {
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
