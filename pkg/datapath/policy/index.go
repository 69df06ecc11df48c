package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"
)

// An Index keeps a [Ruleset] up to date while policies, pods, namespaces and nodes
// change. Each change costs what it touches. An Index is for one goroutine.
type Index struct {
	ruleset Ruleset

	namespaces       map[string]*namespace
	pods             map[podKey]*pod
	selectors        map[string]*selector
	clusterSelectors map[*selector]struct{}
	policies         map[PolicyRef]*policy
	groups           map[string]*group
	clusterGroups    map[*group]struct{}
	bundles          map[string]*bundle
	accounts         map[string]*account // by namespace
	budget           int                 // of each account

	// What has findings: policies as a whole, and groups by their members.
	troubledPolicies map[PolicyRef]*policy
	troubledGroups   map[*group]struct{}
	// findings are those of all of them, sorted; nil while they are to be collected anew.
	findings []Finding

	// What happened since the last Flush.
	changed      map[*pod]struct{}   // local pods with perhaps other profiles
	emptied      map[*group]struct{} // groups without members
	idle         map[*group]struct{} // groups that selected a pod, and perhaps do no more
	unused       map[*bundle]struct{}
	unsettled    map[*bundle]struct{}  // bundles of which some sets are to be made anew
	overdrawn    map[*account]struct{} // accounts that are or were over the budget
	changedSets  []*Set
	newSets      map[string]*Set
	goneSets     map[string]*Set
	newProfiles  map[string]*Profile
	goneProfiles map[string]*Profile
	newCounters  map[string]*Counter
	goneCounters map[string]*Counter
	links        map[string]LinkChange

	logged map[string]bool // namespaces of whose pods denied packets are logged
}

type podKey struct{ namespace, name, uid string }

type pod struct {
	Pod
	class *class
	*local
}

// local is what belongs to a pod of this node alone.
type local struct {
	groups   map[*group]struct{} // those that select it
	profiles map[profileUse]*Profile
	bundles  []*bundle
}

type profileUse struct {
	dir    direction
	toNode bool
}

var profileUses = []profileUse{{ingress, false}, {egress, false}, {egress, true}}

// policy is a policy's parts, by group; or why it has none.
type policy struct {
	groups   []*group
	findings []Finding
}

// NewIndex returns an Index of nothing.
func NewIndex() *Index {
	x := &Index{
		ruleset:          Ruleset{map[string]*Set{}, map[string]*Profile{}, map[string]Link{}, map[string]*Counter{}},
		namespaces:       map[string]*namespace{},
		pods:             map[podKey]*pod{},
		selectors:        map[string]*selector{},
		clusterSelectors: map[*selector]struct{}{},
		policies:         map[PolicyRef]*policy{},
		groups:           map[string]*group{},
		clusterGroups:    map[*group]struct{}{},
		bundles:          map[string]*bundle{},
		accounts:         map[string]*account{},
		budget:           DefaultBudget,
		troubledPolicies: map[PolicyRef]*policy{},
		troubledGroups:   map[*group]struct{}{},
	}
	x.begin()
	return x
}

// begin begins to note what happens.
func (x *Index) begin() {
	x.changed, x.unused = map[*pod]struct{}{}, map[*bundle]struct{}{}
	x.unsettled, x.overdrawn = map[*bundle]struct{}{}, map[*account]struct{}{}
	x.emptied, x.idle = map[*group]struct{}{}, map[*group]struct{}{}
	x.changedSets = nil
	x.newSets, x.goneSets = map[string]*Set{}, map[string]*Set{}
	x.newProfiles, x.goneProfiles = map[string]*Profile{}, map[string]*Profile{}
	x.newCounters, x.goneCounters = map[string]*Counter{}, map[string]*Counter{}
	x.links = map[string]LinkChange{}
}

// SetBudget says how many elements the NetworkPolicies of one namespace may have. It is
// for an Index of nothing. [DefaultBudget] is that of a new one.
func (x *Index) SetBudget(elements int) { x.budget = elements }

// SetPod adds a pod, or changes what is known of it.
func (x *Index) SetPod(p Pod) {
	key := podKey{p.Namespace, p.Name, p.UID}
	if p.HostNetwork {
		x.deletePod(key)
		return
	}
	if p.Finished {
		p.Addrs = nil
	}
	old := x.pods[key]
	if old == nil {
		old = &pod{Pod: p, class: x.class(x.namespace(p.Namespace), p.Labels)}
		old.share()
		x.pods[key] = old
		x.join(old)
		x.relink(old, nil)
		return
	}
	links, ports := old.Links, old.Ports
	relabeled := !maps.Equal(old.Labels, p.Labels)
	if relabeled || !slices.Equal(old.Addrs, p.Addrs) || !samePorts(old.Ports, p.Ports) {
		was := *old
		if relabeled {
			old.class = x.class(was.class.namespace, p.Labels)
			delete(was.class.pods, old)
			old.class.pods[old] = struct{}{}
		}
		old.Pod = p
		x.contribute(old, 1)
		x.contribute(&was, -1)
		x.forgetClass(was.class)
	}
	old.Pod = p
	old.share()
	if relabeled && len(links) > 0 {
		x.reselectAll(old)
	}
	if !samePorts(ports, p.Ports) && len(links) > 0 {
		x.changed[old] = struct{}{}
	}
	x.relink(old, links)
}

// share has the pods of a class share what is the same in all or most of them.
func (p *pod) share() {
	p.Labels, p.Namespace = p.class.labels, p.class.namespace.name
	if samePorts(p.Ports, p.class.ports) {
		p.Ports = p.class.ports
	} else {
		p.class.ports = p.Ports
	}
}

// DeletePod removes a pod.
func (x *Index) DeletePod(namespace, name, uid string) { x.deletePod(podKey{namespace, name, uid}) }

func (x *Index) deletePod(key podKey) {
	p := x.pods[key]
	if p == nil {
		return
	}
	links := p.Links
	p.Links = nil
	x.relink(p, links)
	delete(x.pods, key)
	x.leave(p)
}

// SetLogged says of which namespaces' pods denied packets are logged.
func (x *Index) SetLogged(namespaces ...string) {
	before := x.logged
	x.logged = map[string]bool{}
	for _, name := range namespaces {
		x.logged[name] = true
	}
	for _, ns := range x.namespaces {
		if before[ns.name] != x.logged[ns.name] {
			for p := range ns.local {
				x.changed[p] = struct{}{}
			}
		}
	}
}

// relink takes in that a pod's interfaces are others than before.
func (x *Index) relink(p *pod, before []string) {
	if slices.Equal(before, p.Links) {
		return
	}
	for _, l := range before {
		if !slices.Contains(p.Links, l) {
			x.setLink(l, Link{})
		}
	}
	ns := p.class.namespace
	switch {
	case len(p.Links) == 0:
		for g := range p.groups {
			x.deselect(g, p)
		}
		delete(ns.local, p)
		delete(x.changed, p)
		x.assign(p, nil, nil)
		p.local = nil
	case len(before) == 0:
		p.local = &local{groups: map[*group]struct{}{}}
		ns.local[p] = struct{}{}
		x.reselectAll(p)
		fallthrough
	default:
		x.changed[p] = struct{}{}
	}
}

func (x *Index) reselectAll(p *pod) {
	for _, groups := range []map[*group]struct{}{p.class.namespace.groups, x.clusterGroups} {
		for g := range groups {
			x.reselect(g, p)
		}
	}
}

// reselect takes in that a group may select a local pod now, or not any more.
func (x *Index) reselect(g *group, p *pod) {
	_, was := p.groups[g]
	switch is := g.subject.selects(p.class); {
	case is && !was:
		if !g.active() {
			g.lookups = 0
			for ref, m := range g.members {
				m.read()
				g.note(ref, m)
			}
		}
		g.local[p] = struct{}{}
		p.groups[g] = struct{}{}
		x.noteFindings(g)
		x.changed[p] = struct{}{}
	case was && !is:
		x.deselect(g, p)
		x.changed[p] = struct{}{}
	}
}

func (x *Index) deselect(g *group, p *pod) {
	delete(g.local, p)
	delete(p.groups, g)
	if !g.active() {
		x.idle[g] = struct{}{}
		x.noteFindings(g)
	}
}

// noteFindings takes in that a group is active now or not any more, or has other members.
func (x *Index) noteFindings(g *group) {
	_, was := x.troubledGroups[g]
	is := g.active() && len(g.troubled) > 0
	if is {
		x.troubledGroups[g] = struct{}{}
	} else {
		delete(x.troubledGroups, g)
	}
	if is || was {
		x.findings = nil
	}
}

// SetNetworkPolicy adds a policy, or changes it.
func (x *Index) SetNetworkPolicy(np *networkingv1.NetworkPolicy) {
	ref := PolicyRef{np.Namespace, np.Name}
	p := &parser{ref: ref, uid: np.UID}
	s := podSelector{namespace: np.Namespace, pods: p.selector("spec.podSelector", &np.Spec.PodSelector)}
	uid, created, spec := np.UID, np.CreationTimestamp.Time, &packedSpec{spec: &np.Spec} // np is not kept
	defer spec.pack()
	var joins []join
	in, out := directions(np)
	for d, isolates := range map[direction]bool{ingress: in, egress: out} {
		if s.pods == nil || !isolates {
			continue
		}
		joins = append(joins, join{
			group{key: fmt.Sprintf("%s|%s", d, s.key()), dir: d, subject: s, order: order{tier: namespaced}},
			author{ref, uid, created, d},
			func() ([]rule, []Finding) { return parseNetworkPolicy(ref, uid, spec, d) },
		})
	}
	x.setPolicy(ref, joins, p.findings)
}

// DeletePolicy removes a policy of either kind.
func (x *Index) DeletePolicy(ref PolicyRef) { x.setPolicy(ref, nil, nil) }

// join is a policy's wish to be a member of a group.
type join struct {
	group  group // as it is made, if it is not there
	author author
	parse  func() ([]rule, []Finding)
}

func (x *Index) setPolicy(ref PolicyRef, joins []join, findings []Finding) {
	old := x.policies[ref]
	now := &policy{findings: findings}
	for _, j := range joins {
		now.groups = append(now.groups, x.group(j.group))
	}
	if old != nil {
		for _, g := range old.groups {
			if !slices.Contains(now.groups, g) {
				x.setMember(g, ref, nil)
			}
		}
	}
	for i, j := range joins {
		x.setMember(now.groups[i], ref, &member{author: j.author, parse: j.parse})
	}
	if x.policies[ref] = now; len(joins)+len(findings) == 0 {
		delete(x.policies, ref)
	}
	if _, was := x.troubledPolicies[ref]; was || len(findings) > 0 {
		x.findings = nil
		delete(x.troubledPolicies, ref)
		if len(findings) > 0 {
			x.troubledPolicies[ref] = now
		}
	}
}

// group returns a group like the given one.
func (x *Index) group(like group) *group {
	if g := x.groups[like.key]; g != nil {
		return g
	}
	g := &like
	g.troubled = map[PolicyRef]*member{}
	g.members, g.local, g.bundles = map[PolicyRef]*member{}, map[*pod]struct{}{}, map[*bundle]struct{}{}
	x.groups[g.key] = g
	return g
}

// setMember makes a policy's part in a group what it is now; nil takes it out.
func (x *Index) setMember(g *group, ref PolicyRef, m *member) {
	old := g.members[ref]
	before := g.shape()
	g.lookups = 0
	if m != nil && (g.active() || len(g.bundles) > 0) {
		m.read()
	}
	if m != nil {
		g.members[ref] = m
	} else {
		delete(g.members, ref)
	}
	g.note(ref, m)
	x.noteFindings(g)
	for b := range g.bundles {
		for _, p := range b.parts {
			if p.group != g {
				continue
			}
			if m != nil {
				b.add(x, p, m)
			}
			if old != nil {
				b.remove(x, old)
			}
		}
	}
	if len(g.members) == 0 || !before.equal(g.shape()) {
		for p := range g.local {
			x.changed[p] = struct{}{}
		}
	}
	switch among := x.groupsBeside(g); {
	case len(g.members) == 0:
		for p := range g.local {
			x.deselect(g, p)
		}
		delete(among, g)
		x.emptied[g] = struct{}{}
	default:
		delete(x.emptied, g)
		if _, known := among[g]; known {
			return
		}
		among[g] = struct{}{}
		for p := range x.localPods(g) {
			x.reselect(g, p)
		}
	}
}

// groupsBeside are the groups of the same namespace, or of none.
func (x *Index) groupsBeside(g *group) map[*group]struct{} {
	if g.subject.namespaces != nil {
		return x.clusterGroups
	}
	return x.namespace(g.subject.namespace).groups
}

// localPods are those that a group may select.
func (x *Index) localPods(g *group) map[*pod]struct{} {
	if g.subject.namespaces == nil {
		return x.namespace(g.subject.namespace).local
	}
	out := map[*pod]struct{}{}
	for _, ns := range x.namespaces {
		maps.Copy(out, ns.local)
	}
	return out
}

// Input is all that a Ruleset is made of.
type Input struct {
	NetworkPolicies        []*networkingv1.NetworkPolicy
	ClusterNetworkPolicies []*policyv1beta1.ClusterNetworkPolicy
	Pods                   []Pod
	Namespaces             []Namespace
	Nodes                  []Node
	// Logged are the namespaces of whose pods denied packets are logged.
	Logged []string
	// Budget is how many elements the NetworkPolicies of one namespace may have; 0:
	// [DefaultBudget].
	Budget int
}

// Compile makes the Ruleset of a node: of the pods in the input that have Links.
func Compile(in Input) (*Ruleset, []Finding) {
	x := NewIndex()
	x.SetBudget(cmp.Or(in.Budget, DefaultBudget))
	x.SetLogged(in.Logged...)
	for _, n := range in.Namespaces {
		x.SetNamespace(n)
	}
	for _, p := range in.Pods {
		x.SetPod(p)
	}
	for _, n := range in.Nodes {
		x.SetNode(n)
	}
	for _, np := range in.NetworkPolicies {
		x.SetNetworkPolicy(np)
	}
	for _, cnp := range in.ClusterNetworkPolicies {
		x.SetClusterNetworkPolicy(cnp)
	}
	x.Flush()
	return x.Ruleset(), x.Findings()
}
