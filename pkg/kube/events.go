package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// reportingController is who reports, in every Event of flock's.
const reportingController = "flock.fritzlab.net/agent"

const (
	// eventQueue is how many Events wait at most; more are dropped.
	eventQueue = 256
	// eventMemory is how many different Events are remembered, so that the same
	// again becomes a count; the one seen longest ago is forgotten first.
	eventMemory = 512
	// seriesPeriod is how long repetitions are counted before the count is written.
	seriesPeriod = time.Minute
	// seriesEnd is how long after the last time the same is a new Event.
	seriesEnd = 10 * time.Minute
	// A pod has eventBurst different Events of one reason at once, and one more each
	// seriesPeriod: a note that says something new at each of the kubelet's tries
	// must not fill the API server.
	eventBurst = 4
	// noteLimit is the API's, in bytes.
	noteLimit = 1024
	// eventPatience is for one answer of the API server.
	eventPatience = 5 * time.Second
)

// PodRef is the pod that an Event is of.
type PodRef struct {
	Namespace, Name string
	UID             string // the runtime's: for a static pod not that of its mirror
}

// EventType says how bad it is.
type EventType string

// The types of the Kubernetes API.
const (
	Normal  EventType = "Normal"
	Warning EventType = "Warning"
)

// Recorder reports to people what happens to pods, as Events that `kubectl describe
// pod` shows. It never keeps anyone waiting, and loses Events rather than memory; what
// must not be lost does not belong here.
type Recorder struct {
	node    string
	sink    eventSink
	log     *slog.Logger
	queue   chan happening
	dropped atomic.Uint64
	logged  uint64 // of dropped; Run's own
}

// eventSink is the API server.
type eventSink interface {
	create(context.Context, *eventsv1.Event) error
	patch(ctx context.Context, namespace, name string, series eventsv1.EventSeries) error
}

// happening is what makes an Event the same as another.
type happening struct {
	PodRef
	kind                 EventType
	reason, action, note string
}

// NewRecorder returns a Recorder for a node's agent, with the address and the
// credentials of c.
func NewRecorder(c *rest.Config, node string, log *slog.Logger) (*Recorder, error) {
	r, err := restClient(c, "/apis", eventsv1.SchemeGroupVersion, eventsv1.AddToScheme)
	if err != nil {
		return nil, err
	}
	return newRecorder(restSink{r}, node, log), nil
}

func newRecorder(sink eventSink, node string, log *slog.Logger) *Recorder {
	return &Recorder{node: node, sink: sink, log: log, queue: make(chan happening, eventQueue)}
}

// Event reports that something happened to pod. The reason is a word in upper camel
// case for machines, the action one for what flock was doing; the note is for people.
// The same again within minutes is counted, not repeated. It returns at once; if too
// much waits, the Event is dropped.
func (r *Recorder) Event(pod PodRef, kind EventType, reason, action, note string) {
	select {
	case r.queue <- happening{pod, kind, reason, action, shorten(note)}:
	default:
		r.dropped.Add(1)
	}
}

// Dropped is how many Events were dropped so far.
func (r *Recorder) Dropped() uint64 { return r.dropped.Load() }

// shorten cuts a note to what the API takes.
func shorten(note string) string {
	note = strings.ToValidUTF8(note, "\uFFFD")
	if len(note) <= noteLimit {
		return note
	}
	const more = "…"
	end := noteLimit - len(more)
	for !utf8.RuneStart(note[end]) {
		end--
	}
	return note[:end] + more
}

// Run writes Events until ctx ends. What waits then is lost.
func (r *Recorder) Run(ctx context.Context) {
	m := memory{events: map[happening]*written{}, budgets: map[budgetKey]*budget{}}
	tick := time.NewTicker(seriesPeriod / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-r.queue:
			r.note(ctx, &m, h)
		case <-tick.C:
			r.countUp(ctx, &m)
			if n := r.dropped.Load(); n > r.logged {
				r.log.Warn("events of pods were dropped, as the API server takes them too slowly", "dropped", n-r.logged)
				r.logged = n
			}
		}
	}
}

// memory is what Run knows of the Events that it has written.
type memory struct {
	events  map[happening]*written
	budgets map[budgetKey]*budget
}

type written struct {
	name        string
	times       int32
	reported    int32 // of times, what the API server knows
	last, wrote time.Time
}

type budgetKey struct {
	PodRef
	reason string
}

// budget is a token bucket: spent grows with each Event and shrinks with time.
type budget struct {
	spent int
	since time.Time
}

func (r *Recorder) note(ctx context.Context, m *memory, h happening) {
	now := time.Now()
	if w := m.events[h]; w != nil && now.Sub(w.last) < seriesEnd {
		w.times++
		w.last = now
		r.report(ctx, m, h, w)
		return
	}
	if !m.afford(h, now) {
		r.log.Debug("one more event of a pod with this reason is left out", "pod", h.Namespace+"/"+h.Name, "reason", h.reason, "note", h.note)
		return
	}
	w := &written{name: eventName(h.Name, now), times: 1, reported: 1, last: now, wrote: now}
	m.remember(h, w)
	r.persist(ctx, h, func(ctx context.Context) error {
		err := r.sink.create(ctx, r.event(h, w))
		if apierrors.IsAlreadyExists(err) { // the answer to an earlier try was lost
			return nil
		}
		return err
	})
}

// countUp writes the counts that are due and forgets what has ended.
func (r *Recorder) countUp(ctx context.Context, m *memory) {
	now := time.Now()
	for h, w := range m.events {
		r.report(ctx, m, h, w)
		if now.Sub(w.last) >= seriesEnd {
			delete(m.events, h)
		}
	}
	for id, b := range m.budgets {
		if b.refill(now); b.spent == 0 {
			delete(m.budgets, id)
		}
	}
}

// report writes how often h has happened, if that is due.
func (r *Recorder) report(ctx context.Context, m *memory, h happening, w *written) {
	now := time.Now()
	if w.times == w.reported || now.Sub(w.wrote) < seriesPeriod {
		return
	}
	series := eventsv1.EventSeries{Count: w.times, LastObservedTime: metav1.NewMicroTime(w.last)}
	err := r.persist(ctx, h, func(ctx context.Context) error { return r.sink.patch(ctx, h.Namespace, w.name, series) })
	w.reported, w.wrote = w.times, now
	if apierrors.IsNotFound(err) { // the API server keeps Events for an hour
		delete(m.events, h)
	}
}

// persist tries until the API server has answered. Events may wait for that; those
// that find no room are dropped.
func (r *Recorder) persist(ctx context.Context, h happening, write func(context.Context) error) error {
	const firstRetry, lastRetry = time.Second, 30 * time.Second
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, eventPatience)
			defer cancel()
			return write(ctx)
		}()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if answered(err) {
			r.log.Debug("an event of a pod is not written", "pod", h.Namespace+"/"+h.Name, "reason", h.reason, "error", err)
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

// answered tells whether the API server has decided.
func answered(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	code := status.Status().Code
	return code < http.StatusInternalServerError && code != http.StatusTooManyRequests
}

func (m *memory) remember(h happening, w *written) {
	if len(m.events) >= eventMemory {
		var oldest happening
		var since time.Time
		for other, w := range m.events {
			if since.IsZero() || w.last.Before(since) {
				oldest, since = other, w.last
			}
		}
		delete(m.events, oldest)
	}
	m.events[h] = w
}

func (m *memory) afford(h happening, now time.Time) bool {
	id := budgetKey{h.PodRef, h.reason}
	b := m.budgets[id]
	if b == nil {
		b = &budget{since: now}
		m.budgets[id] = b
	}
	b.refill(now)
	if b.spent == eventBurst {
		return false
	}
	b.spent++
	return true
}

func (b *budget) refill(now time.Time) {
	n := int(now.Sub(b.since) / seriesPeriod)
	b.spent = max(0, b.spent-n)
	b.since = b.since.Add(time.Duration(n) * seriesPeriod)
}

// eventName follows client-go: unlike any other of the pod.
func eventName(pod string, at time.Time) string {
	suffix := fmt.Sprintf(".%x", at.UnixNano())
	const limit = 253 // of an object's name
	return strings.TrimRight(pod[:min(len(pod), limit-len(suffix))], ".-") + suffix
}

func (r *Recorder) event(h happening, w *written) *eventsv1.Event {
	return &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: h.Namespace, Name: w.name},
		EventTime:           metav1.NewMicroTime(w.last),
		ReportingController: reportingController,
		ReportingInstance:   r.node[:min(len(r.node), 128)],
		Action:              h.action,
		Reason:              h.reason,
		Regarding:           corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: h.Namespace, Name: h.Name, UID: types.UID(h.UID)},
		Note:                h.note,
		Type:                string(h.kind),
	}
}

type restSink struct{ client rest.Interface }

func (s restSink) create(ctx context.Context, e *eventsv1.Event) error {
	return s.client.Post().Namespace(e.Namespace).Resource("events").Body(e).Do(ctx).Error()
}

func (s restSink) patch(ctx context.Context, namespace, name string, series eventsv1.EventSeries) error {
	body, err := json.Marshal(map[string]any{"series": series})
	if err != nil {
		return err
	}
	return s.client.Patch(types.MergePatchType).Namespace(namespace).Resource("events").Name(name).Body(body).Do(ctx).Error()
}
