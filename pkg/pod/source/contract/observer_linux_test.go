//go:build cluster

package contract

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
	"flock.fritzlab.net/flock/pkg/pod/source"
)

// observer watches a Source as the agent does, and holds it to what it promises:
// Added for what is new, Modified for what changed, Deleted for what was there.
type observer struct {
	t     *testing.T
	local *source.Local

	mu       sync.Mutex // guards what follows
	pods     map[pod.UID]*source.Pod
	reported []heard
	synced   int
	news     chan struct{} // closed at the next event or status
}

// heard is an event and when it came.
type heard struct {
	source.Event
	at time.Time
}

func observe(t *testing.T, c source.Config) *observer {
	t.Helper()
	o := &observer{t: t, pods: map[pod.UID]*source.Pod{}, news: make(chan struct{})}
	c.Node, c.Log = node, logger(t)
	c.OnStatus = func(source.Status) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.wake()
	}
	var err error
	if o.local, err = source.New(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- o.local.Watch(ctx, o.hear) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	})
	return o
}

func (o *observer) wake() {
	close(o.news)
	o.news = make(chan struct{})
}

func (o *observer) hear(e source.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.wake()
	o.reported = append(o.reported, heard{e, time.Now()})
	if e.Type == source.Synced {
		o.synced++
		return
	}
	known := o.pods[e.Pod.UID]
	switch {
	case e.Type == source.Added && known != nil, e.Type != source.Added && known == nil:
		o.t.Errorf("%s of %s, known is %+v", e.Type, e.Pod.Ref, known)
	case e.Type == source.Modified && reflect.DeepEqual(known, e.Pod):
		o.t.Errorf("%s of %s, and nothing is: %+v", e.Type, e.Pod.Ref, known)
	}
	o.pods[e.Pod.UID] = e.Pod
	if e.Type == source.Deleted {
		delete(o.pods, e.Pod.UID)
	}
}

// await waits until holds returns true of what is known. It is asked again after
// each event and each change of status.
func (o *observer) await(what string, holds func(*observer) bool) {
	o.t.Helper()
	timeout := time.After(patience)
	for {
		o.mu.Lock()
		ok, news := holds(o), o.news
		o.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-news:
		case <-timeout:
			o.t.Fatalf("waited in vain for %s; status %+v; reported\n%s", what, o.local.Status(), o.story(0))
		}
	}
}

// awaitPod waits until the pod is known and is as wanted, and returns it.
func (o *observer) awaitPod(uid pod.UID, what string, holds func(*source.Pod) bool) (p *source.Pod) {
	o.t.Helper()
	o.await(what, func(o *observer) bool {
		p = o.pods[uid]
		return p != nil && holds(p)
	})
	return p
}

func (o *observer) awaitGone(uid pod.UID, what string) {
	o.t.Helper()
	o.await(what, func(o *observer) bool { return o.pods[uid] == nil })
}

func (o *observer) awaitStatus(want source.Origin) {
	o.t.Helper()
	o.await("status "+want.String(), func(o *observer) bool { return o.local.Status().Origin == want })
}

// mark is a place in the story to look back to.
func (o *observer) mark() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.reported)
}

// since returns the events of the pod since the mark.
func (o *observer) since(mark int, uid pod.UID) (reported []heard) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, h := range o.reported[mark:] {
		if h.Pod != nil && h.Pod.UID == uid {
			reported = append(reported, h)
		}
	}
	return reported
}

// story writes all events since the mark.
func (o *observer) story(mark int) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var b strings.Builder
	for _, h := range o.reported[mark:] {
		fmt.Fprintf(&b, "%s %s", h.at.Format("05.000"), h.Type)
		if p := h.Pod; p != nil {
			fmt.Fprintf(&b, " %s %s %q %s %+v deletion %s", p.Name, p.Status.Phase, p.Status.Ready.Readiness, p.Status.Ready.Reason, p.Status.Runs, p.Deletion.Format("05"))
		}
		b.WriteByte('\n')
	}
	return b.String()
}
