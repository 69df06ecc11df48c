package service

import (
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

func (s *script) wantInterim(what string, want Interim) {
	s.t.Helper()
	if got := s.Interim(); !maps.Equal(got, want) {
		s.t.Errorf("%s: flock translates %v, want %v", what, got, want)
	}
}

// interimOf leads from an address of Service web to a pod's.
func interimOf(from, to netip.Addr) Interim {
	return Interim{{Addr: from, Protocol: httpPort.Protocol, Port: httpPort.Number}: netip.AddrPortFrom(to, httpPort.TargetNumber)}
}

func both(a, b Interim) Interim {
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
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{})
	s.program(v4)
	s.do(report("a", pod.Ready, appWeb, podA4))
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
		"NotReady": report("a", pod.NotReady, appWeb, podA4), "exit": Exited{"id-a"}, "deleting": PodDeleting{"a"}, "gone": PodGone{"a"},
		"Service gone": Services{}, "departing": NodeChanged{Node{Known: true, Departing: "drained"}}, "held": Held{By: map[netip.Addr]string{v4: "dns/x"}},
	} {
		s := newScript(t, nil)
		s.do(healthy...)
		s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{})
		s.program(v4)
		s.do(report("a", pod.Ready, appWeb, podA4))
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
	s.State = NewState(s.kernel, interimOf(v4, podA4))
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
	s.State = NewState(nil, interimOf(v4, podA4))
	s.do(Services{})
	s.wantInterim("no Service", nil)
}

// A kernel that cannot translate has the node wait for kube-proxy.
func TestInterimWithoutNAT(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	s.do(Services{All: []*Service{plain(v4)}}, PodsSynced{})
	s.program(v4)
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.wantInterim("it was not tried yet", interimOf(v4, podA4))
	s.SetTranslates(false)
	s.do()
	s.wantInterim("it cannot", nil)
	s.want("it cannot", v4.String()+"/32 local")
	s.program(v4, podA4)
	s.want("programmed", v4.String()+"/32 announced")
}

// An address that two Services have is translated for each port's own.
func TestInterimOfSharedAddress(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	s.do(healthy...)
	dns := plain(v4)
	dns.Ref.Name, dns.Ports = "dns", []Port{{Name: "dns", Protocol: 17, Number: 53, TargetNumber: 5353}}
	s.do(Services{All: []*Service{plain(v4), dns}}, PodsSynced{})
	s.looked()
	s.do(report("a", pod.Ready, appWeb, podA4))
	s.wantInterim("Ready", both(interimOf(v4, podA4), Interim{{Addr: v4, Protocol: 17, Port: 53}: netip.AddrPortFrom(podA4, 5353)}))
	s.program(v4, podA4)
	s.wantInterim("one is programmed", Interim{proxy.Target{Addr: v4, Protocol: 17, Port: 53}: netip.AddrPortFrom(podA4, 5353)})
}
