package service

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

func plain(addrs ...netip.Addr) *Service {
	svc := web("web", Local, addrs...)
	svc.Plain = true
	return svc
}

// leads is where connections lead.
type leads map[proxy.Target]netip.AddrPort

// until has them do so for a while.
func (l leads) until(end time.Time) Interim {
	out := Interim{}
	for from, to := range l {
		out[from] = Translation{to, end}
	}
	return out
}

func leadsOf(i Interim) leads {
	out := leads{}
	for from, t := range i {
		out[from] = t.To
	}
	return out
}

// newlyReady is a script in which a pod has just become Ready, and kube-proxy knows of endpoints on
// other nodes only.
func newlyReady(t *testing.T) *script {
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{})
	s.program(v4)
	s.do(report("a", pod.Ready, appWeb, podA4))
	return s
}

func (s *script) wantInterim(what string, want leads) {
	s.t.Helper()
	got := s.Interim()
	if !maps.Equal(leadsOf(got), want) {
		s.t.Errorf("%s: flock translates %v, want %v", what, got, want)
	}
	for _, t := range got {
		if left := t.Until.Sub(s.now); left <= 0 || left > afterOutage {
			s.t.Errorf("%s: to %v for %v", what, t.To, left)
		}
	}
}

// interimOf leads from an address of Service web to a pod's.
func interimOf(from, to netip.Addr) leads {
	return leads{{Addr: from, Protocol: httpPort.Protocol, Port: httpPort.Number}: netip.AddrPortFrom(to, httpPort.TargetNumber)}
}

func both(a, b leads) leads {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// A pod that becomes Ready is reached at once, by flock's translation until kube-proxy has
// its own, in each family.
func TestInterim(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4, v6)}}, PodsSynced{})
	s.looked()
	for turn := range 3 {
		s.do(report("a", pod.NotReady, appWeb, podA4, podA6))
		s.program(v4)
		s.program(v6)
		s.wait(InterimTime)
		s.wantInterim("not Ready", nil)
		s.do(report("a", pod.Ready, appWeb, podA4, podA6))
		s.want("Ready", v4.String()+"/32 announced", v6.String()+"/128 announced")
		s.wantInterim("Ready", both(interimOf(v4, podA4), interimOf(v6, podA6)))
		if got, want := s.reason(v4, "web"), "Serving flock translates tcp port 80 until kube-proxy does"; got != want {
			t.Errorf("reason %q, want %q", got, want)
		}
		s.program(v4, podA4)
		s.wantInterim("one family", interimOf(v6, podA6))
		if turn == 1 { // not Ready meanwhile
			continue
		}
		s.program(v6, podA6)
		s.wantInterim("both families", nil)
		s.want("both families", v4.String()+"/32 announced", v6.String()+"/128 announced")
		if got := s.reason(v4, "web"); got != "Serving" {
			t.Errorf("reason %q", got)
		}
	}
	// kube-proxy drops the pod: the Service does not select it any more, which this node
	// does not know.
	s.program(v4)
	s.wantInterim("dropped", nil)
	s.want("dropped", v4.String()+"/32 local", v6.String()+"/128 announced")
}

// What kube-proxy does not have after a minute is not announced.
func TestInterimEnds(t *testing.T) {
	t.Parallel()
	s := newlyReady(t)
	s.wait(InterimTime - time.Second)
	s.wantInterim("just before", interimOf(v4, podA4))
	if got, want := s.Next(), s.now.Add(time.Second); !got.Equal(want) {
		t.Errorf("something is due at %v, want %v", got, want)
	}
	s.wait(time.Second)
	s.wantInterim("after", nil)
	s.want("after", v4.String()+"/32 local")
	if got := s.reason(v4, "web"); got != "NotProgrammed kube-proxy has no rule for tcp port 80 yet" {
		t.Errorf("reason %q", got)
	}
	s.program(v4, podA4)
	s.want("at last", v4.String()+"/32 announced")
}

// A pod that goes takes its translation along, and a pod that was Ready before has none.
func TestInterimFollowsThePod(t *testing.T) {
	t.Parallel()
	for what, end := range map[string]Event{
		"NotReady": report("a", pod.NotReady, appWeb, podA4), "exit": Exited{"id-a"}, "gone": PodGone{"a"},
		"Service gone": Services{}, "held": Held{By: map[netip.Addr]string{v4: "dns/x"}},
	} {
		s := newlyReady(t)
		s.wantInterim("Ready", interimOf(v4, podA4))
		s.do(end)
		s.wantInterim(what, nil)
	}
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(report("a", pod.Ready, appWeb, podA4), PodsSynced{All: []pod.UID{"a"}})
	s.do(Services{All: []*Service{plain(v4)}})
	s.program(v4)
	s.wantInterim("Ready since before the agent started", nil)
	s.want("Ready since before the agent started", v4.String()+"/32 local")
	s.do(report("b", pod.Ready, appWeb, podB4))
	s.wantInterim("another that becomes Ready", interimOf(v4, podB4))
}

// A restart of the agent changes nothing.
func TestInterimSurvivesARestart(t *testing.T) {
	t.Parallel()
	host := v4.String() + "/32"
	s := newScript(t, map[netip.Prefix]Entry{netip.MustParsePrefix(host): {Announced: true, Local: true}})
	s.State = NewState(s.kernel, interimOf(v4, podA4).until(s.now.Add(20*time.Second)))
	has := func(when string) {
		t.Helper()
		s.want(when, host+" announced")
		s.wantInterim(when, interimOf(v4, podA4))
	}
	has("at the start")
	s.do(Slices{}, report("a", pod.Ready, appWeb, podA4))
	has("Services are not known")
	s.do(Services{All: []*Service{plain(v4)}})
	has("the node is not known")
	s.do(fit, PodsSynced{All: []pod.UID{"a"}})
	has("kube-proxy is not known")
	s.program(v4)
	has("all is known")
	s.program(v4, podA4)
	s.want("programmed", host+" announced")
	s.wantInterim("programmed", nil)
	s.wantLog()

	// What nothing accounts for goes.
	s = newScript(t, nil)
	s.State = NewState(nil, interimOf(v4, podA4).until(s.now.Add(time.Minute)))
	s.do(Services{})
	s.wantInterim("no Service", nil)
}

// A kernel that cannot translate has the node wait for kube-proxy.
func TestInterimWithoutNAT(t *testing.T) {
	t.Parallel()
	s := newlyReady(t)
	s.wantInterim("it was not tried yet", interimOf(v4, podA4))
	s.SetTranslates(false)
	s.do()
	s.wantInterim("it cannot", nil)
	s.want("it cannot", v4.String()+"/32 local")
	s.program(v4, podA4)
	s.want("programmed", v4.String()+"/32 announced")
}

// dns is another Service with the pods of web. dnsLeads leads to one of them.
func dns(addr netip.Addr) *Service {
	svc := plain(addr)
	svc.Ref.Name, svc.Ports = "dns", []Port{{Name: "dns", Protocol: 17, Number: 53, TargetNumber: 5353}}
	return svc
}

var dnsLeads = leads{{Addr: v4, Protocol: 17, Port: 53}: netip.AddrPortFrom(podA4, 5353)}

// An address that two Services have is translated for each port's own.
func TestInterimOfSharedAddress(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4), dns(v4)}}, PodsSynced{})
	s.looked()
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.wantInterim("Ready", both(interimOf(v4, podA4), dnsLeads))
	s.program(v4, podA4)
	s.wantInterim("one is programmed", dnsLeads)
}

// After a restart, each of two Services that share an address has its own.
func TestInterimOfSharedAddressSurvivesARestart(t *testing.T) {
	t.Parallel()
	s := newScript(t, map[netip.Prefix]Entry{hostPrefix(v4): {Announced: true, Local: true}})
	s.State = NewState(s.kernel, both(interimOf(v4, podA4), dnsLeads).until(s.now.Add(time.Minute)))
	s.do(Services{All: []*Service{plain(v4), dns(v4)}}, report("a", pod.Ready, appWeb, podA4))
	s.wantInterim("at the start", both(interimOf(v4, podA4), dnsLeads))
	s.do(Services{All: []*Service{plain(v4)}})
	s.wantInterim("one is deleted", interimOf(v4, podA4))
}

// Of two Services that have the same port at an address, kube-proxy alone says which one has
// it, until flock-controller has seen to it.
func TestInterimOfClashingPorts(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	other := plain(v4)
	other.Ref.Name = "other"
	s.do(Services{All: []*Service{plain(v4), dns(v4)}}, PodsSynced{})
	s.looked()
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.wantInterim("other ports", both(interimOf(v4, podA4), dnsLeads))
	s.do(Services{All: []*Service{plain(v4), dns(v4), other}})
	s.looked()
	s.wantInterim("the same port", dnsLeads)
	s.do(Services{All: []*Service{plain(v4), dns(v4)}})
	s.looked()
	s.wantInterim("not any more", both(interimOf(v4, podA4), dnsLeads))
}

// A pod that is not Ready for a moment has a rule of kube-proxy's when it is Ready again,
// which is about to go: kube-proxy hears of both later. The address stays announced, and
// reached, all the time.
func TestInterimBridgesARuleThatGoes(t *testing.T) {
	t.Parallel()
	ready := func(is pod.Readiness) PodReported { return report("a", is, appWeb, podA4) }
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{})
	s.program(v4)
	s.do(ready(pod.Ready))
	s.program(v4, podA4)
	s.wantInterim("programmed", nil)
	s.do(ready(pod.NotReady))
	s.wantInterim("not Ready", nil)
	s.do(ready(pod.Ready))
	s.log = nil
	is := func(when string, want leads) {
		t.Helper()
		s.want(when, v4.String()+"/32 announced")
		s.wantInterim(when, want)
		s.wantLog()
	}
	is("Ready again, with the rule of before", interimOf(v4, podA4))
	s.looked()
	is("the same rule", interimOf(v4, podA4))
	s.program(v4)
	is("the rule has gone", interimOf(v4, podA4))
	s.program(v4, podA4)
	is("it has come back", nil)
	// Now kube-proxy knows better.
	s.program(v4)
	s.wantInterim("dropped", nil)
	s.want("dropped", v4.String()+"/32 local")

	// kube-proxy lags behind all of it.
	s.wait(InterimTime)
	s.do(ready(pod.NotReady))
	s.wait(InterimTime)
	s.do(ready(pod.Ready))
	s.do(ready(pod.NotReady))
	s.do(ready(pod.Ready))
	s.log = nil
	is("no rule yet", interimOf(v4, podA4))
	s.program(v4, podA4)
	is("the rule of the first time", interimOf(v4, podA4))
	s.program(v4)
	is("it has gone", interimOf(v4, podA4))
	s.program(v4, podA4)
	is("at last", nil)

	// The same, of a container that ends.
	again := ready(pod.Ready)
	for _, id := range []string{"id-2", "id-3"} {
		last := again.Containers[0].ID
		again.Containers = []Container{{Name: "main", ID: id}}
		s.do(Exited{last})
		s.program(v4)
		s.do(again)
	}
	s.log = nil
	is("no rule yet", interimOf(v4, podA4))
	s.program(v4, podA4)
	is("the rule of the first time", interimOf(v4, podA4))
	s.program(v4)
	is("it has gone", interimOf(v4, podA4))
	s.program(v4, podA4)
	is("it has come back, after several flaps", interimOf(v4, podA4))
	s.wait(doubtTime)
	is("at last", nil)

	// It has not heard for long that the pod was not Ready.
	s.do(ready(pod.NotReady))
	s.wait(2 * InterimTime)
	s.do(ready(pod.Ready))
	s.log = nil
	is("the rule is there", interimOf(v4, podA4))
	s.program(v4)
	is("it has gone", interimOf(v4, podA4))
	s.program(v4, podA4)
	is("it has come back", nil)
	// Where flock may not translate, the rule of before counts.
	svc := plain(v4)
	svc.Plain = false
	s.do(Services{All: []*Service{svc}})
	s.do(ready(pod.NotReady))
	s.do(ready(pod.Ready))
	s.log = nil
	is("with affinity", nil)
}

// A restart of the agent does not prolong a translation, and one that is kept ends in time.
func TestInterimEndsAfterARestart(t *testing.T) {
	t.Parallel()
	start := func() *script {
		s := newScript(t, map[netip.Prefix]Entry{hostPrefix(v4): {Announced: true, Local: true}})
		s.State = NewState(s.kernel, interimOf(v4, podA4).until(s.now.Add(20*time.Second)))
		return s
	}
	for what, events := range map[string][]Event{
		"nothing is known":         nil,
		"the pod is known":         {report("a", pod.Ready, appWeb, podA4)},
		"Services are not known":   {fit, Slices{}, report("a", pod.Ready, appWeb, podA4), PodsSynced{All: []pod.UID{"a"}}},
		"the node is not known":    {Slices{}, report("a", pod.Ready, appWeb, podA4), Services{All: []*Service{plain(v4)}}, PodsSynced{All: []pod.UID{"a"}}},
		"kube-proxy is not known":  {fit, Slices{}, report("a", pod.Ready, appWeb, podA4), Services{All: []*Service{plain(v4)}}, PodsSynced{All: []pod.UID{"a"}}},
		"kube-proxy lacks the pod": {fit, Slices{}, report("a", pod.Ready, appWeb, podA4), Services{All: []*Service{plain(v4)}}, PodsSynced{All: []pod.UID{"a"}}, Looked{Asked: questions(plain(v4)), Look: proxy.Look{Mode: proxy.NFTables}}},
		"pods are not known":       {fit, Slices{}, Services{All: []*Service{plain(v4)}}},
	} {
		s := start()
		s.do(events...)
		s.wantInterim(what, interimOf(v4, podA4))
		if next := s.Next(); next.IsZero() || next.After(s.now.Add(20*time.Second)) {
			t.Errorf("%s: something is due at %v", what, next)
		}
		s.wait(20*time.Second - 1)
		s.wantInterim(what+", just before", interimOf(v4, podA4))
		s.wait(1)
		s.wantInterim(what+", after", nil)
	}
}

// questions are what is asked of kube-proxy for a Service.
func questions(svc *Service) map[proxy.Key]bool {
	asked := map[proxy.Key]bool{}
	for _, a := range svc.Addresses {
		for _, p := range svc.Ports {
			asked[svc.key(p, a.Addr)] = true
		}
	}
	return asked
}

// While something else is not known, what is translated stays, but for what is known to be
// wrong.
func TestInterimThatIsKeptFollowsWhatIsKnown(t *testing.T) {
	t.Parallel()
	change := func(f func(*Service)) Event {
		svc := plain(v4)
		f(svc)
		return Services{All: []*Service{svc}}
	}
	more := Port{Name: "more", Protocol: 6, Number: 81, TargetNumber: 81}
	for what, c := range map[string]struct {
		event Event
		stays bool
	}{
		"NotReady":                         {report("a", pod.NotReady, appWeb, podA4), false},
		"exit":                             {Exited{"id-a"}, false},
		"deleting":                         {PodDeleting{"a"}, false},
		"gone":                             {PodGone{"a"}, false},
		"others exist":                     {PodsSynced{All: []pod.UID{"b"}}, false},
		"another label":                    {report("a", pod.Ready, map[string]string{"app": "db"}, podA4), false},
		"another port":                     {change(func(s *Service) { s.Ports = []Port{more} }), false},
		"a port more":                      {change(func(s *Service) { s.Ports = append([]Port{more}, s.Ports...) }), true},
		"policy Cluster":                   {change(func(s *Service) { s.External = Cluster }), false},
		"affinity":                         {change(func(s *Service) { s.Plain = false }), false},
		"no selector":                      {change(func(s *Service) { s.Selector = nil }), false},
		"not Ready too":                    {change(func(s *Service) { s.PublishNotReady = true }), false},
		"readiness of the kubelet unknown": {report("a", pod.Unknown, appWeb, podA4), true},
		"kube-proxy has the pod, perhaps since before": {Looked{Asked: questions(plain(v4)), Look: proxy.Look{Mode: proxy.NFTables, At: rules("web", v4, httpPort, podA4)}}, true},
		"Services are unchanged":                       {Services{All: []*Service{plain(v4)}}, true},
	} {
		for _, b := range []bool{false, true} { // with another pod that serves
			s := newScript(t, map[netip.Prefix]Entry{hostPrefix(v4): {Announced: true, Local: true}})
			s.State = NewState(s.kernel, interimOf(v4, podA4).until(s.now.Add(time.Minute)))
			s.do(report("a", pod.Ready, appWeb, podA4), Services{All: []*Service{plain(v4)}})
			if b {
				s.do(report("b", pod.Ready, appWeb, podB4))
			}
			s.wantInterim(what+": before", interimOf(v4, podA4))
			s.do(c.event)
			want := leads{}
			if c.stays {
				want = interimOf(v4, podA4)
			}
			s.wantInterim(what, want)
		}
	}
	// Before Services are known, pods are.
	for what, e := range map[string]Event{"NotReady": report("a", pod.NotReady, appWeb, podA4), "gone": PodsSynced{}} {
		s := newScript(t, nil)
		s.State = NewState(nil, interimOf(v4, podA4).until(s.now.Add(time.Minute)))
		s.wantInterim("at the start", interimOf(v4, podA4))
		s.do(e)
		s.wantInterim(what, nil)
	}
}

// Pods that are not Ready for a moment, all at once and again and again, share what comes by
// kube-proxy's rules, as soon as these cannot be about to go.
func TestInterimOfPodsThatFlap(t *testing.T) {
	t.Parallel()
	for _, offline := range []bool{false, true} {
		s := newScript(t, nil)
		s.do(healthy...)
		s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{})
		s.do(report("a", pod.Ready, appWeb, podA4), report("b", pod.Ready, appWeb, podB4))
		s.program(v4, podA4, podB4)
		s.do(NodeChanged{Node{Known: true, Offline: offline}})
		s.wait(InterimTime)
		for range 5 {
			s.do(report("a", pod.NotReady, appWeb, podA4), report("b", pod.NotReady, appWeb, podB4))
			s.do(report("a", pod.Ready, appWeb, podA4), report("b", pod.Ready, appWeb, podB4))
			s.log = nil
			if offline {
				s.wantInterim("kube-proxy cannot remove its rule", nil)
				continue
			}
			s.wantInterim("Ready again", interimOf(v4, podA4))
			s.wait(doubtTime)
			s.wantInterim("kube-proxy has not noticed", nil)
			s.wait(InterimTime - 2*doubtTime)
		}
		s.wantLog()
	}
}

// A pod that is not Ready for a moment once a day is one whose rule comes back because it is Ready.
func TestFlapsAreForgotten(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{}, report("a", pod.Ready, appWeb, podA4))
	s.program(v4, podA4)
	for day := range 3 {
		s.wait(24 * time.Hour)
		s.do(report("a", pod.NotReady, appWeb, podA4))
		s.wait(2 * time.Second)
		s.do(report("a", pod.Ready, appWeb, podA4))
		s.program(v4)
		s.wantInterim(fmt.Sprint("the rule has gone, day ", day), interimOf(v4, podA4))
		s.program(v4, podA4)
		s.wantInterim(fmt.Sprint("it has come back, day ", day), nil)
	}
}

// The pod of a translation is not changed without need, also by a restart.
func TestInterimStaysWithItsPod(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{})
	s.program(v4)
	s.do(report("b", pod.Ready, appWeb, podB4))
	s.wantInterim("b", interimOf(v4, podB4))
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.wantInterim("a too", interimOf(v4, podB4))
	s.do(report("b", pod.NotReady, appWeb, podB4))
	s.wantInterim("a alone", interimOf(v4, podA4))

	s = newScript(t, map[netip.Prefix]Entry{hostPrefix(v4): {Announced: true, Local: true}})
	s.State = NewState(s.kernel, interimOf(v4, podB4).until(s.now.Add(30*time.Second)))
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, report("a", pod.Ready, appWeb, podA4), report("b", pod.Ready, appWeb, podB4), PodsSynced{All: []pod.UID{"a", "b"}})
	s.program(v4)
	s.wantInterim("after a restart", interimOf(v4, podB4))
}

// An API server that does not answer for a moment gives no pod more time.
func TestInterimAndShortInterruptions(t *testing.T) {
	t.Parallel()
	s := newlyReady(t)
	for range 3 {
		s.do(NodeChanged{Node{Known: true, Offline: true}})
		s.wait(outage - time.Second)
		s.do(NodeChanged{Node{Known: true}})
		s.wait(time.Second)
	}
	s.wantInterim("before its end", interimOf(v4, podA4))
	s.wait(InterimTime - 3*outage)
	s.wantInterim("after it", nil)
	if s.APIServerMatters() {
		t.Error("the API server matters to nothing")
	}
	// One in the second half of its time, again and again, neither; and one takes no time away.
	s.do(report("a", pod.NotReady, appWeb, podA4))
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.wait(InterimTime - 10*time.Second)
	for range 9 {
		s.do(NodeChanged{Node{Known: true, Offline: true}})
		s.wait(500 * time.Millisecond)
		s.do(NodeChanged{Node{Known: true}})
		s.wait(500 * time.Millisecond)
	}
	s.wantInterim("before its end again", interimOf(v4, podA4))
	s.wait(time.Second)
	s.wantInterim("after it again", nil)
	s.do(NodeChanged{Node{Known: true, Offline: true}})
	s.do(report("a", pod.NotReady, appWeb, podA4))
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.wait(outage)
	s.do(NodeChanged{Node{Known: true}}) // two minutes from now
	s.wait(time.Second)
	s.do(report("b", pod.Ready, appWeb, podB4)) // one minute
	s.wait(40 * time.Second)
	s.do(NodeChanged{Node{Known: true, Offline: true}})
	s.wait(time.Second)
	s.do(NodeChanged{Node{Known: true}})
	s.wait(afterOutage - 43*time.Second)
	s.wantInterim("a's two minutes", interimOf(v4, podA4))
	s.wait(time.Second)
	s.wantInterim("are over", nil)
}

// What an earlier run left is known after a while, if kube-proxy has it all the time, and then
// kube-proxy knows better.
func TestInterimOfEarlyPodsIsLearned(t *testing.T) {
	t.Parallel()
	s := newScript(t, map[netip.Prefix]Entry{hostPrefix(v4): {Announced: true, Local: true}})
	s.State = NewState(s.kernel, interimOf(v4, podA4).until(s.now.Add(50*time.Second)))
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, report("a", pod.Ready, appWeb, podA4), PodsSynced{All: []pod.UID{"a"}})
	s.program(v4, podA4)
	s.wantInterim("at the start", interimOf(v4, podA4))
	if next := s.Next(); next.After(s.now.Add(doubtTime)) {
		t.Errorf("due at %v", next)
	}
	s.wait(doubtTime)
	s.wantInterim("after a while", nil)
	s.program(v4)
	s.want("kube-proxy knows better", v4.String()+"/32 local")
}

// Nothing is learned of kube-proxy's rules while the API server does not answer for a moment,
// or kube-proxy changes its mode, nor of its way through several flaps.
func TestInterimLearnsNothingOf(t *testing.T) {
	t.Parallel()
	start := func() *script {
		s := newScript(t, nil)
		s.do(healthy...)
		s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{}, report("a", pod.Ready, appWeb, podA4))
		s.program(v4, podA4)
		s.wait(InterimTime)
		s.do(report("a", pod.NotReady, appWeb, podA4))
		s.do(report("a", pod.Ready, appWeb, podA4))
		s.log = nil
		return s
	}
	s := start()
	s.do(NodeChanged{Node{Known: true, Offline: true}})
	s.want("offline", v4.String()+"/32 announced")
	s.do(NodeChanged{Node{Known: true}})
	s.program(v4)
	s.wantInterim("after an interruption", interimOf(v4, podA4))
	s.wantLog()

	s = start()
	s.do(Looked{questions(plain(v4)), proxy.Look{}})
	s.program(v4, podA4)
	s.log = nil
	s.program(v4)
	s.wantInterim("after another mode", interimOf(v4, podA4))
	s.wantLog()

	s = start()
	s.do(report("a", pod.NotReady, appWeb, podA4))
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.log = nil
	s.program(v4)
	s.program(v4, podA4)
	s.program(v4)
	s.wantInterim("within several flaps", interimOf(v4, podA4))
	s.wantLog()
}

// A restart late in an outage is one in an outage.
func TestInterimAfterARestartLateInAnOutage(t *testing.T) {
	t.Parallel()
	s := newScript(t, map[netip.Prefix]Entry{hostPrefix(v4): {Announced: true, Local: true}})
	s.State = NewState(s.kernel, interimOf(v4, podA4).until(s.now.Add(30*time.Second)))
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, report("a", pod.Ready, appWeb, podA4), PodsSynced{All: []pod.UID{"a"}})
	s.program(v4)
	s.do(NodeChanged{Node{Known: true, Offline: true}})
	s.wait(time.Second)
	s.do(NodeChanged{Node{Known: true}})
	s.wait(afterOutage - time.Second)
	s.wantInterim("it has its time", interimOf(v4, podA4))
	s.wantLog()
}

// Another pod that serves by kube-proxy's rule may cease to: the API server matters to a new pod.
func TestAPIServerMatters(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{}, report("b", pod.Ready, appWeb, podB4))
	s.program(v4, podB4)
	s.wait(InterimTime)
	if s.APIServerMatters() {
		t.Error("without a new pod")
	}
	s.do(report("x", pod.Ready, map[string]string{"app": "other"}, podA6))
	if s.APIServerMatters() {
		t.Error("to a pod of no Service")
	}
	s.do(report("a", pod.Ready, appWeb, podA4))
	if !s.APIServerMatters() {
		t.Error("not to a new pod beside another")
	}
	s.program(v4, podA4, podB4)
	if s.APIServerMatters() {
		t.Error("to a pod that kube-proxy has")
	}
}

// What is learned of kube-proxy's rules is kept of what is new, and for what selects it.
func TestMarksAreBounded(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4), dns(v6)}}, PodsSynced{})
	s.looked()
	s.do(report("a", pod.Ready, appWeb, podA4), report("x", pod.Ready, map[string]string{"app": "other"}, podB4))
	s.looked()
	if a, x := len(s.pods["a"].marks), len(s.pods["x"].marks); a != 2 || x != 0 {
		t.Errorf("%d and %d marks", a, x)
	}
	s.wait(InterimTime)
	if n := len(s.pods["a"].marks); n != 0 {
		t.Errorf("%d marks of what is not new", n)
	}
}

// After a restart, what was translated is, whichever pod serves it, and whichever is reported
// first.
func TestInterimOfSeveralPodsSurvivesARestart(t *testing.T) {
	t.Parallel()
	reports := map[string]Event{"a": report("a", pod.Ready, appWeb, podA4), "b": report("b", pod.Ready, appWeb, podB4)}
	for _, order := range [][]string{{"a", "b"}, {"b", "a"}} {
		s := newScript(t, map[netip.Prefix]Entry{hostPrefix(v4): {Announced: true, Local: true}})
		s.State = NewState(s.kernel, interimOf(v4, podA4).until(s.now.Add(30*time.Second)))
		s.do(NodeChanged{Node{Known: true, Offline: true}}, Slices{}, Services{All: []*Service{plain(v4)}})
		s.program(v4)
		for _, name := range order {
			s.do(reports[name])
			s.want(name+" is known", v4.String()+"/32 announced")
		}
		s.do(PodsSynced{All: []pod.UID{"a", "b"}})
		s.want("all are known", v4.String()+"/32 announced")
		s.do(report("a", pod.NotReady, appWeb, podA4))
		s.wantInterim("a is not Ready", interimOf(v4, podB4))
		for range 30 {
			s.wait(InterimTime / 2)
		}
		s.wantInterim("long offline", interimOf(v4, podB4))
		s.wantLog()
		// What was not translated is not.
		s.do(Services{All: []*Service{plain(v4), dns(v4)}})
		s.looked()
		s.wantInterim("another port", interimOf(v4, podB4))
	}
}

// A pod that kube-proxy does not have is no reason to withdraw an address after a restart, as
// long as others may not be known.
func TestRestartWithPodsUnknown(t *testing.T) {
	t.Parallel()
	s := newScript(t, map[netip.Prefix]Entry{hostPrefix(v4): {Announced: true, Local: true}})
	s.do(fit, Slices{}, Services{All: []*Service{plain(v4)}})
	s.program(v4, podA4)
	for _, e := range []Event{report("b", pod.Ready, appWeb, podB4), report("a", pod.Ready, appWeb, podA4), PodsSynced{All: []pod.UID{"a", "b"}}} {
		s.do(e)
		s.want("announced", v4.String()+"/32 announced")
	}
	s.wantLog()
}

// A pod that is known late, after a restart of the kubelet, has not become Ready.
func TestInterimOfAPodThatWasUnknown(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, report("a", pod.Unknown, appWeb, podA4), PodsSynced{All: []pod.UID{"a"}})
	s.program(v4)
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.wantInterim("Ready", nil)
	s.do(report("a", pod.NotReady, appWeb, podA4))
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.wantInterim("Ready again", interimOf(v4, podA4))
}

// A pod that the Service does not select is led to by kube-proxy alone, as long as it has not
// heard.
func TestInterimOfDriftedPods(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{})
	s.program(v4, podA4)
	s.do(report("c", pod.Ready, map[string]string{"app": "db"}, podA4))
	s.wantInterim("of another app", nil)
}

// An address that a pod of another namespace had, which is gone only now, is still led to.
func TestInterimOfAReusedAddress(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	job := report("job", pod.NotReady, nil, podA4)
	job.Namespace, job.Finished, job.Terminating = "jobs", true, true
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{}, job)
	s.program(v4)
	if pods := s.podAddrs(); len(pods) > 0 {
		t.Errorf("pods at %v", pods)
	}
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.wantInterim("Ready", interimOf(v4, podA4))
	s.do(PodGone{"job"})
	s.wantInterim("the other is gone", interimOf(v4, podA4))
	s.do(PodGone{"a"})
	s.wantInterim("both are gone", nil)
}

// Without API server kube-proxy learns nothing. Once there is one again, it has some time.
func TestInterimLastsWithoutAPIServer(t *testing.T) {
	t.Parallel()
	s := newlyReady(t)
	s.wait(10 * time.Second)
	s.do(NodeChanged{Node{Known: true, Offline: true}})
	for range 20 {
		next := s.Next()
		if next.IsZero() || next.After(s.now.Add(InterimTime)) {
			t.Fatalf("something is due at %v, it is %v", next, s.now)
		}
		s.wait(next.Sub(s.now))
		s.wantInterim("offline", interimOf(v4, podA4))
	}
	s.do(NodeChanged{Node{Known: true}})
	s.wait(afterOutage - 1)
	s.wantInterim("online", interimOf(v4, podA4))
	s.wait(1)
	s.wantInterim("online for long", nil)
	s.want("online for long", v4.String()+"/32 local")
	// What has ended does not begin again.
	s.do(NodeChanged{Node{Known: true, Offline: true}})
	s.wait(time.Hour)
	s.wantInterim("offline again", nil)
}

// A change of the words of a reason is one of the status.
func TestChanged(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{})
	s.program(v4)
	s.Changed()
	s.looked()
	if s.Changed() {
		t.Error("a look that says the same is a change")
	}
	s.do(report("a", pod.Ready, appWeb, podA4))
	if !s.Changed() {
		t.Error("becoming Ready is no change")
	}
	s.program(v4, podA4)
	if !s.Changed() {
		t.Error("the end of the translation is no change")
	}
}

// Whatever happens in whatever order, flock translates only to pods that may serve, only what
// no other Service has, and for two minutes at most.
func FuzzInterim(f *testing.F) {
	for _, seed := range []string{"", "0123456789", "abcdefghijklmnopqrstuvwxyz", "\x00\x10\x05\x03\x11\x21\x05\x06"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, steps []byte) {
		s := newScript(t, map[netip.Prefix]Entry{hostPrefix(v4): {Announced: true, Local: true}})
		s.State = NewState(s.kernel, both(interimOf(v4, podA4), dnsLeads).until(s.now.Add(time.Minute)))
		services := [][]*Service{nil, {plain(v4)}, {plain(v4), dns(v4)}, {web("web", Cluster, v4)}, {plain(v4, v6)}, {web("web", Local, v4), dns(v4)}}
		is := []pod.Readiness{pod.NotReady, pod.Ready, pod.Unknown}
		for _, b := range steps[:min(len(steps), 200)] {
			arg := int(b / 16)
			name, addr := "a", podA4
			if arg%2 == 1 {
				name, addr = "b", podB4
			}
			switch b % 10 {
			case 0, 1:
				s.do(report(name, is[arg/2%3], appWeb, addr))
			case 2:
				s.do(PodDeleting{pod.UID(name)})
			case 3:
				s.do(PodGone{pod.UID(name)})
			case 4:
				s.do(PodsSynced{All: []pod.UID{"a", "b"}[:arg%3]})
			case 5:
				s.do(Services{All: services[arg%len(services)]})
			case 6:
				s.program(v4, []netip.Addr{podA4, podB4}[:arg%3]...)
			case 7:
				s.do(NodeChanged{Node{Known: arg%4 > 0, Offline: arg%2 > 0}})
			case 8:
				s.wait(time.Duration(arg) * 7 * time.Second)
			case 9:
				s.do(Exited{"id-" + name}, Slices{})
			}
			for target, tr := range s.Interim() {
				if left := tr.Until.Sub(s.now); left <= 0 || left > afterOutage {
					t.Fatalf("to %v for %v", tr.To, left)
				}
				if next := s.Next(); next.IsZero() || next.After(tr.Until) {
					t.Fatalf("due at %v, and a translation ends at %v", next, tr.Until)
				}
				for _, p := range s.pods {
					if p.Addrs[0] == tr.To.Addr() && (p.pod().Ready == pod.NotReady || p.Terminating && s.announces(target.Addr)) {
						t.Fatalf("%v leads to pod %s, which does not serve", target, p.Name)
					}
				}
				if !s.servicesKnown {
					continue
				}
				owners := 0
				for _, svc := range s.services {
					if svc.has(target.Protocol, target.Port) && svc.paths[target.Addr] != nil {
						owners++
						if !svc.Plain || svc.External != Local {
							t.Fatalf("%v is translated for Service %v", target, svc.Ref)
						}
					}
				}
				if owners != 1 {
					t.Fatalf("%v is translated for %d Services", target, owners)
				}
			}
		}
	})
}

// kube-proxy may hear after an outage only that a pod was not Ready before it became Ready again: the
// rule that it has during the outage does not say that it knows.
func TestInterimOfAPodThatKubeProxyHearsOfAfterAnOutage(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{}, report("a", pod.Ready, appWeb, podA4))
	s.program(v4, podA4)
	s.wait(10 * time.Minute)
	s.do(report("a", pod.NotReady, appWeb, podA4))
	s.do(NodeChanged{Node{Known: true, Offline: true}})
	s.wait(3 * time.Second)
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.wait(time.Hour)
	if due := s.nextInterim(); !due.IsZero() && !due.After(s.now) {
		t.Errorf("it is due at once for ever: %v", due)
	}
	s.do(NodeChanged{Node{Known: true}})
	s.program(v4)
	s.wantInterim("it hears that the pod was not Ready", interimOf(v4, podA4))
	s.want("and the address stays", v4.String()+"/32 announced")
	s.program(v4, podA4)
	s.wantInterim("and that it is", nil)
}

// However long an outage is, an agent that is killed in it leaves enough time for another to be
// started, and to notice the outage.
func TestInterimOutlivesARestartInAnOutage(t *testing.T) {
	t.Parallel()
	const enough = 45 * time.Second
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{}, report("a", pod.Ready, appWeb, podA4))
	s.program(v4)
	s.do(NodeChanged{Node{Known: true, Offline: true}})
	s.wait(outage)
	for range 600 {
		s.wait(time.Second)
		for target, lead := range s.Interim() {
			if left := lead.Until.Sub(s.now); left < enough {
				t.Fatalf("%v: %v are left, want %v", target, left, enough)
			}
		}
	}
	s.wantInterim("after ten minutes", interimOf(v4, podA4))
}
