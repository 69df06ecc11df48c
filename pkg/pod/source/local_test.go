package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

// script is a source that says what the test has it say.
type script struct {
	reports   chan report
	following atomic.Bool
	pod       *Pod // for get
	err       error
}

func newScript() *script { return &script{reports: make(chan report), err: errors.New("gone fishing")} }

func (s *script) get(context.Context, pod.Ref) (*Pod, error) { return s.pod, s.err }

func (s *script) follow(ctx context.Context, emit func(report)) {
	s.following.Store(true)
	defer s.following.Store(false)
	for {
		select {
		case r := <-s.reports:
			emit(r)
		case <-ctx.Done():
			return
		}
	}
}

// scripted is a Local that is watched in a bubble of synctest.
type scripted struct {
	*Local
	t                  *testing.T
	kubelet, apiserver *script
	reported           []Event
}

func watchScripts(t *testing.T, test func(*scripted)) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{t: t, kubelet: newScript(), apiserver: newScript()}
		s.Local = newLocal(map[Origin]source{Kubelet: s.kubelet, APIServer: s.apiserver}, slog.New(slog.DiscardHandler), nil)
		ctx, cancel := context.WithCancel(t.Context())
		go s.Watch(ctx, func(e Event) { s.reported = append(s.reported, e) })
		synctest.Wait()
		test(s)
		cancel()
		synctest.Wait()
		if s.kubelet.following.Load() || s.apiserver.following.Load() {
			t.Error("a source is still followed after Watch")
		}
	})
}

// say makes a source report r, and compares the resulting events, whether the API
// server is asked, and who is in use.
func (s *scripted) say(from *script, r report, reported string, asked bool, origin Origin) {
	s.t.Helper()
	from.reports <- r
	s.expect(reported, asked, origin)
}

func (s *scripted) expect(reported string, asked bool, origin Origin) {
	s.t.Helper()
	synctest.Wait()
	if got := inWords(s.reported); got != reported {
		s.t.Errorf("reported %q, want %q", got, reported)
	}
	s.reported = nil
	if got := s.apiserver.following.Load(); got != asked {
		s.t.Errorf("the API server is followed: %t, want %t", got, asked)
	}
	if got := s.Status().Origin; got != origin {
		s.t.Errorf("in use is %s, want %s", got, origin)
	}
}

func list(pods ...*Pod) report { return report{list: append([]*Pod{}, pods...)} }

var away = report{err: errors.New("connection refused")}

func TestKubeletRestartIsWaitedOut(t *testing.T) {
	watchScripts(t, func(s *scripted) {
		s.say(s.kubelet, list(aPod("a", pod.Ready, 0)), "+a Ready, synced", false, Kubelet)
		time.Sleep(2 * kubeletPatience)
		s.say(s.kubelet, away, "", false, None)
		time.Sleep(kubeletPatience / 2)
		s.say(s.kubelet, away, "", false, None)
		s.say(s.kubelet, list(aPod("a", pod.Ready, 0)), "synced", false, Kubelet)
		time.Sleep(2 * kubeletPatience)
		s.expect("", false, Kubelet)
	})
}

func TestAPIServerStepsInForKubelet(t *testing.T) {
	watchScripts(t, func(s *scripted) {
		s.say(s.kubelet, list(aPod("a", pod.Ready, 0)), "+a Ready, synced", false, Kubelet)
		s.say(s.kubelet, away, "", false, None)
		lost := time.Now()
		time.Sleep(kubeletPatience)
		s.expect("", true, None)
		s.say(s.apiserver, away, "", true, None)
		if got := s.Status(); got.Since != lost || got.Kubelet == nil || got.APIServer == nil {
			t.Errorf("status %+v, want both errors, since %s", got, lost)
		}
		s.say(s.apiserver, list(aPod("a", pod.Ready, 0), aPod("b", pod.Ready, 0)), "+b Ready, synced", true, APIServer)
		s.say(s.apiserver, away, "", true, None)
		s.say(s.kubelet, away, "", true, None)
		s.say(s.apiserver, report{resumed: true}, "", true, APIServer)
		s.say(s.kubelet, list(aPod("a", pod.Ready, 0)), "-b, synced", false, Kubelet)
		if got := s.Status(); got.Kubelet != nil || got.APIServer != nil {
			t.Errorf("status %+v, want no error", got)
		}
		// And again.
		s.say(s.kubelet, away, "", false, None)
		time.Sleep(kubeletPatience)
		s.say(s.apiserver, list(), "-a, synced", true, APIServer)
	})
}

func TestKubeletWithoutPodsAPI(t *testing.T) {
	watchScripts(t, func(s *scripted) {
		s.say(s.kubelet, report{err: fmt.Errorf("Unimplemented: %w", errNotServed)}, "", true, None)
		s.say(s.apiserver, list(aPod("a", pod.Ready, 0)), "+a Ready, synced", true, APIServer)
		if got := s.Status(); got.Kubelet == nil || !strings.Contains(got.Kubelet.Error(), "1.37") {
			t.Errorf("status %+v, want it to say which kubelet is wanted", got)
		}
	})
}

func TestKubeletSilentFromTheStart(t *testing.T) {
	watchScripts(t, func(s *scripted) {
		time.Sleep(kubeletPatience - time.Nanosecond)
		s.expect("", false, None)
		time.Sleep(time.Nanosecond)
		s.expect("", true, None)
	})
}

func TestGetAsksInOrder(t *testing.T) {
	fromKubelet, fromAPI, old := aPod("a", pod.Ready, 0), aPod("a", pod.Ready, 0, labelled), aPod("a", pod.Ready, 0)
	watched := aPod("a", pod.Ready, 0, restarted)
	gone := fmt.Errorf("%w: a", ErrNotFound)
	for name, c := range map[string]struct {
		kubelet, apiserver *script
		source             Origin // of the watch
		known              *Pod   // to the watch
		want               *Pod
		wantErr            string
	}{
		"the kubelet":                             {kubelet: &script{pod: fromKubelet}, source: Kubelet, known: old, want: fromKubelet},
		"the kubelet has none":                    {kubelet: &script{err: gone}, source: Kubelet, known: old, wantErr: "no such pod"},
		"the watch, if it is of the API server":   {kubelet: &script{err: away.err}, source: APIServer, known: watched, want: watched},
		"the API server, if the watch knows none": {kubelet: &script{err: away.err}, apiserver: &script{pod: fromAPI}, source: APIServer, want: fromAPI},
		"the API server, if the watch is stale":   {kubelet: &script{err: away.err}, apiserver: &script{pod: fromAPI}, known: old, want: fromAPI},
		"the API server has none":                 {kubelet: &script{err: away.err}, apiserver: &script{err: gone}, known: old, wantErr: "no such pod"},
		"memory":                                  {kubelet: &script{err: away.err}, apiserver: &script{err: away.err}, known: old, want: old},
		"neither":                                 {kubelet: &script{err: away.err}, apiserver: &script{err: errors.New("timeout")}, wantErr: "pod shop/a: connection refused\ntimeout"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLocal(map[Origin]source{Kubelet: c.kubelet, APIServer: c.apiserver}, slog.New(slog.DiscardHandler), nil)
			l.status.Origin = c.source
			if c.known != nil {
				l.memory.pods[c.known.UID] = c.known
			}
			for _, ref := range []pod.Ref{old.Ref, {Namespace: "shop", Name: "a"}} {
				got, err := l.Get(t.Context(), ref)
				if got != c.want || (err == nil) != (c.wantErr == "") || err != nil && !strings.Contains(err.Error(), c.wantErr) {
					t.Errorf("Get(%+v) = %p, %v, want %p, %q", ref, got, err, c.want, c.wantErr)
				}
			}
		})
	}
}

func TestNewWantsASource(t *testing.T) {
	if _, err := New(Config{Node: "node1"}); err == nil {
		t.Error("New without any source returned no error")
	}
}
