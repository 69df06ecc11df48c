package agent_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"flock.fritzlab.net/flock/pkg/address/annotation"
)

// listen listens on the node's loopback.
func (n *node) listen(address string) net.Listener {
	n.t.Helper()
	var listener net.Listener
	var err error
	n.host.Run(func() { listener, err = net.Listen("tcp", address) })
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { listener.Close() })
	return listener
}

// TestSpans: a collector on the node gets each ADD and DEL with what it is about, its phases
// one after another, and the error of one that failed. The metrics have the same phases.
func TestSpans(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	requests := make(chan *collectorpb.ExportTraceServiceRequest, 100)
	collector := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		message := &collectorpb.ExportTraceServiceRequest{}
		if err == nil {
			err = proto.Unmarshal(body, message)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		requests <- message
	})}
	go collector.Serve(n.listen("127.0.0.1:4318"))
	t.Cleanup(func() { collector.Close() })
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	api.pools.set()
	api.pod("web-0", nil)
	api.pod("bad", map[string]string{annotation.Addresses: "10.1.0.77"}) // which the node does not allow
	n.start("--otlp-endpoint=http://127.0.0.1:4318")
	began := time.Now()
	p := n.sandbox("sandbox1")
	if err := p.addAs("web-0"); err != nil {
		t.Fatalf("%v\n%s", err, n.agentLog())
	}
	if err := n.sandbox("sandbox2").addAs("bad"); err == nil {
		t.Fatal("the pod has an address that it may not have")
	}
	p.mustDel()

	calls := map[string]*tracepb.Span{} // by name and container
	phases := map[string][]*tracepb.Span{}
	for len(calls) < 3 {
		select {
		case message := <-requests:
			for _, r := range message.ResourceSpans {
				if got := attributes(r.Resource.Attributes); got["service.name"] != "flock-agent" || got["k8s.node.name"] != "node1" || got["service.version"] == "" {
					t.Errorf("resource %v", got)
				}
				for _, s := range r.ScopeSpans[0].Spans {
					if len(s.ParentSpanId) == 0 {
						calls[s.Name+" "+attributes(s.Attributes)["container.id"]] = s
					} else {
						phases[string(s.ParentSpanId)] = append(phases[string(s.ParentSpanId)], s)
					}
				}
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("the collector has %v\n%s", calls, n.agentLog())
		}
	}
	for name, want := range map[string]struct{ pod, failed, phases string }{
		"CNI ADD sandbox1": {"web-0", "", "wait lookup hold record policies container guard link ports commit"},
		"CNI ADD sandbox2": {"bad", "lookup", "wait lookup"},
		"CNI DEL sandbox1": {"", "", "container record link ports policies"},
	} {
		call := calls[name]
		if call == nil {
			t.Errorf("there is no %s among %v", name, calls)
			continue
		}
		got := attributes(call.Attributes)
		if want.pod != "" && (got["k8s.namespace.name"] != "shop" || got["k8s.pod.name"] != want.pod || got["k8s.pod.uid"] != want.pod) {
			t.Errorf("%s: %v", name, got)
		}
		if request := got["flock.request"]; len(request) != 8 || !strings.Contains(n.agentLog(), "request="+request) {
			t.Errorf("%s: request %q is not in the log", name, request)
		}
		if failed := call.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR; failed != (want.failed != "") || failed && !strings.Contains(call.Status.Message, "spec.podCIDRs.static") {
			t.Errorf("%s: %v", name, call.Status)
		}
		if call.StartTimeUnixNano < uint64(began.UnixNano()) || call.EndTimeUnixNano > uint64(time.Now().UnixNano()) {
			t.Errorf("%s was from %d to %d", name, call.StartTimeUnixNano, call.EndTimeUnixNano)
		}
		var names []string
		until := call.StartTimeUnixNano
		for _, s := range phases[string(call.SpanId)] {
			names = append(names, s.Name)
			if string(s.TraceId) != string(call.TraceId) || s.StartTimeUnixNano < until || s.EndTimeUnixNano < s.StartTimeUnixNano || s.EndTimeUnixNano > call.EndTimeUnixNano {
				t.Errorf("%s: phase %s is not after the one before, and in the call: %v", name, s.Name, s)
			}
			until = s.EndTimeUnixNano
			if failed := s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR; failed != (s.Name == want.failed) {
				t.Errorf("%s: phase %s: %v", name, s.Name, s.Status)
			}
		}
		if strings.Join(names, " ") != want.phases {
			t.Errorf("%s: phases %v, want %s", name, names, want.phases)
		}
	}
	_, metrics := n.get("/metrics")
	for _, want := range []string{
		`flock_cni_phase_duration_seconds_count{command="ADD",phase="link"} 1`, `flock_cni_phase_duration_seconds_count{command="ADD",phase="lookup"} 2`,
		`flock_cni_phase_duration_seconds_count{command="DEL",phase="link"} 1`, `flock_spans_dropped_total{reason="refused"} 0`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

func attributes(all []*commonpb.KeyValue) map[string]string {
	m := map[string]string{}
	for _, a := range all {
		m[a.Key] = a.Value.GetStringValue()
	}
	return m
}

// TestCollectorIsAway: an ADD does not wait for a collector that is not there, that does
// not answer, or that wants no spans. What is lost is counted.
func TestCollectorIsAway(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		serve func(net.Listener)
		// seen says whether what must follow has.
		seen func(metrics, log string) bool
	}{
		"not there": {nil, func(_, log string) bool {
			return strings.Contains(log, "cannot send spans") && strings.Contains(log, "connection refused")
		}},
		"does not answer": {func(l net.Listener) { // connections wait in the listener for ever
		}, func(metrics, _ string) bool {
			return strings.Contains(metrics, `flock_spans_dropped_total{reason="queue_full"} `) && !strings.Contains(metrics, `flock_spans_dropped_total{reason="queue_full"} 0`)
		}},
		"refuses": {func(l net.Listener) { http.Serve(l, http.NotFoundHandler()) }, func(metrics, log string) bool {
			return !strings.Contains(metrics, `flock_spans_dropped_total{reason="refused"} 0`) && strings.Contains(log, "404 Not Found")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, nodeConfig)
			if c.serve != nil {
				go c.serve(n.listen("127.0.0.1:4318"))
			}
			n.start("--otlp-endpoint=http://127.0.0.1:4318")
			p := n.sandbox("a")
			var longest time.Duration
			calls := 0
			eventually(t, n.agentLog, func() error {
				for range 100 {
					before := time.Now()
					p.mustAdd()
					longest = max(longest, time.Since(before))
					calls++
				}
				if _, metrics := n.get("/metrics"); !c.seen(metrics, n.agentLog()) {
					lines := slices.DeleteFunc(strings.Split(metrics, "\n"), func(s string) bool { return !strings.HasPrefix(s, "flock_spans") })
					return fmt.Errorf("after %d ADDs: %v", calls, lines)
				}
				return nil
			})
			if longest > 5*time.Second { // half of what the collector gets for a request
				t.Errorf("an ADD took %v", longest)
			}
			t.Logf("%d ADDs, the longest took %v", calls, longest)
		})
	}
}

// TestCollectorsHeaders: a collector that wants headers gets them from the environment. With headers
// that are malformed the agent says so, without them, sends nothing, and serves pods.
func TestCollectorsHeaders(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		headers string
		reaches bool
	}{
		"good": {"authorization=Bearer%20ZZZ", true},
		"bad":  {"authorization=Bearer ZZZ,ZZZ", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, nodeConfig)
			requests := make(chan *http.Request, 100)
			collector := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { requests <- r })}
			go collector.Serve(n.listen("127.0.0.1:4318"))
			t.Cleanup(func() { collector.Close() })
			n.env = []string{"OTEL_EXPORTER_OTLP_HEADERS=" + c.headers, "OTEL_EXPORTER_OTLP_COMPRESSION=gzip"}
			n.start("--otlp-endpoint=http://127.0.0.1:4318")
			n.sandbox("a").mustAdd()
			const said = "OTEL_EXPORTER_OTLP_HEADERS: entry 2 has no =: want name=value"
			if c.reaches {
				select {
				case r := <-requests:
					if r.Header.Get("Authorization") != "Bearer ZZZ" || r.Header.Get("Content-Encoding") != "gzip" {
						t.Errorf("the collector gets %v", r.Header)
					}
				case <-time.After(20 * time.Second):
					t.Errorf("the collector gets nothing\n%s", n.agentLog())
				}
			} else if !strings.Contains(n.agentLog(), said) {
				t.Errorf("the log does not say %q:\n%s", said, n.agentLog())
			}
			if strings.Contains(n.agentLog(), "ZZZ") {
				t.Errorf("the log has the headers:\n%s", n.agentLog())
			}
		})
	}
}

// TestBadEndpoint: an agent with an endpoint that is no URL says so, without the password.
func TestBadEndpoint(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), filepath.Join(programs, "flock-agent"), "--otlp-endpoint=user:ZZZ@collector:4318").CombinedOutput()
	var exit *exec.ExitError
	if got := string(out); !errors.As(err, &exit) || exit.ExitCode() != 2 || strings.Contains(got, "ZZZ") || !strings.HasPrefix(got, `flock-agent: --otlp-endpoint: "user:xxxxx@collector:4318": want `) {
		t.Errorf("%v: %s", err, got)
	}
}
