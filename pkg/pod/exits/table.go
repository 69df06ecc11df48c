package exits

import "time"

// table holds what is known of the runtime's containers, by ID. It reports each exit
// once, whatever it is learned from and in whatever order. A container that has exited
// never runs again: its next run is another container.
type table map[string]*entry

type entry struct {
	Container      // only the ID while its pod is not known
	ended     bool // and reported, if its pod is known
	at        time.Time
	// listed: it was there when the runtime listed its containers last, so the next
	// list should have it.
	listed bool
}

// state is a container as a list has it.
type state struct {
	Container
	running bool
	at      time.Time // when it exited; zero if the list does not say
}

// reconnected makes the first list of a new stream one that should have every
// container that was known before.
func (t table) reconnected() {
	for _, e := range t {
		e.listed = true
	}
}

// list takes in a list of the containers that the runtime has. Missing are those that
// ran and should be in the list: most have exited and were removed, but a runtime
// also leaves out a container with a slow shim.
func (t table) list(states []state, now time.Time) (exits []Exit, missing []string) {
	listed := make(map[string]bool, len(states))
	for _, s := range states {
		listed[s.ID] = true
		exits = append(exits, t.learn(s.Container)...)
		t[s.ID].listed = true
		if !s.running {
			at := s.at
			if at.IsZero() {
				at = now
			}
			exits = append(exits, t.end(s.ID, at)...)
		}
	}
	for id, e := range t {
		switch {
		case !e.listed || listed[id]:
		case e.ended:
			delete(t, id)
		default:
			missing = append(missing, id)
		}
	}
	return exits, missing
}

// learn takes in the pod of a container.
func (t table) learn(c Container) []Exit {
	e := t[c.ID]
	if e == nil {
		t[c.ID] = &entry{Container: c}
		return nil
	}
	known := e.Pod.UID != ""
	e.Container = c
	if known || !e.ended {
		return nil
	}
	return []Exit{{c, e.at}}
}

// end takes in that a container has exited. If its pod is not known, learn reports
// the exit.
func (t table) end(id string, at time.Time) []Exit {
	e := t[id]
	if e == nil {
		e = &entry{Container: Container{ID: id}}
		t[id] = e
	}
	if e.ended {
		return nil
	}
	e.ended, e.at = true, at
	if e.Pod.UID == "" {
		return nil
	}
	return []Exit{{e.Container, at}}
}

// knows reports whether the container's pod is known.
func (t table) knows(id string) bool {
	e := t[id]
	return e != nil && e.Pod.UID != ""
}

// remove forgets a container that the runtime has forgotten.
func (t table) remove(id string) { delete(t, id) }
