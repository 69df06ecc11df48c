package pods

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// noon is when the story of each test begins.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return noon.Add(time.Duration(seconds) * time.Second) }

// a pod "a": Ready, or not, since so many seconds after noon.
func pod(name string, v Verdict, since int, change ...func(*Pod)) *Pod {
	p := &Pod{
		Ref:    Ref{Namespace: "shop", Name: name, UID: "uid-" + name},
		Status: PodStatus{Phase: Running, Ready: Condition{Verdict: v, Since: at(since)}, Runs: []Run{{Container: "c", ID: "id-0", Running: true}}},
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

// inWords tells events as a person would: "+a Ready, ~a NotReady deleting, -a, synced".
func inWords(events []Event) string {
	var words []string
	for _, e := range events {
		if e.Type == Synced {
			words = append(words, "synced")
			continue
		}
		w := map[Type]string{Added: "+", Modified: "~", Deleted: "-"}[e.Type] + e.Pod.Name
		if e.Type != Deleted {
			w += " " + e.Pod.Status.Ready.Verdict.String()
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

// step is a report and what is to be told because of it.
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
		"an empty node is told to be complete": {
			{Kubelet, list(), "synced"},
		},
		"changes, and what is none": {
			{Kubelet, list(pod("a", NotReady, 0)), "+a NotReady, synced"},
			{Kubelet, say(pod("a", NotReady, 0)), ""},
			{Kubelet, say(pod("a", Ready, 1)), "~a Ready"},
			{Kubelet, say(pod("b", NotReady, 1)), "+b NotReady"},
			{Kubelet, report{gone: "uid-a"}, "-a"},
			{Kubelet, report{gone: "uid-a"}, ""},
		},
		"a new list tells the difference": {
			{Kubelet, list(pod("a", Ready, 0), pod("b", Ready, 0), pod("c", Ready, 0)), "+a Ready, +b Ready, +c Ready, synced"},
			{Kubelet, lost, ""},
			{Kubelet, list(pod("b", Ready, 0), pod("c", NotReady, 1), pod("d", NotReady, 1)), "~c NotReady, +d NotReady, -a, synced"},
		},
		"a pod that has ended is deleted, and no list brings it back": {
			{Kubelet, list(pod("a", Ready, 0)), "+a Ready, synced"},
			{Kubelet, say(pod("a", NotReady, 1, in(Failed))), "~a NotReady"},
			{Kubelet, say(pod("a", NotReady, 1, in(Failed), stopped)), "-a"},
			{Kubelet, list(pod("a", NotReady, 1, in(Failed), stopped), pod("job", NotReady, 1, in(Succeeded), stopped)), "synced"},
		},
		"a kubelet that has not looked takes no verdict back": {
			{Kubelet, list(pod("a", Ready, 0)), "+a Ready, synced"},
			{Kubelet, lost, ""},
			{Kubelet, list(pod("a", Unknown, 0)), "synced"},
			{Kubelet, say(pod("a", Unknown, 0, labelled)), "~a Ready labelled"},
			{Kubelet, say(pod("a", NotReady, 2, labelled)), "~a NotReady labelled"},
		},
		"nor gives one that was not there": {
			{Kubelet, list(pod("a", Unknown, 0)), "+a Unknown, synced"},
			{Kubelet, say(pod("a", Ready, 0)), "~a Ready"},
		},
		"a kubelet's list from the API server's old status": {
			{Kubelet, list(pod("a", Ready, 5), pod("b", Ready, 0, restarted)), "+a Ready, +b Ready restarted 1, synced"},
			{Kubelet, lost, ""},
			{Kubelet, list(pod("a", NotReady, 1), pod("b", Ready, 0)), "synced"},
			{Kubelet, say(pod("a", NotReady, 7)), "~a NotReady"},
		},
		"the kubelet's clock set back does not hide its verdict": {
			{Kubelet, list(pod("a", Ready, 5)), "+a Ready, synced"},
			{Kubelet, say(pod("a", NotReady, 2)), "~a NotReady"},
		},
		"the API server steps in, and out": {
			{Kubelet, list(pod("a", Ready, 0)), "+a Ready, synced"},
			{APIServer, list(), ""}, // it is late: the kubelet is connected
			{Kubelet, lost, ""},
			{Kubelet, lost, ""},
			{APIServer, list(pod("a", Ready, 0), pod("b", NotReady, 1)), "+b NotReady, synced"},
			{APIServer, say(pod("b", Ready, 2)), "~b Ready"},
			{Kubelet, lost, ""},
			{Kubelet, list(pod("a", Ready, 0), pod("b", Ready, 2)), "synced"},
			{APIServer, say(pod("a", NotReady, 3)), ""},
			{APIServer, report{gone: "uid-a"}, ""},
		},
		"the API server knows less of the status, more of the rest": {
			{Kubelet, list(pod("a", NotReady, 5)), "+a NotReady, synced"},
			{Kubelet, lost, ""},
			{APIServer, list(pod("a", Ready, 0)), "synced"},
			{APIServer, say(pod("a", Ready, 0, beingDeleted)), "~a NotReady deleting"},
			{APIServer, say(pod("a", Ready, 6, restarted, beingDeleted)), "~a Ready deleting restarted 1"},
		},
		"no pod comes back from its deletion": {
			{Kubelet, list(pod("a", Ready, 0, beingDeleted)), "+a Ready deleting, synced"},
			{APIServer, list(), ""},
			{Kubelet, lost, ""},
			{APIServer, list(pod("a", Ready, 0)), "synced"},
		},
		"nobody answers: all stands": {
			{Kubelet, list(pod("a", Ready, 0)), "+a Ready, synced"},
			{Kubelet, lost, ""},
			{APIServer, lost, ""},
			{APIServer, list(pod("a", Ready, 0)), "synced"},
			{APIServer, lost, ""},
			{APIServer, report{resumed: true}, ""},
			{APIServer, say(pod("a", NotReady, 9)), "~a NotReady"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := memory{pods: map[string]*Pod{}}
			for i, s := range story {
				if got := inWords(m.take(s.from, s.report)); got != s.want {
					t.Errorf("step %d: told %q, want %q", i+1, got, s.want)
				}
			}
		})
	}
}
