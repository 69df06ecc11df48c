package otlp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func call(name string) Trace {
	return Trace{
		Span: Span{Name: name, To: 5 * time.Millisecond, Error: "no address"}, Began: epoch,
		Attributes: []Attribute{{"k8s.pod.name", "web-0"}, {"empty", ""}},
		Parts:      []Span{{Name: "wait", To: time.Millisecond}, {Name: "lookup", From: time.Millisecond, To: 4 * time.Millisecond, Error: "no address"}},
	}
}

// running returns an exporter that runs until the test ends, and how to end it before.
func running(t *testing.T, endpoint string, transport http.RoundTripper) (e *Exporter, log *bytes.Buffer, stop func()) {
	log = &bytes.Buffer{}
	e = New(Config{Endpoint: endpoint, Resource: []Attribute{{"service.name", "test"}}, Log: slog.New(slog.NewTextHandler(log, nil))})
	e.client.Transport = transport
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { e.Run(ctx) })
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return e, log, stop
}

// TestWire holds what a collector gets against the protocol: the path, the content type,
// and the spans of a call, with the call as their parent.
func TestWire(t *testing.T) {
	type request struct {
		path, contentType string
		body              []byte
	}
	got := make(chan request, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- request{r.URL.Path, r.Header.Get("Content-Type"), body}
	}))
	defer server.Close()
	endpoint, err := ParseEndpoint(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	e, _, _ := running(t, endpoint, nil)
	e.Send(call("ADD"))
	e.Send(call("DEL"))
	r := <-got
	if r.path != "/v1/traces" || r.contentType != "application/x-protobuf" {
		t.Errorf("%s of type %s", r.path, r.contentType)
	}
	var message collectorpb.ExportTraceServiceRequest
	if err := proto.Unmarshal(r.body, &message); err != nil {
		t.Fatal(err)
	}
	if len(message.ResourceSpans) != 1 || len(message.ResourceSpans[0].ScopeSpans) != 1 {
		t.Fatal(&message)
	}
	if resource := text(message.ResourceSpans[0].Resource.Attributes); resource != "service.name=test" {
		t.Errorf("resource %q", resource)
	}
	spans := message.ResourceSpans[0].ScopeSpans[0].Spans
	if len(spans) != 6 {
		t.Fatal(spans)
	}
	ids := map[string]bool{}
	for i, s := range spans {
		root := spans[i/3*3]
		ids[string(s.SpanId)] = true
		if len(s.TraceId) != 16 || len(s.SpanId) != 8 || !bytes.Equal(s.TraceId, root.TraceId) {
			t.Errorf("span %d: trace %x, span %x", i, s.TraceId, s.SpanId)
		}
		if i%3 > 0 && !bytes.Equal(s.ParentSpanId, root.SpanId) || i%3 == 0 && len(s.ParentSpanId) != 0 {
			t.Errorf("span %d: parent %x, want %x", i, s.ParentSpanId, root.SpanId)
		}
	}
	if len(ids) != 6 || bytes.Equal(spans[0].TraceId, spans[3].TraceId) {
		t.Errorf("identifiers are used twice: %v", spans)
	}
	began := uint64(epoch.UnixNano())
	for i, want := range []*tracepb.Span{
		{Name: "ADD", Kind: tracepb.Span_SPAN_KIND_SERVER, StartTimeUnixNano: began, EndTimeUnixNano: began + 5e6, Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "no address"}, Attributes: attributes([]Attribute{{"k8s.pod.name", "web-0"}})},
		{Name: "wait", Kind: tracepb.Span_SPAN_KIND_INTERNAL, StartTimeUnixNano: began, EndTimeUnixNano: began + 1e6},
		{Name: "lookup", Kind: tracepb.Span_SPAN_KIND_INTERNAL, StartTimeUnixNano: began + 1e6, EndTimeUnixNano: began + 4e6, Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "no address"}},
	} {
		got := spans[i]
		got.TraceId, got.SpanId, got.ParentSpanId = nil, nil, nil
		if !proto.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

func text(attributes []*commonpb.KeyValue) string {
	var all []string
	for _, a := range attributes {
		all = append(all, a.Key+"="+a.Value.GetStringValue())
	}
	return strings.Join(all, " ")
}

// collector answers each attempt as the test says.
type collector func(attempt int) (*http.Response, error)

type counting struct {
	mu       sync.Mutex
	attempts int
	answer   collector
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.attempts++
	n := c.attempts
	c.mu.Unlock()
	return c.answer(n)
}

func status(code int, message proto.Message) *http.Response {
	body, err := proto.Marshal(message)
	if err != nil {
		panic(err)
	}
	return &http.Response{StatusCode: code, Status: http.StatusText(code), Body: io.NopCloser(bytes.NewReader(body))}
}

// TestCollectorFails: what is worth another attempt gets one, everything that is lost is
// counted, and the log says it once.
func TestCollectorFails(t *testing.T) {
	ok := &collectorpb.ExportTraceServiceResponse{}
	refused := errors.New("connection refused")
	for name, c := range map[string]struct {
		answer   collector
		attempts int
		dropped  map[Reason]uint64
		log      string
	}{
		"away": {func(int) (*http.Response, error) { return nil, refused }, attempts, map[Reason]uint64{Unreachable: 3}, "cannot send spans"},
		"away for a while": {func(n int) (*http.Response, error) {
			if n < 3 {
				return nil, refused
			}
			return status(http.StatusOK, ok), nil
		}, 3, nil, "the collector takes spans again"},
		"overloaded": {func(n int) (*http.Response, error) {
			if n == 1 {
				return status(http.StatusServiceUnavailable, ok), nil
			}
			return status(http.StatusOK, ok), nil
		}, 2, nil, "cannot send spans"},
		"another program": {func(int) (*http.Response, error) { return status(http.StatusNotFound, ok), nil }, 1, map[Reason]uint64{Refused: 3}, "refuses spans"},
		"some refused": {func(int) (*http.Response, error) {
			return status(http.StatusOK, &collectorpb.ExportTraceServiceResponse{PartialSuccess: &collectorpb.ExportTracePartialSuccess{RejectedSpans: 2, ErrorMessage: "too old"}}), nil
		}, 1, map[Reason]uint64{Refused: 2}, "too old"},
		"unknown answer": {func(int) (*http.Response, error) {
			r := status(http.StatusOK, ok)
			r.Body = io.NopCloser(strings.NewReader("fine"))
			return r, nil
		}, 1, nil, ""},
		"answer breaks off": {func(int) (*http.Response, error) {
			r := status(http.StatusOK, ok)
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader("x"), failing{}))
			return r, nil
		}, attempts, map[Reason]uint64{Unreachable: 3}, "cannot send spans"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				transport := &counting{answer: c.answer}
				e, log, stop := running(t, "http://collector:4318/v1/traces", transport)
				e.Send(call("ADD"))
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				stop()
				for r := range reasons {
					if got := e.Dropped()[r]; got != c.dropped[r] {
						t.Errorf("%s: %d spans dropped, want %d", r, got, c.dropped[r])
					}
				}
				if transport.attempts != c.attempts || !strings.Contains(log.String(), c.log) || strings.Count(log.String(), "level=WARN") > 1 {
					t.Errorf("%d attempts, want %d, and the log\n%s", transport.attempts, c.attempts, log)
				}
			})
		})
	}
}

// TestRetryAfter: a collector that says how long it wants to be left alone is, for a minute
// at most, and not for less than one that does not say it.
func TestRetryAfter(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		after  func() string
		waits  [2]time.Duration // at least, and less than
	}{
		"seconds":   {http.StatusTooManyRequests, func() string { return "30" }, [2]time.Duration{30 * time.Second, 31 * time.Second}},
		"a date":    {http.StatusServiceUnavailable, func() string { return time.Now().Add(20 * time.Second).UTC().Format(http.TimeFormat) }, [2]time.Duration{19 * time.Second, 21 * time.Second}},
		"too long":  {http.StatusTooManyRequests, func() string { return "86400" }, [2]time.Duration{longest, longest + time.Second}},
		"huge":      {http.StatusTooManyRequests, func() string { return "99999999999999999999" }, [2]time.Duration{time.Second, 2 * time.Second}},
		"long gone": {http.StatusServiceUnavailable, func() string { return epoch.Add(-time.Hour).Format(http.TimeFormat) }, [2]time.Duration{time.Second, 2 * time.Second}},
		"zero":      {http.StatusTooManyRequests, func() string { return "0" }, [2]time.Duration{time.Second, 2 * time.Second}},
		"negative":  {http.StatusTooManyRequests, func() string { return "-5" }, [2]time.Duration{time.Second, 2 * time.Second}},
		"none":      {http.StatusTooManyRequests, func() string { return "" }, [2]time.Duration{time.Second, 2 * time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var first, second time.Time
				e, _, stop := running(t, "http://collector:4318/v1/traces", &counting{answer: func(n int) (*http.Response, error) {
					if n > 1 {
						second = time.Now()
						return status(http.StatusOK, &collectorpb.ExportTraceServiceResponse{}), nil
					}
					first = time.Now()
					r := status(c.status, &collectorpb.ExportTraceServiceResponse{})
					r.Header = http.Header{"Retry-After": {c.after()}}
					return r, nil
				}})
				e.Send(call("ADD"))
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				stop()
				if waited := second.Sub(first); waited < c.waits[0] || waited >= c.waits[1] {
					t.Errorf("waited for %v, want %v to %v", waited, c.waits[0], c.waits[1])
				}
			})
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestSlowCollector: a collector that takes a request and does not answer costs nobody
// any time. What does not fit in the queue is dropped.
func TestSlowCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		release := make(chan struct{})
		e, _, stop := running(t, "http://collector:4318/v1/traces", &counting{answer: func(int) (*http.Response, error) {
			<-release
			return status(http.StatusOK, &collectorpb.ExportTraceServiceResponse{}), nil
		}})
		e.Send(call("ADD"))
		time.Sleep(gather)
		synctest.Wait() // it is at the collector
		before := time.Now()
		for range queued + 7 {
			e.Send(call("ADD"))
		}
		if took := time.Since(before); took != 0 {
			t.Errorf("Send waited for %v (%v after the start)", took, before.Sub(began))
		}
		if got := e.Dropped()[QueueFull]; got != 7*3 {
			t.Errorf("%d spans dropped, want %d", got, 7*3)
		}
		close(release)
		stop()
	})
}

// TestLastSpans: the end of the program sends what is queued, if the collector takes it, and
// counts what it does not take.
func TestLastSpans(t *testing.T) {
	took := func(int) (*http.Response, error) {
		return status(http.StatusOK, &collectorpb.ExportTraceServiceResponse{}), nil
	}
	refused := func(int) (*http.Response, error) { return nil, errors.New("connection refused") }
	for name, c := range map[string]struct {
		transport http.RoundTripper
		calls     int
		runs      time.Duration // before the end
		attempts  int
		dropped   map[Reason]uint64
		ends      time.Duration // how long the end takes
	}{
		// One request is full, and one trace waits for others.
		"it takes them":        {&counting{answer: took}, together + 1, 0, 2, nil, 0},
		"it is away":           {&counting{answer: refused}, together + 1, 0, 3, map[Reason]uint64{Unreachable: (together + 1) * 3}, 0},
		"between two attempts": {&counting{answer: refused}, 1, gather + time.Second/2, 2, map[Reason]uint64{Unreachable: 3}, 0},
		"it does not want them": {&counting{answer: func(int) (*http.Response, error) {
			return status(http.StatusNotFound, &collectorpb.ExportTraceServiceResponse{}), nil
		}}, together + 1, 0, 2, map[Reason]uint64{Refused: (together + 1) * 3}, 0},
		"it does not answer":       {hanging{}, 1, 0, 0, map[Reason]uint64{Unreachable: 3}, farewell},
		"it has not answered":      {hanging{}, 2*together + 1, time.Millisecond, 0, map[Reason]uint64{Unreachable: (2*together + 1) * 3}, farewell},
		"it answers after the end": {slow(farewell / 2), 1, gather + time.Millisecond, 0, nil, farewell/2 - time.Millisecond},
		"back at the end": {&counting{answer: func(n int) (*http.Response, error) {
			if n == 1 {
				return refused(n)
			}
			return took(n)
		}}, 1, gather + time.Second/2, 2, nil, 0},
		"nothing is queued": {hanging{}, 0, 0, 0, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, log, stop := running(t, "http://collector:4318/v1/traces", c.transport)
				for range c.calls {
					e.Send(call("ADD"))
				}
				time.Sleep(c.runs)
				synctest.Wait()
				before := time.Now()
				stop()
				if took := time.Since(before); took != c.ends {
					t.Errorf("the end took %v, want %v", took, c.ends)
				}
				for r := range reasons {
					if got := e.Dropped()[r]; got != c.dropped[r] {
						t.Errorf("%s: %d spans dropped, want %d", r, got, c.dropped[r])
					}
				}
				if counting, ok := c.transport.(*counting); ok && counting.attempts != c.attempts {
					t.Errorf("%d requests, want %d", counting.attempts, c.attempts)
				}
				lost := fmt.Sprintf("spans are lost as the program ends, the collector does not take them\" endpoint=http://collector:4318/v1/traces spans=%d\n", c.dropped[Unreachable])
				if got := strings.Contains(log.String(), lost); got != (c.dropped[Unreachable] > 0) {
					t.Errorf("of %d spans that are lost the log says\n%s", c.dropped[Unreachable], log)
				}
			})
		})
	}
}

// slow takes so long, for a request that is not broken off.
type slow time.Duration

func (s slow) RoundTrip(r *http.Request) (*http.Response, error) {
	select {
	case <-time.After(time.Duration(s)):
		return status(http.StatusOK, &collectorpb.ExportTraceServiceResponse{}), nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// TestCredentials: those of the endpoint reach the collector, and neither the log nor an error.
func TestCredentials(t *testing.T) {
	const secret = "ZZZ"
	ok := status(http.StatusOK, &collectorpb.ExportTraceServiceResponse{})
	for name, c := range map[string]struct {
		answer collector
		log    string
	}{
		"away": {func(int) (*http.Response, error) { return nil, errors.New("connection refused") }, "connection refused"},
		"back": {func(n int) (*http.Response, error) {
			if n == 1 {
				return nil, errors.New("connection refused")
			}
			return ok, nil
		}, "takes spans again"},
		"refused": {func(int) (*http.Response, error) {
			return status(http.StatusUnauthorized, &collectorpb.ExportTraceServiceResponse{}), nil
		}, "refuses spans"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				endpoint, err := ParseEndpoint("http://user:" + secret + "@collector:4318?token=" + secret)
				if err != nil {
					t.Fatal(err)
				}
				var user, password, query string
				e, log, stop := running(t, endpoint, roundTrip{&counting{answer: c.answer}, func(r *http.Request) {
					user, password, _ = r.BasicAuth()
					query = r.URL.RawQuery
				}})
				e.Send(call("ADD"))
				time.Sleep(time.Minute)
				e.Send(call("ADD"))
				synctest.Wait()
				stop()
				if user != "user" || password != secret || query != "token="+secret {
					t.Errorf("the collector gets user %q, password %q, query %q", user, password, query)
				}
				if got := log.String(); strings.Contains(got, secret) || !strings.Contains(got, c.log) || !strings.Contains(got, "endpoint=\"http://user:xxxxx@collector:4318/v1/traces?xxxxx\"") && !strings.Contains(got, "endpoint=http://user:xxxxx@collector:4318/v1/traces?xxxxx") {
					t.Errorf("the log says\n%s", got)
				}
			})
		})
	}
	for in, want := range map[string]string{
		"user:ZZZ@collector:4318": "user:xxxxx@collector:4318", "grpc://user:ZZZ@collector:4317": "grpc://user:xxxxx@collector:4317",
		"http://ZZZ@a b": "http://xxxxx@a b", "ftp://collector/?": "ftp://collector/",
	} {
		if _, err := ParseEndpoint(in); err == nil || strings.Contains(err.Error(), secret) || !strings.HasPrefix(err.Error(), fmt.Sprintf("%q: ", want)) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
	for in, want := range map[string]string{
		"": "", "http://127.0.0.1:4318/v1/traces": "http://127.0.0.1:4318/v1/traces", "https://token@[::1]:4318": "https://xxxxx@[::1]:4318",
		"http://user:Z@ZZ/ZZZ@collector": "http://user:xxxxx@collector", // encoded as it should not be
	} {
		if got := Redacted(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// roundTrip looks at each request first.
type roundTrip struct {
	http.RoundTripper
	look func(*http.Request)
}

func (t roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	t.look(r)
	return t.RoundTripper.RoundTrip(r)
}

// hanging does not answer.
type hanging struct{}

func (hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestOff(t *testing.T) {
	e := New(Config{})
	e.Send(call("ADD"))
	e.Run(t.Context()) // ends at once
	if len(e.queue) != 0 || e.Enabled() {
		t.Error("something is queued for no collector")
	}
}

func TestParseEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "http://127.0.0.1:4318": "http://127.0.0.1:4318/v1/traces", "http://[::1]:4318/": "http://[::1]:4318/v1/traces",
		"https://collector.example/tenant/v1/traces": "https://collector.example/tenant/v1/traces",
		"127.0.0.1:4318": "error", "grpc://127.0.0.1:4317": "error", "http://": "error", "http://a b": "error",
	} {
		got, err := ParseEndpoint(in)
		if err != nil {
			got = "error"
			if !strings.Contains(err.Error(), "http://127.0.0.1:4318") {
				t.Errorf("%v: it names no remedy", err)
			}
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
