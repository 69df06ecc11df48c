package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Who reports, in every Event of flock's.
const (
	reportingController = "flock.fritzlab.net/agent"
	centralController   = "flock.fritzlab.net/controller"
)

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

// EventType is the severity of an Event.
type EventType string

// The types of the Kubernetes API.
const (
	Normal  EventType = "Normal"
	Warning EventType = "Warning"
)

// Recorder reports to people what happens to pods and to the node, as Events that
// `kubectl describe` shows. It never keeps anyone waiting, and loses Events rather than
// memory; what must not be lost does not belong here.
//
// client-go's recorder (tools/events) has neither bound: it starts a goroutine for each
// Event, keeps all of the last six minutes, writes each that differs in its note, and
// does not count what it drops.
type Recorder struct {
	reporter string
	node     string // or the instance of flock-controller
	sink     eventSink
	log      *slog.Logger
	queue    chan eventKey
	dropped  atomic.Uint64
	logged   uint64 // of dropped; Run's own

	mu     sync.Mutex // guards recent
	recent []Recent   // the newest last
}

// Recent is an Event that was reported lately, also if it could not be written.
type Recent struct {
	At                    time.Time
	Type                  EventType
	Kind, Namespace, Name string // of the object
	Reason, Action, Note  string
}

// recentEvents is how many are remembered for [Recorder.Recent].
const recentEvents = 50

// Recent are the last Events, the newest first. The same again is another one.
func (r *Recorder) Recent() []Recent {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.recent)
	slices.Reverse(all)
	return all
}

// eventSink is the API server.
type eventSink interface {
	create(context.Context, *eventsv1.Event) error
	patch(ctx context.Context, namespace, name string, series eventsv1.EventSeries) error
}

// eventKey identifies an Event: the same again is counted.
type eventKey struct {
	pod.Ref              // of the object
	object               ObjectKind
	kind                 EventType
	reason, action, note string
}

// NewRecorder returns a Recorder for the agent of a node.
func NewRecorder(c *Client, node string, log *slog.Logger) *Recorder {
	return newRecorder(restSink{c.events}, node, log)
}

// NewControllerRecorder returns a Recorder for the instance of flock-controller of that name.
func NewControllerRecorder(c *Client, name string, log *slog.Logger) *Recorder {
	r := newRecorder(restSink{c.events}, name, log)
	r.reporter = centralController
	return r
}

func newRecorder(sink eventSink, node string, log *slog.Logger) *Recorder {
	return &Recorder{reporter: reportingController, node: node, sink: sink, log: log, queue: make(chan eventKey, eventQueue)}
}

// Event reports that something happened to pod. The reason is a word in upper camel
// case for machines, the action one for what flock was doing; the note is for people.
// The same again within minutes is counted, not repeated. It returns at once; if too
// much waits, the Event is dropped.
func (r *Recorder) Event(pod pod.Ref, kind EventType, reason, action, note string) {
	r.note(eventKey{pod, podObject, kind, reason, action, shorten(note)})
}

func (r *Recorder) note(h eventKey) {
	r.mu.Lock()
	r.recent = append(r.recent, Recent{time.Now(), h.kind, h.object.kind, h.Namespace, h.Name, h.reason, h.action, h.note})
	r.recent = slices.Delete(r.recent, 0, max(0, len(r.recent)-recentEvents))
	r.mu.Unlock()
	select {
	case r.queue <- h:
	default:
		r.dropped.Add(1)
	}
}

// NodeEvent is Event for the Node that the agent runs on.
func (r *Recorder) NodeEvent(kind EventType, reason, action, note string) {
	// The kubelet's Events of a Node have its name as UID, and kubectl looks for that.
	r.note(eventKey{pod.Ref{Name: r.node, UID: pod.UID(r.node)}, nodeObject, kind, reason, action, shorten(note)})
}

// ObjectKind is a kind of object that Events may be of.
type ObjectKind struct{ apiVersion, kind string }

var (
	podObject  = ObjectKind{"v1", "Pod"}
	nodeObject = ObjectKind{"v1", "Node"}
	// These are for [Recorder.ObjectEvent].
	Service              = ObjectKind{"v1", "Service"}
	NetworkPolicy        = ObjectKind{networkingv1.SchemeGroupVersion.String(), "NetworkPolicy"}
	ClusterNetworkPolicy = ObjectKind{policyv1beta1.GroupVersion.String(), "ClusterNetworkPolicy"}
	NodeConfigTemplate   = ObjectKind{v1alpha1.GroupVersion.String(), "NodeConfigTemplate"}
)

// ObjectEvent is Event for an object of another kind.
func (r *Recorder) ObjectEvent(of ObjectKind, namespace, name string, uid types.UID, kind EventType, reason, action, note string) {
	r.note(eventKey{pod.Ref{Namespace: namespace, Name: name, UID: uid}, of, kind, reason, action, shorten(note)})
}

// regarding is the object that the Event is of, and the namespace that the Event
// goes to.
func (h eventKey) regarding() (corev1.ObjectReference, string) {
	return corev1.ObjectReference{APIVersion: h.object.apiVersion, Kind: h.object.kind, Namespace: h.Namespace, Name: h.Name, UID: h.UID},
		cmp.Or(h.Namespace, metav1.NamespaceDefault)
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
	m := memory{events: map[eventKey]*written{}, budgets: map[budgetKey]*budget{}}
	tick := time.NewTicker(seriesPeriod / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-r.queue:
			r.write(ctx, &m, h)
		case <-tick.C:
			r.flushCounts(ctx, &m)
			if n := r.dropped.Load(); n > r.logged {
				r.log.Warn("dropping Events because the API server takes them too slowly", "dropped", n-r.logged)
				r.logged = n
			}
		}
	}
}

// memory is what Run knows of the Events that it has written.
type memory struct {
	events  map[eventKey]*written
	budgets map[budgetKey]*budget
}

type written struct {
	name        string
	times       int32
	reported    int32 // of times, what the API server knows
	last, wrote time.Time
}

type budgetKey struct {
	pod.Ref
	reason string
}

// budget is a token bucket: spent grows with each Event and shrinks with time.
type budget struct {
	spent int
	since time.Time
}

func (r *Recorder) write(ctx context.Context, m *memory, h eventKey) {
	now := time.Now()
	if w := m.events[h]; w != nil && now.Sub(w.last) < seriesEnd {
		w.times++
		w.last = now
		r.report(ctx, m, h, w)
		return
	}
	if !m.afford(h, now) {
		r.log.Debug("not writing an Event: too many of this reason", "object", strings.TrimPrefix(h.String(), "/"), "reason", h.reason, "note", h.note)
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

// flushCounts writes the counts that are due and forgets Events that have not recurred.
func (r *Recorder) flushCounts(ctx context.Context, m *memory) {
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
func (r *Recorder) report(ctx context.Context, m *memory, h eventKey, w *written) {
	now := time.Now()
	if w.times == w.reported || now.Sub(w.wrote) < seriesPeriod {
		return
	}
	series := eventsv1.EventSeries{Count: w.times, LastObservedTime: metav1.NewMicroTime(w.last)}
	_, namespace := h.regarding()
	err := r.persist(ctx, h, func(ctx context.Context) error { return r.sink.patch(ctx, namespace, w.name, series) })
	w.reported, w.wrote = w.times, now
	if apierrors.IsNotFound(err) { // the API server keeps Events for an hour
		delete(m.events, h)
	}
}

// persist tries until the API server has answered. Events may wait for that; those
// that find no room are dropped.
func (r *Recorder) persist(ctx context.Context, h eventKey, write func(context.Context) error) error {
	retry := backoff.Backoff{First: time.Second, Last: 30 * time.Second}
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, eventPatience)
			defer cancel()
			return write(ctx)
		}()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if answered(err) {
			r.log.Debug("cannot write an Event", "object", strings.TrimPrefix(h.String(), "/"), "reason", h.reason, "error", err)
			return err
		}
		_ = retry.Wait(ctx)
	}
}

// answered reports whether err is an answer of the API server, so that a retry would not
// help.
func answered(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	code := status.Status().Code
	return code < http.StatusInternalServerError && code != http.StatusTooManyRequests
}

func (m *memory) remember(h eventKey, w *written) {
	if len(m.events) >= eventMemory {
		var oldest eventKey
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

func (m *memory) afford(h eventKey, now time.Time) bool {
	id := budgetKey{h.Ref, h.reason}
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

func (r *Recorder) event(h eventKey, w *written) *eventsv1.Event {
	regarding, namespace := h.regarding()
	return &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: namespace, Name: w.name},
		EventTime:           metav1.NewMicroTime(w.last),
		ReportingController: r.reporter,
		ReportingInstance:   r.node[:min(len(r.node), 128)],
		Action:              h.action,
		Reason:              h.reason,
		Regarding:           regarding,
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
