package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"flock.fritzlab.net/flock/pkg/pod"
)

// sinkLog is an API server that writes down what it is asked.
type sinkLog struct {
	mu     sync.Mutex // guards below
	events map[string]*eventsv1.Event
	writes []string
	fail   error
}

func (s *sinkLog) create(_ context.Context, e *eventsv1.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, fmt.Sprintf("create %s %s/%s: %s", e.Type, e.Regarding.Namespace, e.Regarding.Name, e.Note))
	if s.fail == nil {
		s.events[e.Name] = e
	}
	return s.fail
}

func (s *sinkLog) patch(_ context.Context, _, name string, series eventsv1.EventSeries) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.events[name]
	if e == nil {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "events"}, name)
	}
	s.writes = append(s.writes, fmt.Sprintf("count %s/%s: %d", e.Regarding.Namespace, e.Regarding.Name, series.Count))
	return s.fail
}

// take returns the writes since the last call.
func (s *sinkLog) take() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := strings.Join(s.writes, "\n")
	s.writes = nil
	return out
}

func (s *sinkLog) set(fail error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

func recording(t *testing.T, f func(*Recorder, *sinkLog)) {
	synctest.Test(t, func(t *testing.T) {
		sink := &sinkLog{events: map[string]*eventsv1.Event{}}
		r := newRecorder(sink, "node1", slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); r.Run(ctx) }()
		f(r, sink)
		cancel()
		<-done
	})
}

// An Event of the Node is where kubectl describe node looks for it.
func TestNodeEvent(t *testing.T) {
	recording(t, func(r *Recorder, sink *sinkLog) {
		r.NodeEvent(Warning, "KernelRepaired", "Repair", "a route was missing")
		sink.take()
		for _, e := range sink.events {
			if e.Namespace != "default" || e.Regarding.Kind != "Node" || e.Regarding.Namespace != "" || e.Regarding.Name != "node1" || e.Regarding.UID != "node1" {
				t.Errorf("event in %s regarding %+v", e.Namespace, e.Regarding)
			}
		}
		if len(sink.events) != 1 {
			t.Errorf("%d events", len(sink.events))
		}
	})
}

var web = pod.Ref{Namespace: "shop", Name: "web", UID: "u1"}

func refuse(r *Recorder, note string) { r.Event(web, Warning, "AddressRefused", "Attach", note) }

// The kubelet asks again every ten seconds for an hour: one Event and a count.
func TestRepetitionIsCounted(t *testing.T) {
	recording(t, func(r *Recorder, sink *sinkLog) {
		for range 360 {
			refuse(r, "held")
			time.Sleep(10 * time.Second)
		}
		writes := strings.Split(sink.take(), "\n")
		if writes[0] != "create Warning shop/web: held" || len(writes) > 61 {
			t.Errorf("%d writes, the first %q: want one Event and at most a count a minute", len(writes), writes[0])
		}
		time.Sleep(2 * time.Minute)
		sink.take()
		if last := writes[len(writes)-1]; !strings.HasPrefix(last, "count shop/web: 3") {
			t.Errorf("the last count is %q", last)
		}

		time.Sleep(seriesEnd)
		refuse(r, "held")
		if got := sink.take(); got != "create Warning shop/web: held" {
			t.Errorf("after a while of silence: %q, want a new Event", got)
		}
		refuse(r, "held")
		time.Sleep(2 * seriesPeriod)
		if got := sink.take(); got != "count shop/web: 2" {
			t.Errorf("twice and no more: %q, want the count", got)
		}
	})
}

// Different Events are written at once, up to a number.
func TestDifferentEventsOfAPod(t *testing.T) {
	recording(t, func(r *Recorder, sink *sinkLog) {
		for i := range 100 {
			refuse(r, fmt.Sprint("try ", i))
		}
		r.Event(web, Normal, "Announced", "Announce", "2001:db8::53")
		r.Event(pod.Ref{Namespace: "shop", Name: "web", UID: "u2"}, Warning, "AddressRefused", "Attach", "try 0")
		want := "create Warning shop/web: try 0\ncreate Warning shop/web: try 1\ncreate Warning shop/web: try 2\ncreate Warning shop/web: try 3\ncreate Normal shop/web: 2001:db8::53\ncreate Warning shop/web: try 0"
		if got := sink.take(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		time.Sleep(seriesPeriod)
		refuse(r, "try 100")
		refuse(r, "try 101")
		if got := sink.take(); got != "create Warning shop/web: try 100" {
			t.Errorf("a minute later %q, want one more", got)
		}
	})
}

// The recorder does not block while the API server is down. Afterwards it writes the
// Events that it did not drop.
func TestEventsOverAnOutage(t *testing.T) {
	for name, fail := range map[string]error{
		"no connection": errors.New("connection refused"),
		"overload":      apierrors.NewTooManyRequests("slow down", 1),
	} {
		t.Run(name, func(t *testing.T) {
			recording(t, func(r *Recorder, sink *sinkLog) {
				sink.set(fail)
				refuse(r, "first")
				synctest.Wait()
				start := time.Now()
				for i := range 2 * eventQueue {
					r.Event(pod.Ref{Namespace: "shop", Name: fmt.Sprint("p", i), UID: "u"}, Warning, "AddressRefused", "Attach", "held")
				}
				if took := time.Since(start); took > 0 {
					t.Errorf("reporting took %s", took)
				}
				if n := r.dropped.Load(); n != eventQueue {
					t.Errorf("%d dropped, want %d", n, eventQueue)
				}
				time.Sleep(time.Hour)
				if n := strings.Count(sink.take(), "\n"); n > 150 {
					t.Errorf("%d tries in an hour's outage", n)
				}
				sink.set(nil)
				time.Sleep(time.Minute)
				if n := strings.Count(sink.take()+"\n", "create"); n != 1+eventQueue {
					t.Errorf("%d Events after the outage, want %d", n, 1+eventQueue)
				}
			})
		})
	}
}

// An Event that the API server refuses is not retried. One that it has deleted is
// created again.
func TestEventsThatAreRefusedOrForgotten(t *testing.T) {
	recording(t, func(r *Recorder, sink *sinkLog) {
		sink.set(apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "", errors.New("namespace is being terminated")))
		refuse(r, "held")
		time.Sleep(time.Minute)
		if got := sink.take(); got != "create Warning shop/web: held" {
			t.Errorf("refused: %q, want one try", got)
		}
		sink.set(nil)
		refuse(r, "held") // its count finds no Event
		sink.take()
		refuse(r, "held")
		if got := sink.take(); got != "create Warning shop/web: held" {
			t.Errorf("forgotten: %q, want a new Event", got)
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	m := memory{events: map[eventKey]*written{}}
	at := time.Now()
	for i := range 2 * eventMemory {
		m.remember(eventKey{Ref: pod.Ref{UID: pod.UID(fmt.Sprint(i))}}, &written{last: at.Add(time.Duration(i))})
	}
	if len(m.events) != eventMemory {
		t.Errorf("%d remembered", len(m.events))
	}
	if m.events[eventKey{Ref: pod.Ref{UID: pod.UID(fmt.Sprint(2*eventMemory - 1))}}] == nil || m.events[eventKey{Ref: pod.Ref{UID: "0"}}] != nil {
		t.Error("the oldest are not those that were forgotten")
	}
}

func TestEventsFitTheAPI(t *testing.T) {
	for _, note := range []string{"", "short", strings.Repeat("x", noteLimit), strings.Repeat("é", noteLimit), "x" + strings.Repeat("€", noteLimit), "bad\xff"} {
		got := shorten(note)
		if len(got) > noteLimit || strings.ToValidUTF8(got, "") != got || len(note) <= noteLimit && got != strings.ToValidUTF8(note, "\uFFFD") {
			t.Errorf("%.10q…: %d bytes, %q", note, len(got), got)
		}
	}
	at := time.Unix(0, 0x1234)
	if got := eventName("web-0", at); got != "web-0.1234" {
		t.Errorf("name %q", got)
	}
	if got := eventName(strings.Repeat("p", 247)+".web-0", at); len(got) > 253 || !strings.HasSuffix(got, "p.1234") {
		t.Errorf("name of %d: %q", len(got), got)
	}
}
