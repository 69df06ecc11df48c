package policy

import (
	"maps"
	"slices"
)

func (x *Index) makeSet(name string, l lookup, e effect, boxes []box) *Set {
	if s := x.goneSets[name]; s != nil {
		delete(x.goneSets, name)
		x.ruleset.Sets[name] = s
		return s
	}
	s := &Set{Name: name, lookup: l, effect: e, boxes: boxes, members: map[string]int32{}}
	x.newSets[name] = s
	x.ruleset.Sets[name] = s
	return s
}

func (x *Index) dropSet(s *Set) {
	delete(x.ruleset.Sets, s.Name)
	if s.installed {
		x.goneSets[s.Name] = s
	} else {
		delete(x.newSets, s.Name)
	}
}

func (x *Index) setLink(name string, l Link) {
	if x.ruleset.Links[name] == l {
		return
	}
	change, known := x.links[name]
	if !known {
		change.Old = x.ruleset.Links[name]
	}
	change.New = l
	x.links[name] = change
	if l == (Link{}) {
		delete(x.ruleset.Links, name)
	} else {
		x.ruleset.Links[name] = l
	}
}

// reprofile gives a local pod the profiles that it should have.
func (x *Index) reprofile(p *pod) {
	profiles := map[profileUse]*Profile{}
	var bundles []*bundle
	for _, u := range profileUses {
		profile, of := x.profile(p, u.dir, u.toNode)
		if profile != nil {
			profiles[u] = profile
			bundles = append(bundles, of...)
		}
	}
	x.assign(p, profiles, bundles)
	name := func(u profileUse) string {
		if profile := p.profiles[u]; profile != nil {
			return profile.Name
		}
		return ""
	}
	link := Link{Ingress: name(profileUses[0]), Egress: name(profileUses[1]), ToNode: name(profileUses[2])}
	link.LogDenied = link != (Link{}) && x.logged[p.Namespace]
	for _, l := range p.Links {
		x.setLink(l, link)
	}
}

// assign counts who uses which profile and which bundle.
func (x *Index) assign(p *pod, profiles map[profileUse]*Profile, bundles []*bundle) {
	for _, b := range bundles {
		b.refs++
		delete(x.unused, b)
	}
	for u, profile := range profiles {
		known := x.ruleset.Profiles[profile.Name]
		if known == nil {
			known = profile
			if gone := x.goneProfiles[profile.Name]; gone != nil {
				known = gone
				delete(x.goneProfiles, profile.Name)
			} else {
				x.newProfiles[profile.Name] = known
			}
			x.ruleset.Profiles[profile.Name] = known
			x.addCounters(known)
		}
		known.refs++
		profiles[u] = known
	}
	for _, b := range p.bundles {
		if b.refs--; b.refs == 0 {
			x.unused[b] = struct{}{}
		}
	}
	for _, profile := range p.profiles {
		if profile.refs--; profile.refs > 0 {
			continue
		}
		delete(x.ruleset.Profiles, profile.Name)
		x.dropCounters(profile)
		if _, isNew := x.newProfiles[profile.Name]; isNew {
			delete(x.newProfiles, profile.Name)
		} else {
			x.goneProfiles[profile.Name] = profile
		}
	}
	p.profiles, p.bundles = profiles, bundles
}

func (x *Index) addCounters(p *Profile) {
	for _, c := range p.counters() {
		known := x.ruleset.Counters[c.Name]
		if known == nil {
			known = c
			if _, there := x.goneCounters[c.Name]; there {
				delete(x.goneCounters, c.Name)
			} else {
				x.newCounters[c.Name] = c
			}
			x.ruleset.Counters[c.Name] = c
		}
		known.refs++
	}
}

func (x *Index) dropCounters(p *Profile) {
	for _, c := range p.counters() {
		known := x.ruleset.Counters[c.Name]
		if known.refs--; known.refs > 0 {
			continue
		}
		delete(x.ruleset.Counters, c.Name)
		if _, isNew := x.newCounters[c.Name]; isNew {
			delete(x.newCounters, c.Name)
		} else {
			x.goneCounters[c.Name] = known
		}
	}
}

// A Change is how a [Ruleset] differs from what it was at the [Index.Flush] before.
type Change struct {
	NewSets, GoneSets         []*Set
	Sets                      []SetChange
	NewProfiles, GoneProfiles []*Profile
	NewCounters, GoneCounters []*Counter
	// Links are those that changed. The zero Link is one that no policy selects.
	Links map[string]LinkChange
	// Revokes says that something that was allowed may not be allowed any more.
	Revokes bool
}

// A LinkChange is what a link was and is.
type LinkChange struct{ Old, New Link }

// A SetChange is elements that come and go.
type SetChange struct {
	Set            *Set
	Added, Deleted []string
}

// Empty says that nothing changed.
func (c *Change) Empty() bool {
	return len(c.NewSets)+len(c.GoneSets)+len(c.Sets)+len(c.NewProfiles)+len(c.GoneProfiles)+len(c.NewCounters)+len(c.GoneCounters)+len(c.Links) == 0
}

// Flush returns what changed since it was called last.
func (x *Index) Flush() Change {
	for p := range x.changed {
		x.reprofile(p)
	}
	for b := range x.unused {
		b.destroy(x)
	}
	x.settle()
	for g := range x.idle {
		if !g.active() {
			for _, m := range g.members {
				m.forget()
			}
			clear(g.troubled)
		}
	}
	for g := range x.emptied {
		delete(x.groups, g.key)
		if ns := x.namespaces[g.subject.namespace]; ns != nil {
			x.forgetNamespace(ns)
		}
	}
	c := Change{
		NewSets: sortedValues(x.newSets), GoneSets: sortedValues(x.goneSets),
		NewProfiles: sortedValues(x.newProfiles), GoneProfiles: sortedValues(x.goneProfiles),
		NewCounters: sortedValues(x.newCounters), GoneCounters: sortedValues(x.goneCounters),
		Links: x.links,
	}
	for _, s := range x.changedSets {
		if x.ruleset.Sets[s.Name] != s {
			continue
		}
		added, deleted := s.flush()
		if len(added)+len(deleted) == 0 {
			continue
		}
		c.Sets = append(c.Sets, SetChange{s, added, deleted})
		switch s.effect {
		case allows:
			c.Revokes = c.Revokes || len(deleted) > 0
		case denies:
			c.Revokes = c.Revokes || len(added) > 0
		default:
			c.Revokes = true
		}
	}
	slices.SortFunc(c.Sets, func(a, b SetChange) int { return compareNames(a.Set, b.Set) })
	for _, s := range x.newSets {
		s.installed = true
	}
	for name, l := range x.links {
		if l.Old == l.New {
			delete(x.links, name)
		}
		// Also one that comes: somebody may have a connection to its addresses from
		// when they were another pod's.
		c.Revokes = c.Revokes || l.New != (Link{}) && l.New.judgedAs() != l.Old.judgedAs()
	}
	x.begin()
	return c
}

func compareNames(a, b *Set) int {
	switch {
	case a.Name < b.Name:
		return -1
	case a.Name > b.Name:
		return 1
	}
	return 0
}

func sortedValues[T any](m map[string]T) (out []T) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[name])
	}
	return out
}

// needs says what kinds of objects the policies of the last Flush are about.
func (x *Index) needs() (pods, namespaces, nodes bool) {
	ofNodes := len(x.namespaceSelectors(nodesNamespace))
	return len(x.selectors) > ofNodes, len(x.clusterSelectors)+len(x.clusterGroups) > 0, ofNodes > 0
}

func (x *Index) namespaceSelectors(name string) map[*selector]struct{} {
	if ns := x.namespaces[name]; ns != nil {
		return ns.selectors
	}
	return nil
}

// Ruleset is the desired state as of the last Flush. It changes with the Index.
func (x *Index) Ruleset() *Ruleset { return &x.ruleset }

// Findings are what cannot be enforced of the policies that select a pod of this
// node, and of policies with an unreadable selector; sorted. While nothing of it changes,
// it is the same slice.
func (x *Index) Findings() []Finding {
	if x.findings != nil {
		return x.findings
	}
	out := []Finding{}
	for _, p := range x.troubledPolicies {
		out = append(out, p.findings...)
	}
	for g := range x.troubledGroups {
		for _, m := range g.troubled {
			out = append(out, m.findings...)
		}
	}
	for _, a := range x.accounts {
		out = append(out, a.findings...)
	}
	slices.SortFunc(out, func(a, b Finding) int {
		return slices.Compare([]string{a.Policy.Namespace, a.Policy.Name, a.Message}, []string{b.Policy.Namespace, b.Policy.Name, b.Message})
	})
	x.findings = slices.Compact(out)
	return x.findings
}
