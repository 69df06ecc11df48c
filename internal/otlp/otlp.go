// Package otlp sends spans to an OpenTelemetry collector: OTLP over HTTP, with the
// messages of the protocol's own Go module. OpenTelemetry's exporter for Go would add 1.2 MB
// to a program, whether spans are sent or not; these messages add 0.1 MB.
//
// Spans are for people who look for what takes time. What makes them never waits for the
// collector: they are dropped, and counted, when it is away or slow for long.
package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"flock.fritzlab.net/flock/internal/backoff"
)

const (
	queued   = 512              // traces that wait, at most
	together = 64               // traces in a request, at most
	gather   = time.Second      // how long the first trace of a request waits for others
	patience = 10 * time.Second // how long the collector may take for a request
	attempts = 5                // at a request; the waits between them are some 15 s in all
	farewell = time.Second      // for what is queued or on its way when the program ends
	answer   = 64 << 10         // bytes of an answer that are read
	longest  = time.Minute      // that the collector's Retry-After is followed

	hidden = "xxxxx" // stands for a secret
)

// Attribute is one of a span or of the program. An empty one is left out.
type Attribute struct{ Key, Value string }

// Trace is one call: a span of its own, and the spans of its parts.
type Trace struct {
	Span
	Attributes []Attribute
	Began      time.Time
	Parts      []Span
}

// Span is a time in a call.
type Span struct {
	Name string
	// From and To are counted from when the call began, so that a step of the clock does
	// not change them.
	From, To time.Duration
	// Error is empty if it succeeded.
	Error string
}

// Config is what an Exporter needs.
type Config struct {
	// Endpoint is the collector's URL, as ParseEndpoint returns it; empty: nothing is
	// sent.
	Endpoint string
	Settings Settings
	// Resource says which program the spans are of.
	Resource []Attribute
	Log      *slog.Logger
}

// Exporter sends traces while Run runs.
type Exporter struct {
	c        Config
	shown    string // the endpoint without credentials, for people
	client   http.Client
	ca       *authority // nil: the machine's CAs
	secrets  *strings.Replacer
	resource *resourcepb.Resource
	queue    chan Trace
	dropped  [reasons]atomic.Uint64
}

// Reason says why spans were dropped.
type Reason int

// The reasons.
const (
	QueueFull   Reason = iota // the collector takes spans too slowly, or is away
	Unreachable               // every attempt failed
	Refused                   // the collector does not want them
	reasons
)

func (r Reason) String() string { return [reasons]string{"queue_full", "unreachable", "refused"}[r] }

// ParseEndpoint returns the URL that spans are posted to. Without a path it is the one
// that collectors have for them. It may contain credentials, which its error does not.
func ParseEndpoint(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("%q: want the URL of an OpenTelemetry collector's OTLP over HTTP, as in http://127.0.0.1:4318", Redacted(s))
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return u.String(), nil
}

// Redacted is an endpoint, also one that is no URL, without what may be a secret: the password,
// or the user's name where there is none, as it may be a token, and the query.
func Redacted(s string) string {
	s, query, ok := strings.Cut(s, "?")
	if ok && query != "" {
		query = "?" + hidden
	} else {
		query = ""
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		scheme, rest = "", s
	} else {
		scheme += "://"
	}
	// A password that should have been encoded may have an @ or a / of its own.
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		user, _, ok := strings.Cut(rest[:at], ":")
		if ok {
			user += ":"
		} else {
			user = ""
		}
		rest = user + hidden + rest[at:]
	}
	return scheme + rest + query
}

// New returns an exporter that sends nothing yet.
func New(c Config) *Exporter {
	e := &Exporter{
		c: c, shown: Redacted(c.Endpoint), resource: &resourcepb.Resource{Attributes: attributes(c.Resource)}, queue: make(chan Trace, queued),
		// A redirection would take the headers, which may have credentials, to somebody else.
		client:  http.Client{Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		secrets: c.Settings.secrets(),
	}
	if c.Settings.ca.value != "" && strings.HasPrefix(c.Endpoint, "https:") {
		e.ca = &authority{file: c.Settings.ca}
	}
	return e
}

// Enabled says whether there is a collector.
func (e *Exporter) Enabled() bool { return e.c.Endpoint != "" }

// Send sends t later, or drops it. It does not wait.
func (e *Exporter) Send(t Trace) {
	if !e.Enabled() {
		return
	}
	select {
	case e.queue <- t:
	default:
		e.drop(QueueFull, spans(t))
	}
}

// Dropped returns how many spans were dropped, by reason.
func (e *Exporter) Dropped() map[Reason]uint64 {
	m := map[Reason]uint64{}
	for r := range e.dropped {
		m[Reason(r)] = e.dropped[r].Load()
	}
	return m
}

func (e *Exporter) drop(r Reason, spans int) { e.dropped[r].Add(uint64(spans)) }

func spans(traces ...Trace) (n int) {
	for _, t := range traces {
		n += 1 + len(t.Parts)
	}
	return n
}

// Run sends until ctx ends, and then what is queued if the collector takes it at once. What it
// does not take then is counted and logged.
func (e *Exporter) Run(ctx context.Context) {
	if !e.Enabled() {
		return
	}
	defer e.client.CloseIdleConnections()
	// A request that is on its way as ctx ends may have reached the collector: it is not
	// broken off and made again, but has its time like the others.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(farewell, cancel) })()
	away, lost := false, 0
	for {
		batch := e.next(ctx)
		if len(batch) == 0 { // ctx has ended
			break
		}
		if n := e.deliver(ctx, sending, batch, &away); ctx.Err() != nil {
			lost += n
		}
	}
	if lost > 0 {
		e.c.Log.Warn("spans are lost as the program ends, the collector does not take them", "endpoint", e.shown, "spans", lost)
	}
}

// next returns the traces of the next request, as soon as it is full or its first trace
// has waited long enough. After ctx has ended it is what is queued.
func (e *Exporter) next(ctx context.Context) []Trace {
	var batch []Trace
	select {
	case t := <-e.queue:
		batch = append(batch, t)
	case <-ctx.Done():
		return e.waiting(nil)
	}
	full := time.NewTimer(gather)
	defer full.Stop()
	for len(batch) < together {
		select {
		case t := <-e.queue:
			batch = append(batch, t)
		case <-full.C:
			return batch
		case <-ctx.Done():
			return e.waiting(batch)
		}
	}
	return batch
}

// waiting fills a request with what is queued.
func (e *Exporter) waiting(batch []Trace) []Trace {
	for len(batch) < together {
		select {
		case t := <-e.queue:
			batch = append(batch, t)
		default:
			return batch
		}
	}
	return batch
}

// deliver posts a request until the collector has it, or does not want it, or has been
// away for too long; then it returns how many spans are lost. After ctx has ended it waits no
// more, and sending says how long an attempt may take. away is whether the collector was in the last request.
func (e *Exporter) deliver(ctx, sending context.Context, batch []Trace, away *bool) (lost int) {
	retry := backoff.Backoff{First: time.Second, Last: 10 * time.Second, Jitter: 0.2}
	var after time.Duration // how long the collector wants to be left alone
	for i := range attempts {
		if i > 0 {
			backoff.Sleep(ctx, max(retry.Next(), after)) // its end allows one attempt more, at once
		}
		err := e.post(sending, batch)
		after = 0
		if busy := (busyError{}); errors.As(err, &busy) {
			after = busy.after
		}
		var refused refusedError
		switch {
		case errors.As(err, &refused):
			e.drop(Refused, refused.spans)
			e.c.Log.Warn("the collector refuses spans, they are dropped", "endpoint", e.shown, "spans", refused.spans, "error", e.secrets.Replace(err.Error()))
			return 0
		case err == nil:
			if *away {
				e.c.Log.Info("the collector takes spans again", "endpoint", e.shown)
			}
			*away = false
			return 0
		}
		if !*away {
			e.c.Log.Warn("cannot send spans to the collector, will retry, and drop them if that fails too", "endpoint", e.shown, "error", e.secrets.Replace(err.Error()))
		}
		*away = true
		if ctx.Err() != nil {
			break
		}
	}
	lost = spans(batch...)
	e.drop(Unreachable, lost)
	return lost
}

// busyError: the collector asks for another attempt, and for how long to leave it alone.
type busyError struct {
	status string
	after  time.Duration
}

func (e busyError) Error() string { return e.status }

// retryAfter reads the header of an answer (RFC 9110 section 10.2.3): seconds or a date.
// It is 0 without one that makes sense, and longest at most.
func retryAfter(value string) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, longest)
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(time.Until(at), 0), longest)
	}
	return 0
}

// refusedError: another attempt would not help.
type refusedError struct {
	spans int // that the collector has not taken
	why   string
}

func (e refusedError) Error() string { return e.why }

// post makes one attempt.
func (e *Exporter) post(ctx context.Context, batch []Trace) error {
	request := &collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: e.resource, ScopeSpans: []*tracepb.ScopeSpans{{Spans: encode(batch)}},
	}}}
	body, err := proto.Marshal(request)
	if err != nil {
		return refusedError{spans(batch...), err.Error()} // a name that is not UTF-8
	}
	if e.ca != nil {
		transport, err := e.ca.follow()
		if err != nil {
			return err
		}
		e.client.Transport = transport
	}
	if e.c.Settings.compress {
		body = compressed(body)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, e.c.Endpoint, bytes.NewReader(body))
	if err != nil {
		return withoutURL(err)
	}
	for name, values := range e.c.Settings.headers {
		r.Header[name] = values
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	if e.c.Settings.compress {
		r.Header.Set("Content-Encoding", "gzip")
	}
	response, err := e.client.Do(r)
	if err != nil {
		return withoutURL(err)
	}
	defer response.Body.Close()
	said, err := io.ReadAll(io.LimitReader(response.Body, answer))
	if err != nil {
		return err
	}
	switch response.StatusCode {
	case http.StatusOK:
		var taken collectorpb.ExportTraceServiceResponse
		if err := proto.Unmarshal(said, &taken); err != nil {
			return nil // it has taken them
		}
		if partial := taken.GetPartialSuccess(); partial.GetRejectedSpans() > 0 {
			return refusedError{int(partial.GetRejectedSpans()), partial.GetErrorMessage()}
		}
		return nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return busyError{response.Status, retryAfter(response.Header.Get("Retry-After"))} // for these the protocol asks for another attempt
	}
	return refusedError{spans(batch...), response.Status}
}

func compressed(body []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(body) // a Buffer takes everything
	_ = w.Close()
	return b.Bytes()
}

// withoutURL is the cause of the HTTP client's error, which would name the URL with what may
// be a secret in it.
func withoutURL(err error) error {
	if at := (*url.Error)(nil); errors.As(err, &at) {
		return at.Err
	}
	return err
}

// encode gives each trace its identifiers.
func encode(batch []Trace) (all []*tracepb.Span) {
	for _, t := range batch {
		trace := binary.BigEndian.AppendUint64(number(), rand.Uint64())
		call := t.encode(t.Span, trace, nil)
		call.Kind, call.Attributes = tracepb.Span_SPAN_KIND_SERVER, attributes(t.Attributes)
		all = append(all, call)
		for _, p := range t.Parts {
			all = append(all, t.encode(p, trace, call.SpanId))
		}
	}
	return all
}

func (t Trace) encode(s Span, trace, parent []byte) *tracepb.Span {
	began := t.Began.UnixNano()
	out := &tracepb.Span{
		TraceId: trace, SpanId: number(), ParentSpanId: parent, Name: s.Name, Kind: tracepb.Span_SPAN_KIND_INTERNAL,
		StartTimeUnixNano: uint64(began + int64(s.From)), EndTimeUnixNano: uint64(began + int64(s.To)),
	}
	if s.Error != "" {
		out.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: s.Error}
	}
	return out
}

// number is a random identifier. Zero stands for none.
func number() []byte { return binary.BigEndian.AppendUint64(nil, max(1, rand.Uint64())) }

func attributes(all []Attribute) (out []*commonpb.KeyValue) {
	all = slices.DeleteFunc(slices.Clone(all), func(a Attribute) bool { return a.Value == "" })
	for _, a := range all {
		out = append(out, &commonpb.KeyValue{Key: a.Key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: a.Value}}})
	}
	return out
}
