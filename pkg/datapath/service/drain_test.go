package service

import (
	"net/netip"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

// announces says whether an address is announced for a Service.
func (s *State) announces(a netip.Addr) bool {
	for p := range s.at[a] {
		if p.announced {
			return true
		}
	}
	return false
}

// What still arrives after a withdrawal reaches a pod that serves, until routers can have
// followed.
func TestTranslationsOutlastAWithdrawal(t *testing.T) {
	t.Parallel()
	const moment = time.Second
	departing := NodeChanged{Node{Known: true, Departing: "it is drained"}}
	deleting := PodDeleting{"a"}
	for what, c := range map[string]struct {
		withdraw Event
		reason   string
		then     []Event
		stays    bool // at once after then
	}{
		"the node departs":               {departing, "NodeDeparting", nil, true},
		"the node is excluded":           {NodeChanged{Node{Known: true, Excluded: true}}, "NodeExcluded", nil, true},
		"the pod is deleted":             {deleting, "LocalEndpointTerminating", nil, true},
		"its container ends":             {deleting, "LocalEndpointTerminating", []Event{report("a", pod.NotReady, appWeb, podA4)}, false},
		"it is gone":                     {deleting, "LocalEndpointTerminating", []Event{PodGone{"a"}}, false},
		"it leaves the Service":          {departing, "NodeDeparting", []Event{report("a", pod.Ready, nil, podA4)}, false},
		"not Ready, and departs":         {departing, "NodeDeparting", []Event{report("a", pod.NotReady, appWeb, podA4)}, false},
		"a pod takes the address":        {departing, "NodeDeparting", []Event{Held{By: map[netip.Addr]string{v4: "shop/x"}}}, false},
		"the Service is deleted":         {departing, "NodeDeparting", []Event{Services{}}, false},
		"the Service has another policy": {departing, "NodeDeparting", []Event{Services{All: []*Service{web("web", Cluster, v4)}}}, false},
		"another Service has the port":   {departing, "NodeDeparting", []Event{Services{All: []*Service{plain(v4), web("other", Local, v4)}}}, false},
		"not Ready":                      {report("a", pod.NotReady, appWeb, podA4), "LocalEndpointNotReady", nil, false},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newlyReady(t)
			s.wantInterim("Ready", interimOf(v4, podA4))
			s.wait(moment)
			s.do(c.withdraw)
			s.want("withdrawn", v4.String()+"/32 local")
			if got := s.Paths()[0]; string(got.Reason) != c.reason {
				t.Errorf("reason %s, want %s", got.Reason, c.reason)
			}
			s.do(c.then...)
			if !c.stays {
				s.wantInterim("then", nil)
				return
			}
			s.wantInterim("withdrawn", interimOf(v4, podA4))
			for _, lead := range s.Interim() { // the agent may be gone by then
				if lead.Until.After(s.now.Add(LingerTime)) {
					t.Errorf("the kernel has it until %v, it is %v", lead.Until, s.now)
				}
			}
			if next := s.Next(); next.IsZero() || next.After(s.now.Add(LingerTime)) {
				t.Errorf("due at %v, it is %v", next, s.now)
			}
			s.wait(LingerTime - 1)
			s.wantInterim("before the end", interimOf(v4, podA4))
			s.wait(1)
			s.wantInterim("at the end", nil)
		})
	}
}

// A translation that stays lasts no longer than it would have, and ends when kube-proxy has the
// pod. An address that comes back has it again.
func TestTranslationsOutlastAWithdrawalWithinBounds(t *testing.T) {
	t.Parallel()
	begin := func(t *testing.T, after time.Duration) *script {
		s := newlyReady(t)
		s.wait(after)
		s.do(NodeChanged{Node{Known: true, Departing: "it is drained"}})
		s.wantInterim("departing", interimOf(v4, podA4))
		return s
	}
	s := begin(t, InterimTime-time.Second)
	s.wait(time.Second)
	s.wantInterim("after the minute", nil)

	s = begin(t, time.Second)
	s.program(v4, podA4)
	s.do(NodeChanged{Node{Known: true}})
	s.wantInterim("kube-proxy has it", nil)
	s.want("kube-proxy has it", v4.String()+"/32 announced")

	s = begin(t, time.Second)
	s.do(NodeChanged{Node{Known: true}})
	s.wantInterim("back", interimOf(v4, podA4))
	s.want("back", v4.String()+"/32 announced")
	s.wait(LingerTime)
	s.wantInterim("back for long", interimOf(v4, podA4))
}
