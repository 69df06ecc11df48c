//go:build linux

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/routing"
)

// The condition types of a NodeConfig.
const (
	// conditionAccepted: the spec is valid and in force.
	conditionAccepted = "Accepted"
	// conditionReady: pods are served.
	conditionReady = "Ready"
	// conditionRouting: the routing daemon runs what the spec asks of it.
	conditionRouting = "RoutingConfigured"
	// conditionSessions: every session with a router is up.
	conditionSessions = "SessionsUp"
)

// outcome is what became of the newest NodeConfig.
type outcome struct {
	uid        types.UID
	generation int64
	err        error
}

func (a *Agent) note(nc *v1alpha1.NodeConfig, err error) {
	a.latest.Store(&outcome{nc.UID, nc.Generation, err})
	a.changed()
}

// reportStatus writes the NodeConfig's status when something in it has changed
// that somebody may act on. A few changes are written at once, more at a pace at
// which a thousand nodes make fewer than 20 writes a second.
func (a *Agent) reportStatus(ctx context.Context) error {
	const (
		gather                = time.Second // what comes together is one write
		countsEvery           = time.Minute // for what alone is no reason to write
		firstRetry, lastRetry = time.Second, 30 * time.Second
	)
	pace := rate.NewLimiter(rate.Every(time.Minute), 10)
	var status, written v1alpha1.NodeConfigStatus
	var of types.UID // whose status that is
	var wrote time.Time
	counts := time.AfterFunc(countsEvery, a.changed)
	defer counts.Stop()
	retry := firstRetry
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.statusDue:
		}
		latest := a.latest.Load()
		there, ok := a.nodeConfig.Get(a.NodeName)
		if latest == nil || !ok && (of == "" || of != latest.uid) || ok && there.UID != latest.uid {
			continue // the object to write to is not known yet
		}
		if of != latest.uid { // what an agent before this one wrote goes on
			of, written = latest.uid, *there.Status.DeepCopy()
			status = v1alpha1.NodeConfigStatus{Conditions: slices.Clone(written.Conditions)}
			select { // BIRD and the API server are about to tell the rest
			case <-ctx.Done():
				return nil
			case <-time.After(gather):
			}
			latest = a.latest.Load()
		}
		a.fillStatus(ctx, latest, &status)
		if reflect.DeepEqual(status, written) {
			continue
		}
		if wait := countsEvery - time.Since(wrote); wait > 0 && reflect.DeepEqual(notable(status), notable(written)) {
			counts.Reset(wait)
			continue
		}
		if pace.Wait(ctx) != nil {
			return nil
		}
		a.fillStatus(ctx, a.latest.Load(), &status) // as it is after the wait
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := a.api.PatchStatus(call, a.NodeName, status)
		cancel()
		pause := gather
		if err == nil {
			written, wrote, retry = *status.DeepCopy(), time.Now(), firstRetry
		} else {
			a.Log.Debug("status is not written", "error", err, "retry", retry)
			pause = retry
			retry = min(2*retry, lastRetry)
			// One that was deleted has no status: a new one is told of.
			if _, ok := a.nodeConfig.Get(a.NodeName); ok || !a.nodeConfig.Synced() || !apierrors.IsNotFound(err) {
				a.statusDue.give()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// fillStatus makes status that of now. It keeps the times of conditions that did
// not change.
func (a *Agent) fillStatus(ctx context.Context, latest *outcome, status *v1alpha1.NodeConfigStatus) {
	status.ObservedGeneration = latest.generation
	for _, c := range a.conditions(latest) {
		meta.SetStatusCondition(&status.Conditions, c)
	}
	a.setTemplated(latest.generation, &status.Conditions)
	a.setUnique(latest.generation, &status.Conditions)
	status.PodSource = a.pods.Status().Origin.String()
	status.ExitSource = a.exits.Status().Way.String()
	status.RetiredCIDRs = nil
	for _, p := range slices.SortedFunc(slices.Values(a.ledger.Retired()), prefixesInOrder) {
		status.RetiredCIDRs = append(status.RetiredCIDRs, p.String())
	}
	status.Sessions = sessions(a.bird.State().Sessions)
	if anycast, err := a.anycastStatus(ctx); err == nil {
		status.Anycast = anycast
	}
}

// inOrder is how people read addresses: IPv6 before IPv4, then by number.
func inOrder(a, b netip.Addr) int {
	return cmp.Or(cmp.Compare(b.BitLen(), a.BitLen()), a.Compare(b))
}

func prefixesInOrder(a, b netip.Prefix) int {
	return cmp.Or(inOrder(a.Addr(), b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// notable is status without what changes all the time.
func notable(status v1alpha1.NodeConfigStatus) *v1alpha1.NodeConfigStatus {
	s := status.DeepCopy()
	for i := range s.Sessions {
		s.Sessions[i].Sent, s.Sessions[i].Accepted, s.Sessions[i].Rejected = 0, 0, 0
	}
	return s
}

func sessions(all []routing.Session) []v1alpha1.SessionStatus {
	const most = 64
	var out []v1alpha1.SessionStatus
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
		out = append(out, t)
	}
	return out
}

func (a *Agent) conditions(latest *outcome) []metav1.Condition {
	condition := func(kind string, ok bool, reason, elseReason, message string) metav1.Condition {
		c := metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: reason, Message: message, ObservedGeneration: latest.generation}
		if !ok {
			c.Status, c.Reason = metav1.ConditionFalse, elseReason
		}
		return c
	}
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	waiting, why := a.notReady(), "Waiting"
	if a.serving.Load() != nil {
		why = "WaitingForRouters"
	}
	daemon := a.bird.State()
	routed := daemon.Err
	if unrouted := a.unrouted.Load(); unrouted != nil {
		routed = errors.Join(*unrouted, daemon.Err)
	}
	sessions := condition(conditionSessions, true, "", "", "")
	sessions.Status, sessions.Reason, sessions.Message = a.sessionsUp(daemon.Sessions)
	return []metav1.Condition{
		condition(conditionAccepted, latest.err == nil, "InForce", "NotInForce", text(latest.err)),
		condition(conditionReady, waiting == "", "ServingPods", why, waiting),
		sessions,
		condition(conditionRouting, daemon.Loaded && routed == nil, "Loaded", "NotLoaded", text(routed)),
	}
}

// notReady is why pods that come now would wait; "" if they would not.
func (a *Agent) notReady() string {
	if a.serving.Load() == nil {
		return *a.waiting.Load()
	}
	return *a.gate.missing.Load()
}

// sessionsUp judges what BIRD said last of its sessions. One that is disabled in the
// spec is not missed. While BIRD says nothing, nothing is known.
func (a *Agent) sessionsUp(all []routing.Session) (status metav1.ConditionStatus, reason, message string) {
	var asked bool
	disabled := map[string]bool{}
	if s := a.serving.Load(); s != nil {
		asked = s.node.OSPF != nil
		if s.node.BGP != nil {
			for _, p := range s.node.BGP.Peers {
				disabled[p.Name] = p.Disabled
				asked = asked || !p.Disabled
			}
		}
	}
	if asked && len(all) == 0 {
		return metav1.ConditionUnknown, "NotKnown", "BIRD does not tell of its sessions"
	}
	var down []string
	for _, s := range all {
		if !s.Up && !(s.Protocol == "bgp" && disabled[s.Name]) {
			down = append(down, fmt.Sprintf("%s %s: %s", s.Protocol, s.Name, strings.TrimSpace(s.State+" "+s.LastError)))
		}
	}
	if len(down) > 0 {
		return metav1.ConditionFalse, "SomeDown", strings.Join(down, "; ")
	}
	return metav1.ConditionTrue, "AllUp", ""
}

// serveHealth answers the kubelet's probes: /healthz while the process runs,
// /readyz while it serves pods; and Prometheus: /metrics.
func (a *Agent) serveHealth(ctx context.Context) error {
	if a.HealthAddress == "" {
		return nil
	}
	listener, err := net.Listen("tcp", a.HealthAddress)
	if err != nil {
		return fmt.Errorf("--health-address=%s: %w", a.HealthAddress, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.Handle("GET /metrics", a.metricsHandler())
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if waiting := a.notReady(); waiting != "" {
			http.Error(w, waiting, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); ctx.Err() == nil {
		return fmt.Errorf("health server on %s: %w", a.HealthAddress, err)
	}
	return nil
}
