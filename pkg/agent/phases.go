//go:build linux

package agent

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/internal/otlp"
	"flock.fritzlab.net/flock/internal/version"
	"flock.fritzlab.net/flock/pkg/cni"
)

// phase is a part of an ADD or DEL. It ends where the next one begins.
type phase int

const (
	phaseWait      phase = iota // until the node takes pods
	phaseLookup                 // what the pod is, asks for, and may have
	phaseHold                   // until nobody else has an address that it asks for by name
	phaseRecord                 // of addresses that are allocated, or of their release
	phasePolicies               // of the network, until they are in force for the pod
	phaseContainer              // another change of the same container
	phaseGuard                  // the source addresses that it may have
	phaseLink                   // with addresses and routes, until packets flow; of a DEL: down
	phasePorts                  // of the node
	phaseCommit                 // of the record
	phaseUndo                   // what a failed ADD has done
	phases
)

func (p phase) String() string {
	return [phases]string{"wait", "lookup", "hold", "record", "policies", "container", "guard", "link", "ports", "commit", "undo"}[p]
}

var (
	addPhases = []phase{phaseWait, phaseLookup, phaseHold, phaseRecord, phasePolicies, phaseContainer, phaseGuard, phaseLink, phasePorts, phaseCommit, phaseUndo}
	delPhases = []phase{phaseContainer, phaseRecord, phaseLink, phasePorts, phasePolicies}
)

// stopwatch measures calls: all of them for the metrics, and for a collector if there is
// one. It is nobody's wait: what the collector does not take in time is dropped.
type stopwatch struct {
	calls    *prometheus.HistogramVec
	phases   *prometheus.HistogramVec
	of       map[string]*[phases]prometheus.Observer // phases of a command
	exporter *otlp.Exporter
}

func newStopwatch(c Config) *stopwatch {
	w := &stopwatch{
		calls:  callsMetric.NewHistogram(prometheus.ExponentialBuckets(0.0001, 2, 16)),
		phases: phasesMetric.NewHistogram(prometheus.ExponentialBuckets(0.0001, 4, 8)), // 0.1 ms to 1.6 s
		of:     map[string]*[phases]prometheus.Observer{},
		exporter: otlp.New(otlp.Config{
			Endpoint: c.OTLPEndpoint, Settings: c.OTLP, Log: c.Log,
			Resource: []otlp.Attribute{{Key: "service.name", Value: "flock-agent"}, {Key: "service.version", Value: version.Version}, {Key: "k8s.node.name", Value: c.NodeName}},
		}),
	}
	for command, all := range map[string][]phase{cni.CommandAdd: addPhases, cni.CommandDel: delPhases} {
		w.of[command] = new([phases]prometheus.Observer)
		for _, p := range all {
			w.of[command][p] = w.phases.WithLabelValues(command, p.String())
		}
	}
	return w
}

// Run sends what was measured to the collector.
func (w *stopwatch) Run(ctx context.Context) { w.exporter.Run(ctx) }

// timing is that of one call. A nil one measures nothing.
type timing struct {
	w     *stopwatch
	call  *cni.Call
	began time.Time
	in    bool          // a phase
	phase phase         // the last one
	since time.Duration // after began
	err   error         // why it failed
	parts []otlp.Span   // the phases before it, if there is a collector
}

// start begins to measure an ADD or DEL.
func (w *stopwatch) start(c *cni.Call) timing { return timing{w: w, call: c, began: time.Now()} }

// enter ends the phase before, and begins p.
func (t *timing) enter(p phase) {
	if t == nil {
		return
	}
	now := time.Since(t.began)
	t.leave(now)
	t.in, t.phase, t.since, t.err = true, p, now, nil
}

// fail says that the phase has failed, unless err is nil. If it is said of no phase, the one
// in which the call returned its error has.
func (t *timing) fail(err error) {
	if t != nil {
		t.err = err
	}
}

func (t *timing) leave(now time.Duration) {
	if !t.in {
		return
	}
	t.w.of[t.call.Command][t.phase].Observe((now - t.since).Seconds())
	if t.w.exporter.Enabled() {
		part := otlp.Span{Name: t.phase.String(), From: t.since, To: now}
		if t.err != nil {
			part.Error = t.err.Error()
		}
		t.parts = append(t.parts, part)
	}
}

// end is deferred with the address of the call's error.
func (t *timing) end(err *error) {
	now := time.Since(t.began)
	t.leave(now)
	t.w.calls.WithLabelValues(t.call.Command, strconv.Itoa(int(codeOf(*err)))).Observe(now.Seconds())
	if t.w.exporter.Enabled() {
		t.w.exporter.Send(t.trace(now, *err))
	}
}

// codeOf is 0 for success.
func codeOf(err error) cni.Code {
	if err == nil {
		return 0
	}
	if coded := (*cni.Error)(nil); errors.As(err, &coded) {
		return coded.Code
	}
	return cni.CodeFailed
}

// trace is the call as the collector gets it. The names of attributes are OpenTelemetry's
// where it has one.
func (t *timing) trace(now time.Duration, err error) otlp.Trace {
	out := otlp.Trace{
		Span: otlp.Span{Name: "CNI " + t.call.Command, To: now}, Began: t.began, Parts: t.parts,
		Attributes: []otlp.Attribute{
			{Key: "k8s.namespace.name", Value: t.call.Pod.Namespace},
			{Key: "k8s.pod.name", Value: t.call.Pod.Name},
			{Key: "k8s.pod.uid", Value: string(t.call.Pod.UID)},
			{Key: "container.id", Value: t.call.ContainerID},
			{Key: "flock.request", Value: t.call.Request},
		},
	}
	if err == nil {
		return out
	}
	out.Error = err.Error()
	if last := len(out.Parts) - 1; last >= 0 && !slices.ContainsFunc(out.Parts, func(s otlp.Span) bool { return s.Error != "" }) {
		out.Parts[last].Error = out.Error
	}
	return out
}

var (
	callsMetric = metric.New(metric.Histogram, "flock_cni_call_duration_seconds",
		"Time that the agent took for an ADD or DEL, by CNI error code (0: success).",
		"Codes other than 0: pods fail to start or to end, see the log. 11: the runtime tries again. Above 0.1 s: the node is overloaded, or the API server is slow for pods that ask for an address by name.", "command", "code")
	phasesMetric = metric.New(metric.Histogram, "flock_cni_phase_duration_seconds",
		"Time that a phase of an ADD or DEL took; docs/tracing.md has the phases.",
		"flock_cni_call_duration_seconds is high: this says where the time goes.", "command", "phase")
	spansMetric = metric.New(metric.Counter, "flock_spans_dropped_total",
		"Spans of calls that did not reach the collector of --otlp-endpoint, by reason: queue_full, unreachable or refused.",
		"Rising: traces are missing in the collector. Pods do not wait for it. The log has the collector's answer.", "reason")
)

// Describe implements prometheus.Collector.
func (w *stopwatch) Describe(ch chan<- *prometheus.Desc) {
	w.calls.Describe(ch)
	w.phases.Describe(ch)
	ch <- spansMetric.Desc
}

// Collect implements prometheus.Collector.
func (w *stopwatch) Collect(ch chan<- prometheus.Metric) {
	w.calls.Collect(ch)
	w.phases.Collect(ch)
	for reason, n := range w.exporter.Dropped() {
		ch <- spansMetric.Value(float64(n), reason.String())
	}
}
