package anycast

import (
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

// orphanTime is how long the exit of a container that no source has named yet is
// remembered. Most belong to pods without an anycast address.
const orphanTime = 10 * time.Minute

// podExits bounds how many exits of a pod's containers are remembered.
const podExits = 64

type podState struct {
	pod.Ref
	readiness   *Readiness // nil if unknown
	terminating bool
	notFound    bool
	exits       map[string]exit // by container ID
	readyFrom   time.Time       // zero while not Ready
	sandboxes   []*attachment   // the newest, by ifindex, is the last
}

// setReadiness processes the status of a pod.
func (s *State) setReadiness(now time.Time, v Readiness) *podState {
	p := s.pod(v.UID)
	p.notFound = false
	p.terminating = p.terminating || v.Terminating
	if v.Ready == pod.Unknown {
		return p
	}
	s.forgetContainers(p)
	v.Containers = slices.Clone(v.Containers)
	p.readiness = &v
	for _, c := range v.Containers {
		if c.ID == "" {
			continue // not created yet
		}
		s.owner[c.ID] = p
		if x, ok := s.orphans[c.ID]; ok {
			delete(s.orphans, c.ID)
			p.remember(c.ID, x)
		}
		if x, ok := p.exits[c.ID]; ok {
			x.name = c.Name
			p.exits[c.ID] = x
		}
	}
	return p
}

func (s *State) forgetContainers(p *podState) {
	if p.readiness == nil {
		return
	}
	for _, c := range p.readiness.Containers {
		if s.owner[c.ID] == p {
			delete(s.owner, c.ID)
		}
	}
}

// exited processes the exit of a container or a sandbox.
func (s *State) exited(now time.Time, e Exited) *podState {
	if a := s.sandbox[e.ContainerID]; a != nil {
		a.exited = true
		return a.pod
	}
	at := e.At
	if at.IsZero() {
		at = now
	}
	p := s.owner[e.ContainerID]
	if p == nil {
		for id, x := range s.orphans {
			if now.Sub(x.at) > orphanTime {
				delete(s.orphans, id)
			}
		}
		s.orphans[e.ContainerID] = exit{restarts: -1, at: at}
		return nil
	}
	for _, c := range p.readiness.Containers {
		if c.ID == e.ContainerID {
			p.remember(c.ID, exit{name: c.Name, restarts: c.Restarts, at: at})
		}
	}
	return p
}

// allExited records that the pod's known containers have ended with their sandbox.
func (s *State) allExited(now time.Time, p *podState) {
	if p.readiness == nil {
		return
	}
	for _, c := range p.readiness.Containers {
		p.remember(c.ID, exit{name: c.Name, restarts: c.Restarts, at: now})
	}
}

func (p *podState) remember(id string, x exit) {
	if p.exits == nil {
		p.exits = map[string]exit{}
	}
	if old, ok := p.exits[id]; ok && old.restarts >= x.restarts {
		return
	}
	p.exits[id] = x
	for len(p.exits) > podExits {
		oldest := id
		for id, x := range p.exits {
			if x.at.Before(p.exits[oldest].at) {
				oldest = id
			}
		}
		delete(p.exits, oldest)
	}
}

// lastExit is the latest exit of a container of the pod. A source that says Ready in
// spite of it does not know of it yet.
func (p *podState) lastExit() *exit {
	if p.readiness == nil {
		return nil
	}
	var latest *exit
	for _, c := range p.readiness.Containers {
		x, ok := p.exits[c.ID]
		if !ok || x.restarts >= 0 && c.Restarts > x.restarts {
			continue
		}
		if latest == nil || x.at.After(latest.at) {
			latest = &x
		}
	}
	return latest
}

// updateReady maintains the time since which the pod is Ready without a break. The
// kubelet may have known it before this agent. Its time is in whole seconds, rounded
// down.
func (p *podState) updateReady(now time.Time) {
	switch ready := p.readiness != nil && p.readiness.Ready == pod.Ready && !p.terminating && p.lastExit() == nil; {
	case !ready:
		p.readyFrom = time.Time{}
	case p.readyFrom.IsZero():
		p.readyFrom = now
		if t := p.readiness.Since.Add(time.Second); !p.readiness.Since.IsZero() && t.Before(now) {
			p.readyFrom = t
		}
		for _, x := range p.exits {
			if !x.at.Before(p.readyFrom) {
				p.readyFrom = now
			}
		}
	}
}
