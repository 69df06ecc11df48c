package anycast

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

// State is everything that is known, and what follows from it for each pod and address.
// It has no clock and no lock: its owner passes the time.
type State struct {
	// Drain is how long a withdrawn pod keeps the flows that it is busy with
	// beside announced ones: DrainTime, or 0 where the kernel cannot.
	Drain time.Duration

	source  Source
	pods    map[pod.UID]*podState
	sandbox map[string]*attachment // by container ID
	byLink  map[int]*attachment
	owner   map[string]*podState // of containers, as the sources of pods have named them
	// orphans are exits of containers that no source has named yet.
	orphans map[string]exit
	at      map[netip.Addr]map[*path]struct{}
	timed   map[*path]time.Time

	dirty       map[netip.Addr]struct{}
	transitions []Transition
}

// Source is what is known of the sources of pods.
type Source struct {
	// Synced: a source has reported all pods of the node, at least once.
	Synced bool
	// Lost says why no source can be reached; empty if one can.
	Lost string
}

type attachment struct {
	Attached
	pod     *podState
	linkUp  bool
	upSince time.Time // zero if it was up before it was known
	exited  bool
	paths   map[netip.Addr]*path
}

// NewState starts from what the agent's records hold, and from what the kernel
// has of an earlier run. What that run announced stays announced, for pods that
// are still attached, until a source reports them.
func NewState(now time.Time, attached []Attached, kernel map[netip.Addr]Entry) *State {
	s := &State{
		Drain:   DrainTime,
		pods:    map[pod.UID]*podState{},
		sandbox: map[string]*attachment{},
		byLink:  map[int]*attachment{},
		owner:   map[string]*podState{},
		orphans: map[string]exit{},
		at:      map[netip.Addr]map[*path]struct{}{},
		timed:   map[*path]time.Time{},
		dirty:   map[netip.Addr]struct{}{},
	}
	for _, a := range attached {
		s.attach(now, a)
	}
	for addr, e := range kernel {
		s.dirty[addr] = struct{}{}
		for _, m := range e.Members {
			a := s.byLink[m.Link]
			if a == nil || a.paths[addr] == nil {
				continue
			}
			p := a.paths[addr]
			if e.Announced && !m.Drains {
				p.kept = true
				p.now = decision{role: Announced, reason: Kept}
			} else {
				p.now, p.left = decision{role: LastResort}, now
			}
		}
	}
	for _, p := range s.pods {
		s.decidePod(now, p, now)
	}
	return s
}

// Apply processes an event. Arrived is when it came, for latencies: now is later if
// other events were processed first.
func (s *State) Apply(now time.Time, e Event, arrived time.Time) {
	touched := map[*podState]struct{}{}
	touch := func(p *podState) {
		if p != nil {
			touched[p] = struct{}{}
		}
	}
	switch e := e.(type) {
	case Attached:
		s.added(now, e)
		touch(s.pods[e.Pod.UID])
	case Detached:
		if a := s.sandbox[e.ContainerID]; a != nil {
			s.detach(now, a, arrived)
			touch(a.pod)
		}
	case Readiness:
		s.source.Lost = ""
		touch(s.setReadiness(now, e))
	case Deleting:
		if p := s.pods[e.UID]; p != nil {
			p.terminating = true
			touch(p)
		}
	case Gone:
		if p := s.pods[e.UID]; p != nil {
			p.terminating, p.notFound = true, true
			touch(p)
		}
	case Resync:
		s.source = Source{Synced: true}
		listed := make(map[pod.UID]bool, len(e.Pods))
		for _, v := range e.Pods {
			listed[v.UID] = true
			touch(s.setReadiness(now, v))
		}
		for uid, p := range s.pods {
			if !listed[uid] {
				p.notFound = true
				touch(p)
			}
		}
	case SourceLost:
		s.source.Lost = cmp.Or(e.Why, "no source of pods can be reached")
	case Exited:
		touch(s.exited(now, e))
	case Link:
		touch(s.link(now, e.Index, e.Up))
	case Links:
		for index := range s.byLink {
			touch(s.link(now, index, e.Up[index]))
		}
	}
	for p := range touched {
		s.decidePod(now, p, arrived)
		s.forget(p)
	}
}

// Tick makes the decisions that are due because time has passed.
func (s *State) Tick(now time.Time) {
	for p, t := range s.timed {
		if !now.Before(t) {
			s.decide(now, p, t)
		}
	}
}

// Next returns when Tick has something to do unless an event comes first, or zero if
// never.
func (s *State) Next() time.Time {
	var next time.Time
	for _, t := range s.timed {
		next = earliest(next, t)
	}
	return next
}

// attach adds a sandbox, or replaces what is known of it.
func (s *State) attach(now time.Time, e Attached) *attachment {
	p := s.pod(e.Pod.UID)
	p.Ref = e.Pod
	a := &attachment{Attached: e, pod: p, linkUp: true, paths: make(map[netip.Addr]*path, len(e.Grants))}
	s.sandbox[e.ContainerID] = a
	s.byLink[e.Link] = a
	p.sandboxes = append(p.sandboxes, a)
	slices.SortFunc(p.sandboxes, func(a, b *attachment) int { return cmp.Compare(a.Link, b.Link) })
	for _, g := range e.Grants {
		s.grant(now, a, g)
	}
	return a
}

func (s *State) grant(now time.Time, a *attachment, g Grant) {
	p := &path{att: a, addr: g.Addr, delay: g.Delay, since: now}
	a.paths[g.Addr] = p
	if s.at[g.Addr] == nil {
		s.at[g.Addr] = map[*path]struct{}{}
	}
	s.at[g.Addr][p] = struct{}{}
}

func (s *State) added(now time.Time, e Attached) {
	if a := s.sandbox[e.ContainerID]; a != nil {
		if a.Pod.UID == "" && a.Link == e.Link {
			s.identify(a, e.Pod)
		}
		if a.Pod.UID == e.Pod.UID && a.Link == e.Link {
			s.regrant(now, a, e)
			return
		}
		s.detach(now, a, now)
	}
	// The other sandbox that had this link is gone, and the kernel has given its
	// number to a new link.
	if a := s.byLink[e.Link]; a != nil {
		s.detach(now, a, now)
	}
	p := s.pod(e.Pod.UID)
	if len(p.sandboxes) > 0 {
		s.allExited(now, p) // they ran in the earlier sandbox
	}
	s.attach(now, e)
}

// identify gives a sandbox of an unknown pod to its pod. What is announced stays.
func (s *State) identify(a *attachment, as pod.Ref) {
	old := a.pod
	old.sandboxes = slices.DeleteFunc(old.sandboxes, func(b *attachment) bool { return a == b })
	s.forget(old)
	p := s.pod(as.UID)
	p.Ref, a.Pod, a.pod = as, as, p
	p.sandboxes = append(p.sandboxes, a)
	slices.SortFunc(p.sandboxes, func(a, b *attachment) int { return cmp.Compare(a.Link, b.Link) })
}

func (s *State) regrant(now time.Time, a *attachment, e Attached) {
	a.Attached, a.pod.Ref = e, e.Pod
	granted := make(map[netip.Addr]bool, len(e.Grants))
	for _, g := range e.Grants {
		granted[g.Addr] = true
		if p := a.paths[g.Addr]; p != nil {
			p.delay = g.Delay
		} else {
			s.grant(now, a, g)
		}
	}
	for addr, p := range a.paths {
		if !granted[addr] {
			s.drop(now, p, NotGranted, now)
		}
	}
}

func (s *State) detach(now time.Time, a *attachment, arrived time.Time) {
	for _, p := range a.paths {
		s.drop(now, p, SandboxDeleted, arrived)
	}
	delete(s.sandbox, a.ContainerID)
	if s.byLink[a.Link] == a {
		delete(s.byLink, a.Link)
	}
	p := a.pod
	if newest := p.sandboxes[len(p.sandboxes)-1]; newest == a {
		s.allExited(now, p)
	}
	p.sandboxes = slices.DeleteFunc(p.sandboxes, func(b *attachment) bool { return a == b })
}

// drop removes a path.
func (s *State) drop(now time.Time, p *path, r Reason, arrived time.Time) {
	s.move(now, p, decision{reason: r}, arrived)
	delete(p.att.paths, p.addr)
	delete(s.timed, p)
	delete(s.at[p.addr], p)
	if len(s.at[p.addr]) == 0 {
		delete(s.at, p.addr)
	}
}

func (s *State) link(now time.Time, index int, up bool) *podState {
	a := s.byLink[index]
	if a == nil {
		return nil
	}
	if up && !a.linkUp {
		a.upSince = now
	}
	a.linkUp = up
	if !up {
		for addr := range a.paths { // the kernel has dropped their routes itself
			s.dirty[addr] = struct{}{}
		}
	}
	return a.pod
}

// Knows reports whether a link is a pod's.
func (s *State) Knows(link int) bool { return s.byLink[link] != nil }

func (s *State) pod(uid pod.UID) *podState {
	p := s.pods[uid]
	if p == nil {
		p = &podState{Ref: pod.Ref{UID: uid}}
		s.pods[uid] = p
	}
	return p
}

// forget removes a pod that has no sandbox and that no source has.
func (s *State) forget(p *podState) {
	if len(p.sandboxes) == 0 && (p.notFound || p.readiness == nil) {
		s.forgetContainers(p)
		delete(s.pods, p.UID)
	}
}

func (s *State) decidePod(now time.Time, p *podState, arrived time.Time) {
	p.updateReady(now)
	for _, a := range p.sandboxes {
		for _, path := range a.paths {
			s.decide(now, path, arrived)
		}
	}
}

// Wanted returns the desired entries of the addresses that may have changed since its
// last call, and the transitions since then, in the order of events.
func (s *State) Wanted() (map[netip.Addr]Entry, []Transition) {
	want := make(map[netip.Addr]Entry, len(s.dirty))
	for addr := range s.dirty {
		want[addr] = s.entry(addr)
	}
	t := s.transitions
	clear(s.dirty)
	s.transitions = nil
	return want, t
}

// Desired is what the kernel has to have, as a whole.
func (s *State) Desired() map[netip.Addr]Entry {
	all := make(map[netip.Addr]Entry, len(s.at))
	for addr := range s.at {
		if e := s.entry(addr); len(e.Members) > 0 {
			all[addr] = e
		}
	}
	return all
}

// Source is what is known of the sources.
func (s *State) Source() Source { return s.source }
