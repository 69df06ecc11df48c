package exits

import "time"

// table is what is known of the runtime's containers, by ID. It tells of an exit
// once, whatever it is learned from, and in whatever order. A container that has
// ended never runs again: its next run is another container.
type table map[string]*entry

type entry struct {
	Container      // only the ID while it is not known whose it is
	ended     bool // and told, if it is known whose it is
	at        time.Time
	// listed: it was there when the runtime listed its containers last, so
	// that its absence from the next list means that it has ended.
	listed bool
}

// state is a container as a list has it.
type state struct {
	Container
	running bool
	at      time.Time // of its end; zero if the list does not say
}

// reconnected is to be called before what a new stream says is entered: what was
// known before it is expected in its first list.
func (t table) reconnected() {
	for _, e := range t {
		e.listed = true
	}
}

// list enters a list of all containers that the runtime has.
func (t table) list(states []state, now time.Time) (exits []Exit) {
	listed := make(map[string]bool, len(states))
	for _, s := range states {
		listed[s.ID] = true
		e := t[s.ID]
		switch {
		case e == nil:
			e = &entry{Container: s.Container, ended: !s.running, at: s.at}
			t[s.ID] = e
		case e.PodUID == "":
			exits = append(exits, t.learn(s.Container)...)
		}
		e.listed = true
		if !s.running {
			at := s.at
			if at.IsZero() {
				at = now
			}
			exits = append(exits, t.end(s.ID, at)...)
		}
	}
	for id, e := range t {
		if !e.listed || listed[id] {
			continue
		}
		exits = append(exits, t.end(id, now)...)
		delete(t, id)
	}
	return exits
}

// learn enters whose a container is that has started, or of which no more was
// known than its ID.
func (t table) learn(c Container) []Exit {
	e := t[c.ID]
	if e == nil {
		t[c.ID] = &entry{Container: c}
		return nil
	}
	known := e.PodUID != ""
	e.Container = c
	if known || !e.ended {
		return nil
	}
	return []Exit{{c, e.at}}
}

// end enters that a container has ended. If it is not known whose it is, that is
// kept for learn.
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
	if e.PodUID == "" {
		return nil
	}
	return []Exit{{e.Container, at}}
}

// knows reports whether it is known whose the container is.
func (t table) knows(id string) bool {
	e := t[id]
	return e != nil && e.PodUID != ""
}

// remove forgets a container that the runtime has forgotten.
func (t table) remove(id string) { delete(t, id) }
