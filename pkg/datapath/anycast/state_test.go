package anycast

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

var (
	start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	dns   = netip.MustParseAddr("2001:db8::53")
	dns4  = netip.MustParseAddr("192.0.2.53")
)

// sandbox is a pod called by one letter, its sandbox "sa1" and so on, at dns.
func sandbox(name string, link int, delay time.Duration) Attached {
	return Attached{
		ContainerID: fmt.Sprintf("s%s%d", name, link),
		Pod:         pod.Ref{Namespace: "shop", Name: name, UID: pod.UID(name)},
		Link:        link,
		Grants:      []Grant{{Addr: dns, Delay: delay}},
	}
}

// readiness is about the pod with these containers, for example "c1/0": ID and
// restart count.
func readiness(name string, ready bool, containers ...string) Readiness {
	v := Readiness{UID: pod.UID(name), Ready: pod.Ready}
	if !ready {
		v.Ready = pod.NotReady
		v.Reason, v.Message = "ContainersNotReady", "containers with unready status: [main]"
	}
	for _, c := range containers {
		x := Container{Name: "main"}
		if _, err := fmt.Sscanf(strings.Replace(c, "/", " ", 1), "%s %d", &x.ID, &x.Restarts); err != nil {
			panic(c)
		}
		v.Containers = append(v.Containers, x)
	}
	return v
}

func terminating(v Readiness) Readiness { v.Terminating = true; return v }

func since(v Readiness, t time.Duration) Readiness { v.Since = start.Add(t); return v }

// step is an event, or time that passes, and what then is said of dns.
type step struct {
	after time.Duration // since the step before
	event Event         // nil for Tick alone
	want  string        // reason and role by pod, or "-"
	entry string        // Entry.String; not checked if empty
}

func inWords(s *State) string {
	var words []string
	for _, p := range s.Paths() {
		words = append(words, fmt.Sprintf("%s:%s:%s", p.Pod.Name, p.Reason, p.Role))
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, " ")
}

func TestState(t *testing.T) {
	ready, notReady := readiness("a", true, "c1/0"), readiness("a", false, "c1/0")
	initializing := readiness("a", false, "c1/0")
	initializing.Ready = pod.Unknown
	for name, steps := range map[string][]step{
		"a rebuilt record without its pod's UID, then with it": {
			{0, Attached{"sa4", pod.Ref{Namespace: "shop", Name: "a"}, 4, []Grant{{Addr: dns}}}, "a:ReadinessUnknown:Withheld", "nothing"},
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", "nothing"},
			{0, ready, "a:Ready:Announced", "announced via 4"},
			{0, Resync{[]Readiness{ready}}, "a:Ready:Announced", "announced via 4"},
			{0, Detached{"sa4"}, "-", "nothing"},
		},
		"announced while Ready": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", "nothing"},
			{0, notReady, "a:NotReady:Withheld", "nothing"},
			{0, ready, "a:Ready:Announced", "announced via 4"},
			{0, notReady, "a:NotReady:Draining", "local via 4"},
			{DrainTime, nil, "a:NotReady:LastResort", "local via 4"},
			{LingerTime - DrainTime, nil, "a:NotReady:Withheld", "nothing"},
			{time.Hour, ready, "a:Ready:Announced", "announced via 4"},
			{0, Detached{"sa4"}, "-", "nothing"},
		},
		"the times of two clocks do not order what a source says": {
			{time.Minute, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, since(ready, 50*time.Second), "a:Ready:Announced", ""},
			{0, since(notReady, 10*time.Second), "a:NotReady:Draining", "local via 4"},
			{0, since(ready, 5*time.Second), "a:Ready:Announced", ""},
			{0, Resync{[]Readiness{since(notReady, time.Second)}}, "a:NotReady:Draining", "local via 4"},
		},
		"an exit before the agent watched is known when a source names the container": {
			{0, Exited{ContainerID: "c1", At: start.Add(-time.Second)}, "-", ""},
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, Resync{[]Readiness{ready}}, "a:ContainerExited:Withheld", "nothing"},
			{0, readiness("a", true, "c2/1"), "a:Ready:Announced", "announced via 4"},
		},
		"readiness may come before the sandbox": {
			{0, ready, "-", ""},
			{0, sandbox("a", 4, 0), "a:Ready:Announced", "announced via 4"},
		},
		"a terminating pod serves what it has and never comes back": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, terminating(ready), "a:Terminating:Draining", "local via 4"},
			{0, ready, "a:Terminating:Draining", "local via 4"},
			{time.Hour, nil, "a:Terminating:LastResort", "local via 4"},
			{0, Resync{[]Readiness{ready}}, "a:Terminating:LastResort", "local via 4"},
			{0, Exited{ContainerID: "sa4"}, "a:SandboxExited:Withheld", "nothing"},
			{0, Detached{"sa4"}, "-", "nothing"},
		},
		"a pod deleted from the API is terminating": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, Gone{"a"}, "a:Terminating:Draining", ""},
			{0, ready, "a:Terminating:Draining", ""},
		},
		"a pod that is to be deleted is terminating, from whichever source": {
			{0, Deleting{"a"}, "-", "nothing"},
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, Deleting{"b"}, "a:Ready:Announced", ""},
			{0, Deleting{"a"}, "a:Terminating:Draining", "local via 4"},
			{0, ready, "a:Terminating:Draining", ""},
			{0, Resync{[]Readiness{ready}}, "a:Terminating:Draining", ""},
			{0, terminating(ready), "a:Terminating:Draining", ""},
		},
		"terminating before it was ever Ready": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, terminating(notReady), "a:Terminating:Withheld", "nothing"},
			{0, terminating(ready), "a:Terminating:Withheld", "nothing"},
		},
		"a stale Ready does not outlive an exit": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, Exited{ContainerID: "c1"}, "a:ContainerExited:LastResort", "local via 4"},
			{0, ready, "a:ContainerExited:LastResort", "local via 4"},
			{0, Resync{[]Readiness{ready}}, "a:ContainerExited:LastResort", "local via 4"},
			{0, notReady, "a:NotReady:LastResort", "local via 4"},
			{0, ready, "a:ContainerExited:LastResort", "local via 4"},
			{0, readiness("a", false, "c2/1"), "a:NotReady:LastResort", "local via 4"},
			{LingerTime, readiness("a", false, "c2/1"), "a:NotReady:Withheld", "nothing"},
			{0, readiness("a", true, "c2/1"), "a:Ready:Announced", "announced via 4"},
			{0, ready, "a:ContainerExited:LastResort", "local via 4"},
			{0, readiness("a", true, "c2/1"), "a:Ready:Announced", "announced via 4"},
		},
		"a higher restart count is newer than an exit": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, Exited{ContainerID: "c1"}, "a:ContainerExited:LastResort", ""},
			{0, readiness("a", true, "c1/1"), "a:Ready:Announced", ""},
		},
		"an exit may come before the status that names the container": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, Exited{ContainerID: "c2"}, "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, readiness("a", true, "c2/1"), "a:ContainerExited:LastResort", ""},
			{0, readiness("a", true, "c3/2"), "a:Ready:Announced", ""},
		},
		"one container of two": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, readiness("a", true, "c1/0", "d1/0"), "a:Ready:Announced", ""},
			{0, Exited{ContainerID: "d1"}, "a:ContainerExited:LastResort", ""},
			{0, readiness("a", true, "c1/0", "d1/0"), "a:ContainerExited:LastResort", ""},
			{0, readiness("a", true, "c1/0", "d2/1"), "a:Ready:Announced", ""},
		},
		"exits of other containers are nothing to the pod": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, Exited{ContainerID: "debugger"}, "a:Ready:Announced", ""},
		},
		"a crash of a terminating pod": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, Exited{ContainerID: "c1"}, "a:ContainerExited:LastResort", ""},
			{0, terminating(notReady), "a:Terminating:LastResort", "local via 4"},
		},
		"an initializing kubelet says nothing": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, initializing, "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, initializing, "a:Ready:Announced", ""},
			{0, Resync{[]Readiness{initializing}}, "a:Ready:Announced", ""},
			{0, terminating(initializing), "a:Terminating:Draining", ""},
		},
		"a lost source changes nothing, but exits, links and DEL do": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, sandbox("b", 5, 0), "a:ReadinessUnknown:Withheld b:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced b:ReadinessUnknown:Withheld", ""},
			{0, readiness("b", true, "d1/0"), "a:Ready:Announced b:Ready:Announced", "announced via 4 5"},
			{0, SourceLost{}, "a:Ready:Announced b:Ready:Announced", ""},
			{time.Hour, nil, "a:Ready:Announced b:Ready:Announced", ""},
			{0, Exited{ContainerID: "c1"}, "a:ContainerExited:LastResort b:Ready:Announced", "announced via 5"},
			{0, Link{Index: 5}, "a:ContainerExited:LastResort b:LinkDown:Withheld", "local via 4"},
			{0, Detached{"sa4"}, "b:LinkDown:Withheld", "nothing"},
		},
		"a pod that the source does not know": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, Resync{}, "a:NotFound:Draining", ""},
			{0, ready, "a:Ready:Announced", ""},
		},
		"an announce delay": {
			{0, sandbox("a", 4, 10*time.Second), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:AnnounceDelay:Withheld", "nothing"},
			{9 * time.Second, nil, "a:AnnounceDelay:Withheld", "nothing"},
			{0, notReady, "a:NotReady:Withheld", ""},
			{time.Second, ready, "a:AnnounceDelay:Withheld", ""},
			{9 * time.Second, ready, "a:AnnounceDelay:Withheld", ""},
			{time.Second, nil, "a:Ready:Announced", "announced via 4"},
			{0, notReady, "a:NotReady:Draining", "local via 4"},
			{0, ready, "a:AnnounceDelay:Draining", "local via 4"},
			{5 * time.Second, nil, "a:AnnounceDelay:LastResort", "local via 4"},
			{5 * time.Second, nil, "a:Ready:Announced", "announced via 4"},
			{0, Link{4, false}, "a:LinkDown:Withheld", "nothing"},
			{0, Link{4, true}, "a:AnnounceDelay:Withheld", "nothing"},
			{10 * time.Second, nil, "a:Ready:Announced", "announced via 4"},
			{0, Exited{ContainerID: "c1", At: start}, "a:ContainerExited:LastResort", ""},
			{5 * time.Second, readiness("a", true, "c2/1"), "a:AnnounceDelay:LastResort", ""},
			{9 * time.Second, nil, "a:AnnounceDelay:LastResort", ""},
			{time.Second, nil, "a:Ready:Announced", ""},
		},
		"time that the pod was Ready before the agent knew counts": {
			{time.Minute, sandbox("a", 4, 10*time.Second), "a:ReadinessUnknown:Withheld", ""},
			{0, since(ready, 55*time.Second), "a:AnnounceDelay:Withheld", ""},
			{5*time.Second + 999*time.Millisecond, nil, "a:AnnounceDelay:Withheld", ""},
			{time.Millisecond, nil, "a:Ready:Announced", ""},
		},
		"but not time before a crash that the kubelet missed": {
			{time.Minute, sandbox("a", 4, 10*time.Second), "a:ReadinessUnknown:Withheld", ""},
			{0, since(ready, 0), "a:Ready:Announced", ""},
			{0, Exited{ContainerID: "c1"}, "a:ContainerExited:LastResort", ""},
			{0, since(readiness("a", true, "c2/1"), 0), "a:AnnounceDelay:LastResort", ""},
		},
		"what the pool changes holds at once": {
			{0, sandbox("a", 4, time.Hour), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:AnnounceDelay:Withheld", ""},
			{0, sandbox("a", 4, 0), "a:Ready:Announced", "announced via 4"},
			{0, Attached{ContainerID: "sa4", Pod: sandbox("a", 4, 0).Pod, Link: 4}, "-", "nothing"},
		},
		"a new sandbox does not inherit the readiness of the old": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, sandbox("a", 7, 0), "a:SandboxReplaced:Withheld a:ContainerExited:Withheld", "nothing"},
			{0, readiness("a", true, "c2/1"), "a:SandboxReplaced:Withheld a:Ready:Announced", "announced via 7"},
			{0, Detached{"sa4"}, "a:Ready:Announced", "announced via 7"},
		},
		"nor after the old has gone": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, Detached{"sa4"}, "-", "nothing"},
			{0, sandbox("a", 7, 0), "a:ContainerExited:Withheld", ""},
			{0, readiness("a", true, "c2/0"), "a:Ready:Announced", "announced via 7"},
		},
		"a sandbox that dies": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, Exited{ContainerID: "sa4"}, "a:SandboxExited:LastResort", ""},
			{0, readiness("a", true, "c2/1"), "a:SandboxExited:LastResort", ""},
			{LingerTime, nil, "a:SandboxExited:Withheld", ""},
		},
		"a link's number given again": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, sandbox("b", 4, 0), "b:ReadinessUnknown:Withheld", "nothing"},
		},
		"beside announced pods a draining one keeps its flows for a while": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, sandbox("b", 5, 0), "a:ReadinessUnknown:Withheld b:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced b:ReadinessUnknown:Withheld", "announced via 4"},
			{0, readiness("b", true, "d1/0"), "a:Ready:Announced b:Ready:Announced", "announced via 4 5"},
			{0, terminating(ready), "a:Terminating:Draining b:Ready:Announced", "announced via 5 4 (drains)"},
			{DrainTime, nil, "a:Terminating:LastResort b:Ready:Announced", "announced via 5"},
			{0, readiness("b", false, "d1/0"), "a:Terminating:LastResort b:NotReady:Draining", "local via 4 5"},
		},
		"all links at once": {
			{0, sandbox("a", 4, 0), "a:ReadinessUnknown:Withheld", ""},
			{0, ready, "a:Ready:Announced", ""},
			{0, Links{map[int]bool{5: true}}, "a:LinkDown:Withheld", "nothing"},
			{0, Links{map[int]bool{4: true}}, "a:Ready:Announced", "announced via 4"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, now := NewState(start, nil, nil), start
			for i, step := range steps {
				now = now.Add(step.after)
				s.Tick(now)
				if step.event != nil {
					s.Apply(now, step.event, now)
				}
				if got := inWords(s); got != step.want {
					t.Fatalf("step %d, %T%+v: %s, want %s", i, step.event, step.event, got, step.want)
				}
				if got := s.Desired()[dns].String(); step.entry != "" && got != step.entry {
					t.Fatalf("step %d, %T%+v: %s, want %s", i, step.event, step.event, got, step.entry)
				}
				if next := s.Next(); !next.IsZero() && !next.After(now) {
					t.Fatalf("step %d: the next tick, %v, is not ahead of %v", i, next, now)
				}
			}
		})
	}
}

// What an earlier run of the agent announced stays until a source has spoken.
func TestStartOverRoutesOfAnEarlierRun(t *testing.T) {
	kernel := map[netip.Addr]Entry{
		dns:  {Announced: true, Local: true, Members: []Member{{Link: 4}, {Link: 5}, {Link: 9, Drains: true}}},
		dns4: {Local: true, Members: []Member{{Link: 6}}},
	}
	other := sandbox("c", 6, 0)
	other.Grants[0].Addr = dns4
	begin := func() *State {
		return NewState(start, []Attached{sandbox("a", 4, time.Hour), sandbox("b", 5, 0), other}, kernel)
	}
	const kept = "c:ReadinessUnknown:LastResort a:Kept:Announced b:Kept:Announced"
	for _, tt := range []struct {
		event Event
		want  string
	}{
		{SourceLost{}, kept},
		{Resync{[]Readiness{since(readiness("a", true), -2*time.Hour), readiness("b", true)}},
			"c:NotFound:LastResort a:Ready:Announced b:Ready:Announced"},
		{Exited{ContainerID: "c1"}, kept}, // of which pod is not known
		{Resync{[]Readiness{readiness("a", false)}}, "c:NotFound:LastResort a:NotReady:Draining b:NotFound:Draining"},
		{readiness("b", false), "c:ReadinessUnknown:LastResort a:Kept:Announced b:NotReady:Draining"},
		{Resync{[]Readiness{{UID: "a"}}}, "c:NotFound:LastResort a:Kept:Announced b:NotFound:Draining"},
		{Link{Index: 4}, "c:ReadinessUnknown:LastResort a:LinkDown:Withheld b:Kept:Announced"},
		{Detached{"sa4"}, "c:ReadinessUnknown:LastResort b:Kept:Announced"},
		{Exited{ContainerID: "sb5"}, "c:ReadinessUnknown:LastResort a:Kept:Announced b:SandboxExited:LastResort"},
	} {
		s := begin()
		if got := inWords(s); got != kept {
			t.Fatalf("at start: %s, want %s", got, kept)
		}
		want, transitions := s.Wanted()
		if got := fmt.Sprint(Plan(want, kernel)); got != "[set group 2001:db8::53 4 5]" {
			t.Errorf("at start: %s, want only the link of no sandbox to go", got)
		}
		if len(transitions) != 0 {
			t.Errorf("at start: transitions %v of what has not changed", transitions)
		}
		s.Apply(start, tt.event, start)
		if got := inWords(s); got != tt.want {
			t.Errorf("after %T%+v: %s, want %s", tt.event, tt.event, got, tt.want)
		}
	}
}

// A kept announcement with a delay that is not over, by what the source says, is not
// taken back for it: that would be a flap made by the agent's restart.
func TestRestartDoesNotDelayWhatIsAnnounced(t *testing.T) {
	kernel := map[netip.Addr]Entry{dns: {Announced: true, Local: true, Members: []Member{{Link: 4}}}}
	s := NewState(start, []Attached{sandbox("a", 4, time.Hour)}, kernel)
	s.Apply(start, Resync{[]Readiness{readiness("a", true, "c1/0")}}, start)
	if got := inWords(s); got != "a:Ready:Announced" {
		t.Error(got)
	}
}

// What an earlier run announced is withdrawn if a container of the pod exited while no
// agent ran, though the kubelet has not looked yet.
func TestExitWhileNoAgentRan(t *testing.T) {
	kernel := map[netip.Addr]Entry{dns: {Announced: true, Local: true, Members: []Member{{Link: 4}}}}
	s := NewState(start, []Attached{sandbox("a", 4, 0)}, kernel)
	for i, step := range []struct {
		event Event
		want  string
	}{
		{Exited{ContainerID: "c1", At: start.Add(-time.Second)}, "a:Kept:Announced"},
		{Resync{[]Readiness{readiness("a", true, "c1/0")}}, "a:ContainerExited:LastResort"},
		{readiness("a", true, "c2/1"), "a:Ready:Announced"},
	} {
		s.Apply(start, step.event, start)
		if got := inWords(s); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
}

func TestSourceIsLostUntilItSpeaks(t *testing.T) {
	s := NewState(start, nil, nil)
	for i, step := range []struct {
		event Event
		want  Source
	}{
		{Link{}, Source{}},
		{SourceLost{}, Source{Lost: "no source of pods can be reached"}},
		{Resync{}, Source{Synced: true}},
		{SourceLost{Why: "kubelet: no socket"}, Source{Synced: true, Lost: "kubelet: no socket"}},
		{Exited{ContainerID: "c1"}, Source{Synced: true, Lost: "kubelet: no socket"}},
		{readiness("a", true), Source{Synced: true}},
	} {
		s.Apply(start, step.event, start)
		if got := s.Source(); got != step.want {
			t.Errorf("step %d: %+v, want %+v", i, got, step.want)
		}
	}
}

func TestTransitionsTellCauseAndReason(t *testing.T) {
	s := NewState(start, nil, nil)
	s.Apply(start, sandbox("a", 4, time.Second), start)
	s.Apply(start, readiness("a", true, "c1/0"), start)
	s.Tick(start.Add(2 * time.Second)) // late by a second
	arrived := start.Add(3 * time.Second)
	s.Apply(start.Add(4*time.Second), Exited{ContainerID: "c1", At: start}, arrived)
	s.Apply(start.Add(5*time.Second), Detached{"sa4"}, start.Add(5*time.Second))
	_, transitions := s.Wanted()
	var got []string
	for _, tr := range transitions {
		got = append(got, fmt.Sprintf("%v %v %s %v %v", tr.Pod, tr.Announced, tr.Reason, tr.Since.Sub(start), tr.Cause.Sub(start)))
	}
	want := "shop/a true Ready 2s 1s\nshop/a false ContainerExited 4s 3s"
	if strings.Join(got, "\n") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, again := s.Wanted(); len(again) != 0 {
		t.Errorf("reported twice: %v", again)
	}
}

func TestWhatIsNotNeededIsForgotten(t *testing.T) {
	s := NewState(start, nil, nil)
	now := start
	for i := range 1000 {
		now = now.Add(time.Minute)
		name := fmt.Sprint("p", i)
		a := sandbox(name, i+1, 0)
		s.Apply(now, a, now)
		s.Apply(now, readiness(name, true, fmt.Sprint("c", i, "/0")), now)
		s.Apply(now, Exited{ContainerID: fmt.Sprint("c", i)}, now)
		s.Apply(now, Exited{ContainerID: fmt.Sprint("stranger", i)}, now)
		s.Apply(now, Detached{a.ContainerID}, now)
		s.Apply(now, Gone{pod.UID(name)}, now)
	}
	if n := len(s.pods) + len(s.sandbox) + len(s.byLink) + len(s.owner) + len(s.at) + len(s.timed); n != 0 {
		t.Errorf("%d pods, %d sandboxes, %d links, %d containers, %d addresses, %d timers are left", len(s.pods), len(s.sandbox), len(s.byLink), len(s.owner), len(s.at), len(s.timed))
	}
	if n := len(s.orphans); n > 12 {
		t.Errorf("exits of %d strangers are left", n)
	}
	s.Apply(now, sandbox("a", 4, 0), now)
	for i := range 1000 {
		s.Apply(now, readiness("a", true, fmt.Sprintf("c%d/%d", i, i)), now)
		s.Apply(now, Exited{ContainerID: fmt.Sprint("c", i)}, now)
	}
	if n := len(s.pods["a"].exits); n != podExits {
		t.Errorf("%d exits of one pod are remembered, want %d", n, podExits)
	}
}
