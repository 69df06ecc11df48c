package agent

import (
	"context"
	"log/slog"
	"testing"

	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/pod"
	"flock.fritzlab.net/flock/pkg/pod/source"
)

// slowSource answers when it is told to.
type slowSource struct {
	source.Source
	asked  chan struct{}
	answer chan *source.Pod
}

func (s slowSource) Get(context.Context, pod.Ref) (*source.Pod, error) {
	close(s.asked)
	return <-s.answer, nil
}

// Of what an event and an answer to the start of a pod say, the later version counts,
// whichever comes first.
func TestLatestVersionOfPod(t *testing.T) {
	t.Parallel()
	ref := pod.Ref{Namespace: "shop", Name: "web", UID: "uid-web"}
	version := func(v uint64, app string) *source.Pod {
		return &source.Pod{Ref: ref, Version: v, Labels: map[string]string{"app": app}}
	}
	for _, c := range []struct {
		name                 string
		early, answer, later *source.Pod // an event before the answer, the answer, an event after it
		want                 string
	}{
		{"the answer is older", version(8, "new"), version(7, "old"), nil, "new"},
		{"the answer is newer", version(7, "old"), version(8, "new"), nil, "new"},
		{"there is only the answer", nil, version(8, "new"), nil, "new"},
		{"an older event comes late", nil, version(8, "new"), version(7, "old"), "new"},
		{"a newer event comes late", nil, version(8, "old"), version(9, "new"), "new"},
		{"static pods have no version", version(0, "old"), version(0, "new"), nil, "new"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := slowSource{asked: make(chan struct{}), answer: make(chan *source.Pod)}
			p := newPolicies(policy.Config{Log: slog.New(slog.DiscardHandler)}, nil, s, nil)
			event := func(o *source.Pod) {
				if o != nil {
					p.podChanged(source.Event{Type: source.Modified, Pod: o})
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() {
				done <- p.prepare(ctx, ledger.Record{Pod: ref, ID: ledger.ID{ContainerID: "c", IfName: "eth0"}}, nil)
			}()
			<-s.asked
			event(c.early)
			s.answer <- c.answer
			cancel() // nothing runs that would put it into force
			<-done
			event(c.later)
			p.mu.Lock()
			defer p.mu.Unlock()
			if got := p.seen[ref.UID].Labels["app"]; got != c.want {
				t.Errorf("the pod is known as %q, want %q", got, c.want)
			}
		})
	}
}
