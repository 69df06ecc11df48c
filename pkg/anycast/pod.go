package anycast

import (
	"slices"
	"time"
)

// orphanTime is how long the exit of a container that no verdict has named yet is
// remembered. Most belong to pods without an anycast address.
const orphanTime = 10 * time.Minute

// podExits bounds how many exits of a pod's containers are remembered.
const podExits = 64

type pod struct {
	Pod
	verdict     *Verdict
	terminating bool
	notFound    bool
	exits       map[string]exit // by container ID
	readyFrom   time.Time       // zero while not Ready
	sandboxes   []*attachment   // the newest, by ifindex, is the last
}

// judge takes a verdict in; nil if it says nothing.
func (s *State) judge(now time.Time, v Verdict) *pod {
	p := s.pod(v.UID)
	p.notFound = false
	p.terminating = p.terminating || v.Terminating
	if v.initializing() {
		return p
	}
	s.disown(p)
	v.Containers = slices.Clone(v.Containers)
	p.verdict = &v
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

func (s *State) disown(p *pod) {
	if p.verdict == nil {
		return
	}
	for _, c := range p.verdict.Containers {
		if s.owner[c.ID] == p {
			delete(s.owner, c.ID)
		}
	}
}

// exited takes the end of a container or sandbox in.
func (s *State) exited(now time.Time, e Exited) *pod {
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
	for _, c := range p.verdict.Containers {
		if c.ID == e.ContainerID {
			p.remember(c.ID, exit{name: c.Name, restarts: c.Restarts, at: at})
		}
	}
	return p
}

// allExited holds that the containers that the pod's last verdict names have ended
// with their sandbox.
func (s *State) allExited(now time.Time, p *pod) {
	if p.verdict == nil {
		return
	}
	for _, c := range p.verdict.Containers {
		p.remember(c.ID, exit{name: c.Name, restarts: c.Restarts, at: now})
	}
}

func (p *pod) remember(id string, x exit) {
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

// lastExit is the latest exit of a container that the pod's verdict names. If the
// verdict is Ready, it does not know of that.
func (p *pod) lastExit() *exit {
	if p.verdict == nil {
		return nil
	}
	var latest *exit
	for _, c := range p.verdict.Containers {
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

// updateReady keeps since when the pod has been Ready without a break. The kubelet
// may have known for longer than this agent: its time is in whole seconds, cut
// off.
func (p *pod) updateReady(now time.Time) {
	switch ready := p.verdict != nil && p.verdict.Ready && !p.terminating && p.lastExit() == nil; {
	case !ready:
		p.readyFrom = time.Time{}
	case p.readyFrom.IsZero():
		p.readyFrom = now
		if t := p.verdict.Since.Add(time.Second); !p.verdict.Since.IsZero() && t.Before(now) {
			p.readyFrom = t
		}
		for _, x := range p.exits {
			if !x.at.Before(p.readyFrom) {
				p.readyFrom = now
			}
		}
	}
}
