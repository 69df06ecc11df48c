package anycast

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

// Path is a pod at an anycast address, as status and Events show it.
type Path struct {
	Pod  pod.Ref
	Addr netip.Addr
	// Link is the ifindex of the pod's link on the host.
	Link      int
	Announced bool
	Role      Role
	Reason    Reason
	// Detail explains the reason to people; often empty.
	Detail string
	// Since is when the reason began to hold.
	Since time.Time
	// Flaps is how many times the pod was withdrawn.
	Flaps int
}

// Transition is a path that has become announced, or was withdrawn.
type Transition struct {
	Path
	// Cause is when what led to it was learned: an event's arrival, or the end of
	// an announce delay.
	Cause time.Time
	// Applied is when it was in the kernel.
	Applied time.Time
}

// Latency is the node's own part of the time that a transition took.
func (t Transition) Latency() time.Duration { return t.Applied.Sub(t.Cause) }

// path is a pod at an address.
type path struct {
	att   *attachment
	addr  netip.Addr
	delay time.Duration
	kept  bool
	now   decision
	since time.Time
	left  time.Time // facts.withdrawn
	flaps int
}

func (s *State) decide(now time.Time, p *path, cause time.Time) {
	a, pod := p.att, p.att.pod
	from := pod.readyFrom
	if a.upSince.After(from) {
		from = a.upSince
	}
	if pod.readiness != nil || pod.notFound {
		p.kept = false
	}
	d := decide(facts{
		superseded:  a != pod.sandboxes[len(pod.sandboxes)-1],
		linkUp:      a.linkUp,
		sandboxGone: a.exited,
		terminating: pod.terminating,
		notFound:    pod.notFound,
		kept:        p.kept,
		readiness:   pod.readiness,
		exited:      pod.lastExit(),
		readyFrom:   from,
		delay:       p.delay,
		drain:       s.Drain,
		role:        p.now.role,
		withdrawn:   p.withdrawn(now),
	}, now)
	if p.kept && d.role != Announced {
		p.kept = false
	}
	s.move(now, p, d, cause)
}

// withdrawn is when the pod was withdrawn, which is now if it still is announced.
func (p *path) withdrawn(now time.Time) time.Time {
	if p.now.role == Announced {
		return now
	}
	return p.left
}

// move puts a path into the state that was decided.
func (s *State) move(now time.Time, p *path, d decision, cause time.Time) {
	was := p.now
	p.now = d
	if d.until.IsZero() {
		delete(s.timed, p)
	} else {
		s.timed[p] = d.until
	}
	switch {
	case d.role == Announced || d.role == Withheld:
		p.left = time.Time{}
	case was.role == Announced:
		p.left = now
	}
	if was.role != d.role {
		s.dirty[p.addr] = struct{}{}
	}
	if was.reason != d.reason || (was.role == Announced) != (d.role == Announced) {
		p.since = now
	}
	if (was.role == Announced) == (d.role == Announced) {
		return
	}
	if was.role == Announced {
		p.flaps++
	}
	s.transitions = append(s.transitions, Transition{Path: p.status(), Cause: cause})
}

func (s *State) entry(addr netip.Addr) Entry {
	var links [Announced + 1][]int
	for p := range s.at[addr] {
		links[p.now.role] = append(links[p.now.role], p.att.Link)
	}
	var e Entry
	e.Announced = len(links[Announced]) > 0
	add := func(drains bool, links []int) {
		slices.Sort(links)
		for _, l := range links {
			e.Members = append(e.Members, Member{Link: l, Drains: drains})
		}
	}
	if e.Announced {
		add(false, links[Announced])
		add(true, links[Draining])
	} else {
		add(false, slices.Concat(links[Draining], links[LastResort]))
	}
	e.Local = len(e.Members) > 0
	return e
}

// Paths are all pods at all addresses, by address, namespace and name.
func (s *State) Paths() []Path {
	var all []Path
	for ps := range maps.Values(s.at) {
		for p := range ps {
			all = append(all, p.status())
		}
	}
	slices.SortFunc(all, func(a, b Path) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Pod.Namespace, b.Pod.Namespace),
			cmp.Compare(a.Pod.Name, b.Pod.Name), cmp.Compare(a.Link, b.Link))
	})
	return all
}

func (p *path) status() Path {
	return Path{
		Pod:       p.att.Pod,
		Addr:      p.addr,
		Link:      p.att.Link,
		Announced: p.now.role == Announced,
		Role:      p.now.role,
		Reason:    p.now.reason,
		Detail:    p.now.detail,
		Since:     p.since,
		Flaps:     p.flaps,
	}
}
