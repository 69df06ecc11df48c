package source

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

// noon is when the story of each test begins.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return noon.Add(time.Duration(seconds) * time.Second) }

// aPod is pod "a": Ready, or not, since so many seconds after noon.
func aPod(name string, readiness pod.Readiness, since int, change ...func(*Pod)) *Pod {
	p := &Pod{
		Ref:    pod.Ref{Namespace: "shop", Name: name, UID: pod.UID("uid-" + name)},
		Status: PodStatus{Phase: Running, Ready: Condition{Readiness: readiness, Since: at(since)}, Runs: []Run{{Container: "c", ID: "id-0", Running: true}}},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func restarted(p *Pod) {
	p.Status.Runs = []Run{{Container: "c", ID: "id-1", Restarts: 1, Running: true}}
}

func beingDeleted(p *Pod) { p.Deletion = at(30) }

func in(phase Phase) func(*Pod) {
	return func(p *Pod) { p.Status.Phase = phase }
}

func stopped(p *Pod) { p.Status.Runs[0].Running = false }

func labelled(p *Pod) { p.Labels = map[string]string{"tier": "web"} }

// inWords writes events in short: "+a Ready, ~a NotReady deleting, -a, synced".
func inWords(events []Event) string {
	var words []string
	for _, e := range events {
		if e.Type == Synced {
			words = append(words, "synced")
			continue
		}
		w := map[Type]string{Added: "+", Modified: "~", Deleted: "-"}[e.Type] + e.Pod.Name
		if e.Type != Deleted {
			w += " " + e.Pod.Status.Ready.Readiness.String()
			if !e.Pod.Deletion.IsZero() {
				w += " deleting"
			}
			if e.Pod.Labels != nil {
				w += " labelled"
			}
			if n := e.Pod.Status.Runs[0].Restarts; n != 0 {
				w += fmt.Sprintf(" restarted %d", n)
			}
		}
		words = append(words, w)
	}
	return strings.Join(words, ", ")
}

// step is a report and the events that it should cause.
type step struct {
	from Origin
	report
	want string
}

func TestMemory(t *testing.T) {
	list := func(pods ...*Pod) report { return report{list: append([]*Pod{}, pods...)} }
	say := func(p *Pod) report { return report{pod: p} }
	lost := report{err: fmt.Errorf("cut off")}
	for name, story := range map[string][]step{
		"an empty node is reported as complete": {
			{Kubelet, list(), "synced"},
		},
		"changes, and what is none": {
			{Kubelet, list(aPod("a", pod.NotReady, 0)), "+a NotReady, synced"},
			{Kubelet, say(aPod("a", pod.NotReady, 0)), ""},
			{Kubelet, say(aPod("a", pod.Ready, 1)), "~a Ready"},
			{Kubelet, say(aPod("b", pod.NotReady, 1)), "+b NotReady"},
			{Kubelet, report{gone: "uid-a"}, "-a"},
			{Kubelet, report{gone: "uid-a"}, ""},
		},
		"a new list reports the difference": {
			{Kubelet, list(aPod("a", pod.Ready, 0), aPod("b", pod.Ready, 0), aPod("c", pod.Ready, 0)), "+a Ready, +b Ready, +c Ready, synced"},
			{Kubelet, lost, ""},
			{Kubelet, list(aPod("b", pod.Ready, 0), aPod("c", pod.NotReady, 1), aPod("d", pod.NotReady, 1)), "~c NotReady, +d NotReady, -a, synced"},
		},
		"a pod that has ended is deleted, and no list brings it back": {
			{Kubelet, list(aPod("a", pod.Ready, 0)), "+a Ready, synced"},
			{Kubelet, say(aPod("a", pod.NotReady, 1, in(Failed))), "~a NotReady"},
			{Kubelet, say(aPod("a", pod.NotReady, 1, in(Failed), stopped)), "-a"},
			{Kubelet, list(aPod("a", pod.NotReady, 1, in(Failed), stopped), aPod("job", pod.NotReady, 1, in(Succeeded), stopped)), "synced"},
		},
		"a kubelet that has not looked takes no readiness back": {
			{Kubelet, list(aPod("a", pod.Ready, 0)), "+a Ready, synced"},
			{Kubelet, lost, ""},
			{Kubelet, list(aPod("a", pod.Unknown, 0)), "synced"},
			{Kubelet, say(aPod("a", pod.Unknown, 0, labelled)), "~a Ready labelled"},
			{Kubelet, say(aPod("a", pod.NotReady, 2, labelled)), "~a NotReady labelled"},
		},
		"nor gives one that was not there": {
			{Kubelet, list(aPod("a", pod.Unknown, 0)), "+a Unknown, synced"},
			{Kubelet, say(aPod("a", pod.Ready, 0)), "~a Ready"},
		},
		"a kubelet's list from the API server's old status": {
			{Kubelet, list(aPod("a", pod.NotReady, 5), aPod("b", pod.Ready, 0, restarted)), "+a NotReady, +b Ready restarted 1, synced"},
			{Kubelet, lost, ""},
			{Kubelet, list(aPod("a", pod.Ready, 1), aPod("b", pod.NotReady, 0)), "synced"},
			{Kubelet, say(aPod("a", pod.Ready, 7)), "~a Ready"},
		},
		"a clock set back, or another writer: NotReady wins at the start of a stream": {
			{Kubelet, list(aPod("a", pod.Ready, 5)), "+a Ready, synced"},
			{Kubelet, lost, ""},
			{Kubelet, list(aPod("a", pod.NotReady, 2)), "~a NotReady, synced"},
			{Kubelet, lost, ""},
			{Kubelet, list(aPod("a", pod.Ready, 1)), "synced"},
			{Kubelet, say(aPod("a", pod.Ready, 1)), "~a Ready"},
		},
		"and the order of the API server's stream holds": {
			{APIServer, list(aPod("a", pod.Ready, 5)), "+a Ready, synced"},
			{APIServer, say(aPod("a", pod.NotReady, 2)), "~a NotReady"},
			{APIServer, say(aPod("a", pod.NotReady, 2, labelled)), "~a NotReady labelled"},
			{APIServer, say(aPod("a", pod.Ready, 1, labelled)), "~a Ready labelled"},
			{APIServer, say(aPod("a", pod.NotReady, 3)), "~a NotReady"},
			{APIServer, lost, ""},
			{APIServer, list(aPod("a", pod.NotReady, 0)), "~a NotReady, synced"},
		},
		"the kubelet's clock set back does not hide what it says": {
			{Kubelet, list(aPod("a", pod.Ready, 5)), "+a Ready, synced"},
			{Kubelet, say(aPod("a", pod.NotReady, 2)), "~a NotReady"},
		},
		"the API server steps in, and out": {
			{Kubelet, list(aPod("a", pod.Ready, 0)), "+a Ready, synced"},
			{APIServer, list(), ""}, // it is late: the kubelet is connected
			{Kubelet, lost, ""},
			{Kubelet, lost, ""},
			{APIServer, list(aPod("a", pod.Ready, 0), aPod("b", pod.NotReady, 1)), "+b NotReady, synced"},
			{APIServer, say(aPod("b", pod.Ready, 2)), "~b Ready"},
			{Kubelet, lost, ""},
			{Kubelet, list(aPod("a", pod.Ready, 0), aPod("b", pod.Ready, 2)), "synced"},
			{APIServer, say(aPod("a", pod.NotReady, 3)), ""},
			{APIServer, report{gone: "uid-a"}, ""},
		},
		"the API server knows less of the status, more of the rest": {
			{Kubelet, list(aPod("a", pod.NotReady, 5)), "+a NotReady, synced"},
			{Kubelet, lost, ""},
			{APIServer, list(aPod("a", pod.Ready, 0)), "synced"},
			{APIServer, say(aPod("a", pod.Ready, 0, beingDeleted)), "~a NotReady deleting"},
			{APIServer, say(aPod("a", pod.Ready, 6, restarted, beingDeleted)), "~a Ready deleting restarted 1"},
		},
		"no pod comes back from its deletion": {
			{Kubelet, list(aPod("a", pod.Ready, 0, beingDeleted)), "+a Ready deleting, synced"},
			{APIServer, list(), ""},
			{Kubelet, lost, ""},
			{APIServer, list(aPod("a", pod.Ready, 0)), "synced"},
		},
		"no source answers, nothing changes": {
			{Kubelet, list(aPod("a", pod.Ready, 0)), "+a Ready, synced"},
			{Kubelet, lost, ""},
			{APIServer, lost, ""},
			{APIServer, list(aPod("a", pod.Ready, 0)), "synced"},
			{APIServer, lost, ""},
			{APIServer, report{resumed: true}, ""},
			{APIServer, say(aPod("a", pod.NotReady, 9)), "~a NotReady"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := memory{pods: map[pod.UID]*Pod{}}
			for i, s := range story {
				if got := inWords(m.take(s.from, s.report)); got != s.want {
					t.Errorf("step %d: reported %q, want %q", i+1, got, s.want)
				}
			}
		})
	}
}
