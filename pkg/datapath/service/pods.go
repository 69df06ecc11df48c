package service

import (
	"net/netip"
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

// orphanTime is how long the exit of a container that no report has named yet is remembered,
// and for how long a pod that is gone is known to be.
const orphanTime = 10 * time.Minute

// podState is what is known of a pod of the node.
type podState struct {
	PodReport
	// readiness is the last that was known; why explains it.
	readiness pod.Readiness
	why       string
	// until is when it is not new any more; zero if it is not. doubt is when kube-proxy's rules
	// for it may have been about to go at last. became is when it became Ready last,
	// ceased when it was it last before. flaps is how often it was not for less than a minute,
	// without having been Ready for a minute between. early: it was there before
	// all pods were known, and has not become Ready since.
	until, doubt, became, ceased time.Time
	flaps                        int
	early                        bool
	marks                        map[proxy.Key]mark
	exits                        map[string]bool // IDs of its containers that have ended
}

// PodReport is what a source of pods says of one.
type PodReport struct {
	pod.Ref
	Labels map[string]string
	Addrs  []netip.Addr
	// HostNetwork: its addresses are the node's.
	HostNetwork bool
	Ports       []PodPort
	Ready       pod.Readiness
	Detail      string // why it is not Ready
	Terminating bool
	// Finished: all its containers have ended for good.
	Finished bool
	// Containers are those that run as long as the pod does.
	Containers []Container
}

// Container is one of a pod's, as its status shows it.
type Container struct {
	Name string
	ID   string // the runtime's; empty until it has one
}

// pod is the pod as a decision sees it.
func (p *podState) pod() Pod {
	out := Pod{
		UID: p.UID, Name: p.Name, Addrs: p.Addrs, Ports: p.Ports, HostNetwork: p.HostNetwork,
		Ready: p.readiness, Terminating: p.Terminating, Detail: p.why,
	}
	// A container that runs again has another ID. So a report with this one does not know of
	// the exit.
	for _, c := range p.Containers {
		if p.exits[c.ID] && out.Ready == pod.Ready {
			out.Ready, out.Detail = pod.NotReady, "container "+c.Name+" has exited"
		}
	}
	return out
}

// report takes in what a source says of a pod.
func (s *State) report(now time.Time, r PodReport) {
	delete(s.gone, r.UID) // another source of pods may not have had it for a while
	p := s.pods[r.UID]
	if p == nil {
		p = &podState{readiness: pod.Unknown, early: !s.podsSynced}
		if p.early {
			p.doubt = now.Add(doubtTime)
		}
		s.pods[r.UID] = p
	}
	was := p.pod().Ready
	r.Terminating = r.Terminating || p.Terminating || s.deleting[r.UID]
	if r.Ready != pod.Unknown {
		p.readiness, p.why = r.Ready, r.Detail
	}
	before := p.Containers
	if r.Ready == pod.Unknown && len(before) > 0 {
		r.Containers = before
	}
	for _, c := range before {
		delete(s.owner, c.ID)
	}
	p.PodReport = r
	for _, c := range r.Containers {
		if c.ID == "" {
			continue
		}
		s.owner[c.ID] = p
		if _, ok := s.orphans[c.ID]; ok {
			delete(s.orphans, c.ID)
			p.exited(c.ID)
		}
	}
	// What is known of other containers is of no use any more.
	for id := range p.exits {
		if !slices.ContainsFunc(r.Containers, func(c Container) bool { return c.ID == id }) {
			delete(p.exits, id)
		}
	}
	s.becomes(now, p, was)
	s.touchNamespace(r.Namespace)
}

func (p *podState) exited(id string) {
	if p.exits == nil {
		p.exits = map[string]bool{}
	}
	p.exits[id] = true
}

// exit takes in that a container has exited. It may be of any pod, or of one that is not
// known yet.
func (s *State) exit(now time.Time, id string) {
	p := s.owner[id]
	if p == nil {
		for id, at := range s.orphans {
			if now.Sub(at) > orphanTime {
				delete(s.orphans, id)
			}
		}
		s.orphans[id] = now
		return
	}
	was := p.pod().Ready
	p.exited(id)
	s.becomes(now, p, was)
	s.touchNamespace(p.Namespace)
}

// terminate takes in that a pod is being deleted.
func (s *State) terminate(uid pod.UID) {
	if _, gone := s.gone[uid]; gone {
		return
	}
	s.deleting[uid] = true
	if p := s.pods[uid]; p != nil && !p.Terminating {
		p.Terminating = true
		s.touchNamespace(p.Namespace)
	}
}

// forget takes in that a pod is gone.
func (s *State) forget(now time.Time, uid pod.UID) {
	delete(s.deleting, uid)
	for uid, at := range s.gone {
		if now.Sub(at) > orphanTime {
			delete(s.gone, uid)
		}
	}
	s.gone[uid] = now
	p := s.pods[uid]
	if p == nil {
		return
	}
	for _, c := range p.Containers {
		delete(s.owner, c.ID)
	}
	delete(s.pods, uid)
	delete(s.new, p)
	s.unlead(p.Addrs)
	s.touchNamespace(p.Namespace)
}

// doesNotServe says whether a pod of the node is known not to serve a Service.
func (s *State) doesNotServe(svc *Service, uid pod.UID) bool {
	if _, gone := s.gone[uid]; gone {
		return true
	}
	p := s.pods[uid]
	if p == nil || svc.PublishNotReady {
		return false
	}
	is := p.pod()
	return is.Terminating || is.Ready == pod.NotReady
}

// podAddrs are the addresses of the pods of the node that run.
func (s *State) podAddrs() map[netip.Addr]bool {
	all := map[netip.Addr]bool{}
	for _, p := range s.pods {
		if p.Finished {
			continue
		}
		for _, a := range p.Addrs {
			all[a] = true
		}
	}
	return all
}
