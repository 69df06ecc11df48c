package pods

import (
	"maps"
	"reflect"
	"slices"
)

// Origin says who was asked.
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

// report is what a source has to say; one of the fields is set.
type report struct {
	list    []*Pod // not nil: all pods of the node, the start of a new stream
	pod     *Pod   // this one is new or has changed
	gone    string // this UID is no more
	resumed bool   // the stream goes on from where it was cut off
	err     error  // it is cut off
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
	// Deleted is told once nothing of the pod runs or will run again, or the
	// source in use has it no more.
	Deleted
	// Synced is told when what was told is complete: nothing that is not known
	// by now is on the node. It comes once at the start, and again whenever a
	// source had to be asked for everything anew.
	Synced
)

// String returns the type in words for logs.
func (t Type) String() string {
	return [...]string{"Type(0)", "Added", "Modified", "Deleted", "Synced"}[t]
}

// memory is what has been told. Its methods are pure but for its own fields.
type memory struct {
	pods map[string]*Pod // by UID
	// source is the one in use: the last to have given a list. Reports of the
	// other one are not for telling.
	source Origin
	live   bool // source is connected
}

// take takes in a report and returns what is to be told because of it.
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
		return m.put(r.pod, from == Kubelet)
	}
	return nil
}

// replace makes list, and nothing else, what is known.
func (m *memory) replace(list []*Pod) []Event {
	var events []Event
	listed := make(map[string]bool, len(list))
	for _, p := range list {
		listed[p.UID] = true
		// A list may repeat what the kubelet has read from the API server, of
		// which it may not have written the latest itself.
		events = append(events, m.put(p, false)...)
	}
	for _, uid := range slices.Sorted(maps.Keys(m.pods)) {
		if !listed[uid] {
			events = append(events, m.forget(uid)...)
		}
	}
	return append(events, Event{Type: Synced})
}

// put makes p what is known of it, but for what it says less recently than
// what is known; with current, it can't be less recent.
func (m *memory) put(p *Pod, current bool) []Event {
	held := m.pods[p.UID]
	if held != nil {
		if p.Status.Ready.Verdict == Unknown || !current && p.Status.olderThan(held.Status) {
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
	case !reflect.DeepEqual(held, p):
		m.pods[p.UID] = p
		return []Event{{Modified, p}}
	}
	return nil
}

func (m *memory) forget(uid string) []Event {
	held := m.pods[uid]
	if held == nil {
		return nil
	}
	delete(m.pods, uid)
	return []Event{{Deleted, held}}
}

// olderThan reports whether s is from before t: readiness has changed since s,
// or a container was started again.
func (s PodStatus) olderThan(t PodStatus) bool {
	if s.Ready.Since.Before(t.Ready.Since) {
		return true
	}
	return slices.ContainsFunc(s.Runs, func(r Run) bool {
		i := slices.IndexFunc(t.Runs, func(later Run) bool { return later.Container == r.Container && later.Init == r.Init })
		return i >= 0 && r.Restarts < t.Runs[i].Restarts
	})
}
