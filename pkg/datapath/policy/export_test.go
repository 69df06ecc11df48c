package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Diff is the first difference of two rulesets, elements included.
func (r *Ruleset) Diff(o *Ruleset) string {
	if !maps.Equal(r.Links, o.Links) {
		return fmt.Sprintf("links %v and %v", r.Links, o.Links)
	}
	if a, b := slices.Sorted(maps.Keys(r.Profiles)), slices.Sorted(maps.Keys(o.Profiles)); !slices.Equal(a, b) {
		return fmt.Sprintf("profiles %v and %v", a, b)
	}
	if a, b := slices.Sorted(maps.Keys(r.Sets)), slices.Sorted(maps.Keys(o.Sets)); !slices.Equal(a, b) {
		return fmt.Sprintf("sets %v and %v", a, b)
	}
	if a, b := slices.Sorted(maps.Keys(r.Counters)), slices.Sorted(maps.Keys(o.Counters)); !slices.Equal(a, b) {
		return fmt.Sprintf("counters %v and %v", a, b)
	}
	for name, c := range r.Counters {
		// A mirror's counters are those of the changes.
		if a, b := c.Policies(), o.Counters[name].Policies(); !slices.Equal(a, b) {
			return fmt.Sprintf("counter %s is of policies %v and %v", name, a, b)
		}
	}
	for name, s := range r.Sets {
		t := o.Sets[name]
		if a, b := slices.Sorted(maps.Keys(s.members)), slices.Sorted(maps.Keys(t.members)); !slices.Equal(s.boxes, t.boxes) || !slices.Equal(a, b) {
			return fmt.Sprintf("set %s has %q%q and %q%q", name, s.boxes, a, t.boxes, b)
		}
	}
	return ""
}

// A Mirror is a ruleset that is made of changes alone.
type Mirror struct{ Ruleset }

func NewMirror() *Mirror {
	return &Mirror{Ruleset{map[string]*Set{}, map[string]*Profile{}, map[string]Link{}, map[string]*Counter{}}}
}

// Apply does what a Table does, with the same strictness.
func (m *Mirror) Apply(c Change) error {
	for _, s := range c.NewSets {
		if m.Sets[s.Name] != nil {
			return fmt.Errorf("new set %s is there", s.Name)
		}
		m.Sets[s.Name] = &Set{Name: s.Name, boxes: s.boxes, members: maps.Clone(s.members)}
	}
	for _, n := range c.NewCounters {
		if m.Counters[n.Name] != nil {
			return fmt.Errorf("new counter %s is there", n.Name)
		}
		m.Counters[n.Name] = n
	}
	for _, p := range c.NewProfiles {
		if m.Profiles[p.Name] != nil {
			return fmt.Errorf("new profile %s is there", p.Name)
		}
		m.Profiles[p.Name] = p
	}
	for _, s := range c.Sets {
		mine := m.Sets[s.Set.Name]
		for _, e := range s.Added {
			if mine.members[e] != 0 {
				return fmt.Errorf("new element %q of %s is there", e, s.Set.Name)
			}
			mine.members[e] = 1
		}
		for _, e := range s.Deleted {
			if mine.members[e] == 0 {
				return fmt.Errorf("element %q of %s is not there", e, s.Set.Name)
			}
			delete(mine.members, e)
		}
	}
	for name, l := range c.Links {
		if m.Links[name] != l.Old {
			return fmt.Errorf("link %s was %v, want %v", name, m.Links[name], l.Old)
		}
		if m.Links[name] = l.New; l.New == (Link{}) {
			delete(m.Links, name)
		}
	}
	for _, p := range c.GoneProfiles {
		delete(m.Profiles, p.Name)
	}
	for _, s := range c.GoneSets {
		delete(m.Sets, s.Name)
	}
	for _, n := range c.GoneCounters {
		delete(m.Counters, n.Name)
	}
	for _, p := range m.Profiles {
		for _, n := range p.counters() {
			if m.Counters[n.Name] == nil {
				return fmt.Errorf("profile %s uses counter %s, which is not there", p.Name, n.Name)
			}
		}
		for _, s := range slices.Concat(p.admin, p.namespaced, p.baseline) {
			if s.set != "" && m.Sets[s.set] == nil {
				return fmt.Errorf("profile %s uses set %s, which is not there", p.Name, s.set)
			}
		}
	}
	return nil
}

// Simulate is what the kernel does with the first packet of a connection.
func Simulate(r *Ruleset, in, out string, src, dst netip.Addr, proto uint8, port uint16) bool {
	if in != "" && in == out {
		return true
	}
	return r.passes(r.Links[in].Egress, dst, proto, port) && r.passes(r.Links[out].Ingress, src, proto, port)
}

func (r *Ruleset) passes(profile string, peer netip.Addr, proto uint8, port uint16) bool {
	if profile == "" {
		return true
	}
	p := r.Profiles[profile]
	first := func(steps []step) (effect, bool) {
		for _, s := range steps {
			if r.matches(s, peer, proto, port) {
				return s.effect, true
			}
		}
		return 0, false
	}
	if e, ok := first(p.admin); ok && e != passes {
		return e == allows
	}
	if p.isolated {
		_, ok := first(p.namespaced)
		return ok
	}
	e, ok := first(p.baseline)
	return !ok || e != denies
}

func (r *Ruleset) matches(s step, peer netip.Addr, proto uint8, port uint16) bool {
	l := s.lookup
	if l.family != 0 && l.family != familyOf(peer) {
		return false
	}
	if g := l.guard; g.proto != 0 && (g.proto != proto || port < g.lo || port > g.hi) {
		return false
	}
	keys := map[kind]string{
		kindPorts: portsKey(proto, port), kindAddr: addrKey(peer), kindPort: portKey(peer, proto, port),
		kindNetPort: portKey(peer, proto, port),
	}
	if l.kind == kindAny {
		return true
	}
	set, key := r.Sets[s.set], keys[l.kind]
	if l.kind == kindNet {
		return slices.ContainsFunc(set.boxes, func(b box) bool { return b.from <= addrKey(peer) && addrKey(peer) <= b.to })
	}
	if l.interval() {
		return slices.ContainsFunc(set.boxes, func(b box) bool {
			n := len(appendAddr(nil, peer))
			for _, field := range [][2]int{{0, n}, {n, n + 4}, {n + 4, len(key)}} {
				if f := key[field[0]:field[1]]; f < b.from[field[0]:field[1]] || f > b.to[field[0]:field[1]] {
					return false
				}
			}
			return true
		})
	}
	return set.members[key] > 0
}
