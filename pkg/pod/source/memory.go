package source

import (
	"maps"
	"reflect"
	"slices"

	"flock.fritzlab.net/flock/pkg/pod"
)

// Origin is a kind of source.
type Origin int8

// The origins, in the order of preference.
const (
	None Origin = iota
	Kubelet
	APIServer
)

// String returns the origin in words for logs, status and metrics.
func (o Origin) String() string {
	switch o {
	case Kubelet:
		return "kubelet"
	case APIServer:
		return "apiserver"
	}
	return "none"
}

// report is one message of a source. Exactly one of the fields is set.
type report struct {
	list    []*Pod  // all pods of the node, at the start of a new stream
	pod     *Pod    // a pod that is new or has changed
	gone    pod.UID // a pod that no longer exists
	resumed bool    // the stream continues where it was interrupted
	err     error   // the stream is interrupted
}

// Event is a change of what is known of the node's pods.
type Event struct {
	Type Type
	// Pod is the pod as it is now, complete; as it was last for Deleted; nil
	// for Synced.
	Pod *Pod
}

// Type is the type of an Event.
type Type int8

// The types of events.
const (
	Added Type = iota + 1
	Modified
	// Deleted means that no container of the pod runs or will run again, or that the
	// source in use no longer has the pod.
	Deleted
	// Synced means that all pods of the node have been reported. It comes once at the
	// start, and again after each new list.
	Synced
)

// String returns the type in words for logs.
func (t Type) String() string {
	return [...]string{"Type(0)", "Added", "Modified", "Deleted", "Synced"}[t]
}

// memory holds what Watch has reported. Its methods change nothing but its fields.
//
// What a source says of a pod's status is ordered by its stream, not by the times in
// it, which are those of several writers' clocks.
type memory struct {
	pods map[pod.UID]*Pod
	// source is the one in use: the last to have given a list. Reports of the
	// other one are ignored.
	source Origin
	live   bool // source is connected
	// stream has the status of each pod as source said it last. It differs from
	// that of pods where source knew less.
	stream map[pod.UID]PodStatus
}

// take takes in a report and returns the events that follow from it.
func (m *memory) take(from Origin, r report) []Event {
	switch {
	case r.list != nil:
		if from == APIServer && m.source == Kubelet && m.live {
			return nil
		}
		m.source, m.live = from, true
		return m.replace(r.list)
	case from != m.source:
		return nil
	case r.err != nil:
		m.live = false
	case r.resumed:
		m.live = true
	case r.gone != "":
		return m.forget(r.gone)
	case r.pod != nil:
		return m.put(r.pod, from == Kubelet || !reflect.DeepEqual(m.stream[r.pod.UID], r.pod.Status))
	}
	return nil
}

// replace makes list, and nothing else, what is known.
func (m *memory) replace(list []*Pod) []Event {
	var events []Event
	m.stream = make(map[pod.UID]PodStatus, len(list))
	for _, p := range list {
		held := m.pods[p.UID]
		// A kubelet that has restarted may repeat a status from the API server
		// that is older than what it said itself before.
		events = append(events, m.put(p, held == nil || !p.Status.maybeOlder(held.Status))...)
	}
	for _, uid := range slices.Sorted(maps.Keys(m.pods)) {
		if _, listed := m.stream[uid]; !listed {
			events = append(events, m.forget(uid)...)
		}
	}
	return append(events, Event{Type: Synced})
}

// put makes p what is known of it. Its status replaces the known one only if it is
// newer.
func (m *memory) put(p *Pod, newer bool) []Event {
	m.stream[p.UID] = p.Status
	held := m.pods[p.UID]
	if held != nil {
		if p.Status.Ready.Readiness == pod.Unknown || !newer {
			p.Status = held.Status
		}
		if p.Deletion.IsZero() {
			p.Deletion = held.Deletion
		}
	}
	switch {
	case p.ended():
		return m.forget(p.UID)
	case held == nil:
		m.pods[p.UID] = p
		return []Event{{Added, p}}
	case !p.sameAs(held):
		m.pods[p.UID] = p
		return []Event{{Modified, p}}
	}
	return nil
}

func (m *memory) forget(uid pod.UID) []Event {
	delete(m.stream, uid)
	held := m.pods[uid]
	if held == nil {
		return nil
	}
	delete(m.pods, uid)
	return []Event{{Deleted, held}}
}

// sameAs reports whether two differ in their versions at most.
func (p *Pod) sameAs(o *Pod) bool {
	a, b := *p, *o
	a.Version, b.Version = 0, 0
	return reflect.DeepEqual(a, b)
}

// maybeOlder reports whether s, at the start of a stream, may be from before t, which
// an earlier stream said. A lower restart count is older. Without one, only the times
// are left to compare, and a clock may have been set back meanwhile: then a pod that
// is NotReady by either is NotReady, because traffic for it would be lost.
func (s PodStatus) maybeOlder(t PodStatus) bool {
	if slices.ContainsFunc(s.Runs, func(r Run) bool {
		i := slices.IndexFunc(t.Runs, func(later Run) bool { return later.Container == r.Container && later.Init == r.Init })
		return i >= 0 && r.Restarts < t.Runs[i].Restarts
	}) {
		return true
	}
	return s.Ready.Since.Before(t.Ready.Since) && s.Ready.Readiness != pod.NotReady
}
