//go:build linux

package agent

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"flock.fritzlab.net/flock/pkg/anycast"
	"flock.fritzlab.net/flock/pkg/cni"
	"flock.fritzlab.net/flock/pkg/pods"
	"flock.fritzlab.net/flock/pkg/store"
	"flock.fritzlab.net/flock/pkg/version"
)

// metrics are what is counted as it happens. What can be read off the state is
// read when Prometheus asks: see stateCollector.
type metrics struct {
	calls       *prometheus.HistogramVec
	transitions *prometheus.HistogramVec
}

func newMetrics() *metrics {
	fine := prometheus.ExponentialBuckets(0.0001, 2, 16) // 0.1 ms to 3.3 s
	return &metrics{
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "flock_cni_call_seconds", Buckets: fine,
			Help: "How long the agent took for a CNI call, by command and CNI error code (0: none).",
		}, []string{"command", "code"}),
		transitions: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "flock_anycast_transition_seconds", Buckets: fine,
			Help: "From the agent's learning of the cause to the kernel's having the change, by change (announce, withdraw) and reason.",
		}, []string{"change", "reason"}),
	}
}

// call is deferred with the address of the call's error.
func (m *metrics) call(command string, began time.Time, err *error) {
	code := cni.Code(0)
	if coded := (*cni.Error)(nil); errors.As(*err, &coded) {
		code = coded.Code
	} else if *err != nil {
		code = cni.CodeFailed
	}
	m.calls.WithLabelValues(command, strconv.Itoa(int(code))).Observe(time.Since(began).Seconds())
}

func (m *metrics) transition(t anycast.Transition) {
	change := "withdraw"
	if t.Announced {
		change = "announce"
	}
	m.transitions.WithLabelValues(change, string(t.Reason)).Observe(t.Latency().Seconds())
}

func (a *Agent) metricsHandler() http.Handler {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "flock_build_info", Help: "Always 1.", ConstLabels: prometheus.Labels{"version": version.Version},
	})
	build.Set(1)
	r.MustRegister(build, a.metrics.calls, a.metrics.transitions, stateCollector{a},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// stateCollector reads the agent's state when it is asked.
type stateCollector struct{ a *Agent }

var (
	descServing = prometheus.NewDesc("flock_serving", "1 while the agent serves pods.", nil, nil)
	descTaking  = prometheus.NewDesc("flock_taking_pods", "1 since the routers knew the way to the node's pods for the first time in this boot.", nil, nil)
	descRecords = prometheus.NewDesc("flock_attachments", "Attachments by state.", []string{"state"}, nil)
	descUsage   = prometheus.NewDesc("flock_addresses", "Addresses of a pod CIDR by state: held, or resting after their release.", []string{"cidr", "state"}, nil)
	descSource  = prometheus.NewDesc("flock_pod_source", "1 for where the node's pods are learned from now.", []string{"source"}, nil)
	descPaths   = prometheus.NewDesc("flock_anycast_paths", "Pods at anycast addresses, by whether they are announced.", []string{"announced"}, nil)
	descFlaps   = prometheus.NewDesc("flock_anycast_flaps", "Withdrawals of the pods that there are now.", nil, nil)
	descSpoofed = prometheus.NewDesc("flock_pod_spoofed_packets_total", "Packets of a pod that were dropped because their source is no address of its.", []string{"namespace", "pod"}, nil)
	descSession = prometheus.NewDesc("flock_session_up", "1 while the session with a router is up.", []string{"protocol", "peer"}, nil)
	descApplies = prometheus.NewDesc("flock_bird_applies_total", "How often BIRD was told to load a configuration.", nil, nil)
	descDropped = prometheus.NewDesc("flock_events_dropped_total", "Events of pods that were not written because the API server took them too slowly.", nil, nil)
	descLoaded  = prometheus.NewDesc("flock_bird_configured", "1 while BIRD runs the node's configuration.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descServing, descTaking, descRecords, descUsage, descSource, descPaths, descFlaps, descSpoofed, descSession, descApplies, descDropped, descLoaded} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s stateCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge(descServing, truth(s.a.serving.Load() != nil))
	gauge(descTaking, truth(*s.a.gate.missing.Load() == ""))
	states := map[string]int{}
	spoofed := map[string]uint64{} // by link
	if drops, _, err := s.a.guard.Counters(); err == nil {
		for _, d := range drops {
			spoofed[d.HostIf] = d.Packets
		}
	}
	byPod := map[[2]string]uint64{} // which may have two sandboxes
	for _, r := range s.a.ledger.Records() {
		states[string(r.State)]++
		if n, ok := spoofed[r.HostIf]; ok && r.State == store.Committed && r.PodName != "" {
			byPod[[2]string{r.PodNamespace, r.PodName}] += n
		}
	}
	for pod, n := range byPod {
		ch <- prometheus.MustNewConstMetric(descSpoofed, prometheus.CounterValue, float64(n), pod[0], pod[1])
	}
	for state, n := range states {
		gauge(descRecords, float64(n), state)
	}
	for _, u := range s.a.ledger.Usage() {
		gauge(descUsage, float64(u.Held), u.CIDR.String(), "held")
		gauge(descUsage, float64(u.Resting), u.CIDR.String(), "resting")
	}
	for _, o := range []pods.Origin{pods.None, pods.Kubelet, pods.APIServer} {
		gauge(descSource, truth(s.a.pods.Status().Origin == o), o.String())
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if status, err := s.a.anycast.Status(ctx); err == nil {
		announced, flaps := 0, 0
		for _, p := range status.Paths {
			if p.Announced {
				announced++
			}
			flaps += p.Flaps
		}
		gauge(descPaths, float64(announced), "true")
		gauge(descPaths, float64(len(status.Paths)-announced), "false")
		gauge(descFlaps, float64(flaps))
	}
	daemon := s.a.bird.State()
	ch <- prometheus.MustNewConstMetric(descApplies, prometheus.CounterValue, float64(daemon.Applies))
	gauge(descLoaded, truth(daemon.Loaded))
	ch <- prometheus.MustNewConstMetric(descDropped, prometheus.CounterValue, float64(s.a.events.Dropped()))
	for _, session := range daemon.Sessions {
		gauge(descSession, truth(session.Up), session.Protocol, session.Name)
	}
}
