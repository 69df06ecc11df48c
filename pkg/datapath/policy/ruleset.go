package policy

import (
	"fmt"
	"slices"
)

// A Ruleset is what the table shall have. That of an [Index] changes with it.
type Ruleset struct {
	Sets     map[string]*Set
	Profiles map[string]*Profile
	// Links are the pods' interfaces that a policy selects, by name.
	Links map[string]Link
	// Counters are the names of the counters of the profiles' rules.
	Counters map[string]*Counter
}

// A Counter counts the packets that some rule of a policy decides about: the first of
// each connection, the first after a change that may revoke it, and all that are
// denied.
type Counter struct {
	Name string
	dir  direction
	// bundle and lookup are what it counts for; or isolating, for packets that no
	// NetworkPolicy allows.
	bundle    *bundle
	lookup    lookup
	isolating []*group
	refs      int // how many profiles have it
}

// A Link has the names of the profiles of a pod's interface; one is empty if no
// policy selects the pod in that direction.
type Link struct {
	Ingress, Egress string
	// ToNode is the profile of what the pod sends to its own node.
	ToNode string
	// LogDenied: what the profiles deny is logged.
	LogDenied bool
}

// judgedAs is the link without what does not matter to packets.
func (l Link) judgedAs() Link {
	l.LogDenied = false
	return l
}

// A Profile is what decides about the packets of some pods in one direction. Its name
// says all of it.
type Profile struct {
	Name string
	dir  direction
	// toNode is a profile for what the pod sends to its own node.
	toNode bool
	// isolated pods take or send nothing in this direction but what a step allows.
	isolated                    bool
	admin, namespaced, baseline []step
	// isolating are the groups of NetworkPolicies that select the pods.
	isolating []*group
	refs      int
}

// counters are those of the profile's rules. The rule that drops what no NetworkPolicy
// allows has one with the profile's name.
func (p *Profile) counters() (out []*Counter) {
	for _, steps := range [][]step{p.admin, p.namespaced, p.baseline} {
		for _, s := range steps {
			out = append(out, &Counter{Name: s.counter, dir: p.dir, bundle: s.bundle, lookup: s.lookup})
		}
	}
	if p.isolated {
		out = append(out, &Counter{Name: p.Name, dir: p.dir, isolating: p.isolating})
	}
	return out
}

// A step is a lookup, and what it means to be found.
type step struct {
	lookup  lookup
	set     string // empty for everything that the lookup's guard lets through
	effect  effect
	counter string // of the packets that are found
	bundle  *bundle
}

// rule is what the step's rule is made of.
func (s step) rule() string { return fmt.Sprint(s.lookup, s.set, s.effect, s.counter) }

// maxLookups is how many lookups a packet of a new connection takes in the sets of
// NetworkPolicies, for each direction. Profiles with more get sets of their own.
const maxLookups = 8

// profile makes the profile of a pod's direction, and the bundles that it uses. It is
// nil if nothing selects the pod.
func (x *Index) profile(p *pod, d direction, toNode bool) (*Profile, []*bundle) {
	groups := p.groupsOf(d, toNode)
	if len(groups) == 0 {
		return nil, nil
	}
	out := &Profile{dir: d, toNode: toNode}
	var bundles []*bundle
	steps := func(b *bundle) []step {
		bundles = append(bundles, b)
		return b.steps()
	}
	var parts []part
	for _, g := range groups {
		one := part{g, g.resolve(p.Ports)}
		switch g.order.tier {
		case admin:
			out.admin = append(out.admin, steps(x.bundle(one))...)
		case baseline:
			out.baseline = append(out.baseline, steps(x.bundle(one))...)
		default:
			parts = append(parts, one)
		}
	}
	lookups := 0
	for _, one := range parts {
		out.isolated = true
		out.isolating = append(out.isolating, one.group)
		lookups += one.lookups()
	}
	if len(parts) > 1 && lookups > maxLookups {
		out.namespaced = steps(x.bundle(parts...))
		parts = nil
	}
	for _, one := range parts {
		out.namespaced = append(out.namespaced, steps(x.bundle(one))...)
	}
	// Its counter is of the policies that select the pods: their groups are part of it.
	content := []string{fmt.Sprint(out.isolated, len(out.admin), len(out.namespaced), len(out.baseline))}
	for _, s := range slices.Concat(out.admin, out.namespaced, out.baseline) {
		content = append(content, s.rule())
	}
	for _, g := range out.isolating {
		content = append(content, g.key)
	}
	out.Name = fmt.Sprintf("%s-%s", d, digest(content...))
	if toNode {
		out.Name = "node-" + out.Name
	}
	return out, bundles
}
