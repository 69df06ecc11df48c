//go:build linux

package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// The condition types of a NodeConfig.
const (
	// conditionAccepted: the spec is valid and in force.
	conditionAccepted = "Accepted"
	// conditionReady: pods are served.
	conditionReady = "Ready"
	// conditionRouting: the routing daemon runs what the spec asks of it.
	conditionRouting = "RoutingConfigured"
)

// outcome is what became of the newest NodeConfig.
type outcome struct {
	generation int64
	err        error
}

func (a *Agent) note(generation int64, err error) {
	a.latest.Store(&outcome{generation, err})
	a.changed()
}

// reportStatus writes the NodeConfig's status when it has changed, at most once a
// second, and again while the API server does not take it.
func (a *Agent) reportStatus(ctx context.Context) error {
	const interval, lastRetry = time.Second, 30 * time.Second
	var status, written v1alpha1.NodeConfigStatus
	pause := interval
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.statusDue:
		}
		latest := a.latest.Load()
		if latest == nil {
			continue // no object to write to is known yet
		}
		status.ObservedGeneration = latest.generation
		for _, c := range a.conditions(latest) {
			meta.SetStatusCondition(&status.Conditions, c)
		}
		status.ExitSource = a.exits.Status().Way.String()
		status.PodSource = a.pods.Status().Origin.String()
		status.RetiredCIDRs = nil
		for _, p := range a.ledger.Retired() {
			status.RetiredCIDRs = append(status.RetiredCIDRs, p.String())
		}
		if anycast, err := a.anycastStatus(ctx); err == nil {
			status.Anycast = anycast
		}
		if !reflect.DeepEqual(status, written) {
			call, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := a.api.PatchStatus(call, a.NodeName, status)
			cancel()
			if err != nil {
				a.Log.Debug("status is not written", "error", err, "retry", pause)
				pause = min(2*pause, lastRetry)
				a.changed()
			} else {
				written = *status.DeepCopy()
				pause = interval
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
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
	waiting := ""
	if a.serving.Load() == nil {
		waiting = *a.waiting.Load()
	}
	daemon := a.bird.State()
	return []metav1.Condition{
		condition(conditionAccepted, latest.err == nil, "InForce", "NotInForce", text(latest.err)),
		condition(conditionReady, waiting == "", "ServingPods", "Waiting", waiting),
		condition(conditionRouting, daemon.Loaded, "Loaded", "NotLoaded", text(daemon.Err)),
	}
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
		if a.serving.Load() == nil {
			http.Error(w, *a.waiting.Load(), http.StatusServiceUnavailable)
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
