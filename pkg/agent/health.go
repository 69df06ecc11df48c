//go:build linux

package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/internal/version"
	"flock.fritzlab.net/flock/pkg/scrape"
)

// conditionMetrics: the agent cannot serve at --health-address or --metrics-address.
// There is no such condition while it can.
const conditionMetrics = "MetricsServed"

// health answers /healthz while the process runs, /readyz while it serves pods and
// BIRD has recovered from its start, and Prometheus at /metrics. The kubelet's probes
// ask at the socket, which no other program can take. From other machines Prometheus asks
// at the metrics address, over TLS, and there is nothing else there.
type health struct {
	socket  string
	address string // empty if not served
	metrics string // the metrics address; empty if not served
	tls     *tls.Config
	guard   *scrape.Guard
	parts   parts
	log     *slog.Logger

	fault, metricsFault cell.Cell[string] // why it does not serve; empty if it does
}

// Run serves until ctx ends.
func (h *health) Run(ctx context.Context) error {
	handler := h.handler()
	return together(ctx,
		func(ctx context.Context) error { return h.serveSocket(ctx, handler) },
		func(ctx context.Context) error {
			scrape.Address{Flag: "--health-address", Addr: h.address, Fault: &h.fault, Log: h.log}.Run(ctx, handler)
			return nil
		},
		func(ctx context.Context) error {
			only := http.NewServeMux()
			only.Handle("GET /metrics", handler)
			scrape.Address{Flag: "--metrics-address", Addr: h.metrics, TLS: h.tls, Fault: &h.metricsFault, Log: h.log}.Run(ctx, h.guard.Protect(only))
			return nil
		})
}

func (h *health) serveSocket(ctx context.Context, handler http.Handler) error {
	// The agent before this one has left its socket. It does not run any more, or this
	// one would not have got the plugin's.
	if err := sys.Remove(h.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", h.socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	for _, a := range each[Answerer](h.parts) {
		mux.Handle(a.Answer())
	}
	return scrape.Serve(ctx, listener, mux, h.log)
}

func (h *health) handler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, c := range h.parts.collectors() {
		registry.MustRegister(c)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		_, message := h.parts.unready()
		if message == "" {
			message = h.parts.unsettled()
		}
		if message != "" {
			http.Error(w, message, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// Notify implements Follower.
func (h *health) Notify(ch chan<- struct{}) {
	h.fault.Notify(ch)
	h.metricsFault.Notify(ch)
}

// Conditions implements Conditioner.
func (h *health) Conditions() []metav1.Condition {
	c := metav1.Condition{Type: conditionMetrics}
	var faults []string
	for _, fault := range []string{h.fault.Get(), h.metricsFault.Get()} {
		if fault != "" {
			faults = append(faults, fault)
		}
	}
	if len(faults) > 0 {
		c = condition(conditionMetrics, errors.New(strings.Join(faults, "; ")), "", "ListenFailed")
	}
	return []metav1.Condition{c}
}

// buildInfo is the metric of the agent's version.
type buildInfo struct{}

var buildMetric = metric.New(metric.Gauge, "flock_build_info",
	"Always 1; the label is the agent's version.",
	"Nodes with different versions for longer than a roll-out takes: it is stuck.", "version")

// Describe implements prometheus.Collector.
func (buildInfo) Describe(ch chan<- *prometheus.Desc) { ch <- buildMetric.Desc }

// Collect implements prometheus.Collector.
func (buildInfo) Collect(ch chan<- prometheus.Metric) { ch <- buildMetric.Value(1, version.Version) }
