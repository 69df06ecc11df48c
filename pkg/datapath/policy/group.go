package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// tier is the order in which policies decide.
type tier uint8

const (
	admin tier = iota
	namespaced
	baseline
)

// order is where a group's decision comes among others.
type order struct {
	tier     tier
	priority int32
	name     string
	index    int
}

func (o order) compare(p order) int {
	return cmp.Or(cmp.Compare(o.tier, p.tier), cmp.Compare(o.priority, p.priority), cmp.Compare(o.name, p.name), cmp.Compare(o.index, p.index))
}

// A group is what decides alike for the same pods in one direction: the rules of all
// NetworkPolicies of a namespace with the same podSelector, or one rule of a
// ClusterNetworkPolicy.
type group struct {
	key     string
	dir     direction
	subject podSelector
	order   order
	action  effect
	// toNode says that the rule's peers may be addresses of this node.
	toNode  bool
	members map[PolicyRef]*member
	local   map[*pod]struct{} // the pods of this node that it selects
	bundles map[*bundle]struct{}
	// troubled are the members that have findings.
	troubled map[PolicyRef]*member
	// lookups is what part.lookups has found without named ports; 0 is not known.
	lookups int
}

// A member is a policy's part in a group. Its rules are only parsed while a pod of
// this node is selected.
type member struct {
	parse    func() ([]rule, []Finding)
	parsed   bool
	rules    []rule
	findings []Finding
	// needs is what contribution.needs has found without named ports; nil is not known.
	needs map[lookup]bool
}

func (m *member) read() {
	if !m.parsed {
		m.rules, m.findings = m.parse()
		m.parsed = true
	}
}

// note takes in what a member, or none, has found.
func (g *group) note(ref PolicyRef, m *member) {
	if m != nil && len(m.findings) > 0 {
		g.troubled[ref] = m
	} else {
		delete(g.troubled, ref)
	}
}

func (g *group) active() bool { return len(g.local) > 0 }

// names are the named ports that depend on the selected pod.
func (g *group) names() (names []port) {
	if g.dir != ingress {
		return nil
	}
	for _, m := range g.members {
		for _, r := range m.rules {
			for _, p := range r.ports {
				if p.name != "" {
					names = append(names, p)
				}
			}
		}
	}
	return names
}

// resolve is which of the pod's ports the group's rules name.
func (g *group) resolve(ports []NamedPort) (out []NamedPort) {
	if len(ports) == 0 {
		return nil
	}
	for _, name := range g.names() {
		for _, p := range ports {
			if name.isNamed(p) {
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, func(a, b NamedPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Number, b.Number))
	})
	return slices.Compact(out)
}

func (p port) isNamed(n NamedPort) bool {
	proto, ok := protocolNumber(n.Protocol)
	return ok && p.name != "" && p.name == n.Name && p.proto == proto
}

// part is a group with the ports that its named ports are for some pods.
type part struct {
	group *group
	ports []NamedPort
}

func (p part) key() string {
	var b strings.Builder
	b.WriteString(p.group.key)
	for _, n := range p.ports {
		fmt.Fprintf(&b, "|%s=%s/%d", n.Name, n.Protocol, n.Number)
	}
	return b.String()
}

// A bundle is the sets of one part; or of all parts of a profile together, where they
// would be too many lookups otherwise.
type bundle struct {
	key, prefix string
	effect      effect
	parts       []part
	refs        int // how many pods' directions use it
	contributed map[*member]*contribution
	reasons     map[lookup]int32 // how many contributions need the lookup
	sets        map[lookup]*Set  // of the lookups, where the kind has one
}

// A contribution is what a member puts into a bundle.
type contribution struct {
	lookups []lookup // as often as they are needed
	static  []staticElement
	nets    []netTerm
	uses    []*use
}

type staticElement struct {
	lookup lookup
	key    string
}

// A use is a contribution's interest in the pods that a selector selects: those
// within some blocks of addresses, if there are any.
type use struct {
	pods   *podSelector
	ports  []port
	within []span
	// Since it is in a bundle:
	bundle   *bundle
	selector *selector
}

// contribute adds a pod to the bundle's sets, or takes it out.
func (u *use) contribute(x *Index, p *pod, n int32) {
	for _, a := range p.Addrs {
		if len(u.within) > 0 && !anyContains(u.within, a) {
			continue
		}
		family := familyOf(a)
		for _, q := range u.ports {
			switch {
			case q.name != "":
				for _, named := range p.Ports {
					if q.isNamed(named) {
						u.bundle.sets[lookup{kind: kindPort, family: family}].add(x, portKey(a, q.proto, named.Number), n)
					}
				}
			case q.isExact():
				u.bundle.sets[lookup{kind: kindPort, family: family}].add(x, portKey(a, q.proto, q.lo), n)
			default:
				u.bundle.sets[q.addrLookup(family)].add(x, addrKey(a), n)
			}
		}
	}
}

// addrLookup is the lookup for addresses that may use a range of ports.
func (p port) addrLookup(family uint8) lookup {
	return lookup{kindAddr, family, guard{p.proto, p.lo, p.hi}}
}

// bundle returns the bundle of some parts.
func (x *Index) bundle(parts ...part) *bundle {
	keys := make([]string, len(parts))
	for i, p := range parts {
		keys[i] = p.key()
	}
	slices.Sort(keys)
	key := strings.Join(keys, "||")
	if b := x.bundles[key]; b != nil {
		return b
	}
	g := parts[0].group
	owner := g.subject.namespace
	if g.order.tier != namespaced {
		owner = "cluster"
	}
	b := &bundle{
		key: key, prefix: fmt.Sprintf("%s-%s-%s", g.dir, owner, digest(keys...)),
		effect: g.action, parts: parts,
		contributed: map[*member]*contribution{}, reasons: map[lookup]int32{}, sets: map[lookup]*Set{},
	}
	x.bundles[key] = b
	x.unused[b] = struct{}{}
	for _, p := range parts {
		p.group.bundles[b] = struct{}{}
		for _, m := range p.group.members {
			b.add(x, p, m)
		}
	}
	b.remakeNets(x)
	return b
}

// add puts a member's contribution in. What is in sets of intervals is for
// remakeNets.
func (b *bundle) add(x *Index, from part, m *member) {
	c := from.contribution(m)
	b.contributed[m] = c
	for _, l := range c.lookups {
		if b.reasons[l]++; b.reasons[l] == 1 && l.kind != kindAny {
			b.sets[l] = x.makeSet(b.prefix+"-"+l.String(), l, b.effect, nil)
		}
	}
	for _, e := range c.static {
		b.sets[e.lookup].add(x, e.key, 1)
	}
	for _, u := range c.uses {
		u.bundle, u.selector = b, x.selector(u.pods)
		u.selector.uses[u] = struct{}{}
		for cl := range u.selector.classes {
			for p := range cl.pods {
				u.contribute(x, p, 1)
			}
		}
	}
}

// numbers puts the pod's ports in place of named ports, where these are the selected
// pod's.
func (p part) numbers(ports []port) (out []port) {
	if p.group.dir != ingress {
		return ports
	}
	for _, q := range ports {
		if q.name == "" {
			out = append(out, q)
			continue
		}
		for _, n := range p.ports {
			if q.isNamed(n) {
				out = append(out, port{proto: q.proto, lo: n.Number, hi: n.Number})
			}
		}
	}
	return out
}

// contribution is what a member of the group is for these ports.
func (p part) contribution(m *member) *contribution {
	c := &contribution{}
	for _, r := range m.rules {
		ports := p.numbers(r.ports)
		for _, pe := range r.peers {
			c.add(pe, ports)
		}
	}
	return c
}

func (c *contribution) add(pe peer, ports []port) {
	var ofPods []port // the ports for which the peer is pods
	need := func(l lookup) lookup {
		c.lookups = append(c.lookups, l)
		return l
	}
	for _, q := range ports {
		switch {
		case pe.pods != nil, q.name != "":
			ofPods = append(ofPods, q)
			for _, family := range []uint8{4, 6} {
				if q.name != "" || q.isExact() {
					need(lookup{kind: kindPort, family: family})
				} else {
					need(q.addrLookup(family))
				}
			}
		case pe.all && q.isExact():
			c.static = append(c.static, staticElement{need(lookup{kind: kindPorts}), portsKey(q.proto, q.lo)})
		case pe.all:
			need(lookup{kind: kindAny, guard: guard{q.proto, q.lo, q.hi}})
		default:
			c.nets = append(c.nets, netTerm{pe.blocks, q})
		}
	}
	if len(ofPods) > 0 {
		u := &use{pods: pe.pods, ports: ofPods, within: pe.blocks}
		if u.pods == nil {
			u.pods = everyPod
		}
		c.uses = append(c.uses, u)
	}
}

// lookups is how many lookups a packet of one family takes for the part at most.
func (p part) lookups() int {
	if len(p.ports) == 0 && p.group.lookups > 0 {
		return p.group.lookups
	}
	seen := map[lookup]bool{}
	for _, m := range p.group.members {
		needs := m.needs
		if needs == nil || len(p.ports) > 0 {
			needs = p.contribution(m).needs()
		}
		if m.parsed && len(p.ports) == 0 {
			m.needs = needs
		}
		maps.Copy(seen, needs)
	}
	if len(p.ports) == 0 {
		p.group.lookups = len(seen)
	}
	return len(seen)
}

// needs are the lookups that a packet of one family takes for the contribution.
func (c *contribution) needs() map[lookup]bool {
	out := map[lookup]bool{}
	for _, l := range c.lookups {
		if l.family != 4 {
			out[l] = true
		}
	}
	for _, n := range c.nets {
		if n.port.isAll() {
			out[lookup{kind: kindNet}] = true
		} else {
			out[lookup{kind: kindNetPort}] = true
		}
	}
	return out
}

// remove takes a member's contribution out.
func (b *bundle) remove(x *Index, m *member) {
	c := b.contributed[m]
	delete(b.contributed, m)
	for _, e := range c.static {
		b.sets[e.lookup].add(x, e.key, -1)
	}
	for _, u := range c.uses {
		for cl := range u.selector.classes {
			for p := range cl.pods {
				u.contribute(x, p, -1)
			}
		}
		delete(u.selector.uses, u)
		x.forgetSelector(u.selector)
	}
	for _, l := range c.lookups {
		if b.reasons[l]--; b.reasons[l] > 0 {
			continue
		}
		delete(b.reasons, l)
		if s := b.sets[l]; s != nil {
			x.dropSet(s)
			delete(b.sets, l)
		}
	}
}

// remakeNets makes the sets of intervals, if a contribution has any. A set never
// changes: its name says what is in it.
func (b *bundle) remakeNets(x *Index) {
	var terms []netTerm
	for _, c := range b.contributed {
		terms = append(terms, c.nets...)
	}
	for _, family := range []uint8{4, 6} {
		nets, netPorts := netBoxes(terms, family)
		b.setBoxes(x, lookup{kind: kindNet, family: family}, nets)
		b.setBoxes(x, lookup{kind: kindNetPort, family: family}, netPorts)
	}
}

func (b *bundle) setBoxes(x *Index, l lookup, boxes []box) {
	name := ""
	if len(boxes) > 0 {
		parts := make([]string, 0, 2*len(boxes))
		for _, bx := range boxes {
			parts = append(parts, bx.from, bx.to)
		}
		name = b.prefix + "-" + l.String() + "-" + digest(parts...)
	}
	if old := b.sets[l]; old != nil {
		if old.Name == name {
			return
		}
		x.dropSet(old)
		delete(b.sets, l)
	}
	if name != "" {
		b.sets[l] = x.makeSet(name, l, b.effect, boxes)
	}
}

// destroy drops a bundle that nothing uses, without taking out one element after
// the other.
func (b *bundle) destroy(x *Index) {
	for _, p := range b.parts {
		delete(p.group.bundles, b)
	}
	for _, c := range b.contributed {
		for _, u := range c.uses {
			delete(u.selector.uses, u)
			x.forgetSelector(u.selector)
		}
	}
	for _, s := range b.sets {
		x.dropSet(s)
	}
	delete(x.bundles, b.key)
}

// steps are the bundle's lookups, in an order of their own: the cheap ones first.
func (b *bundle) steps() []step {
	var lookups []lookup
	for l := range b.reasons {
		lookups = append(lookups, l)
	}
	for l := range b.sets {
		if l.interval() {
			lookups = append(lookups, l)
		}
	}
	slices.SortFunc(lookups, lookup.compare)
	out := make([]step, len(lookups))
	for i, l := range lookups {
		out[i] = step{lookup: l, effect: b.effect, counter: b.prefix + "-" + l.String(), bundle: b}
		if set := b.sets[l]; set != nil {
			out[i].set = set.Name
		}
	}
	return out
}

// A shape is what the profiles of a group's pods are made of. While it stays, they
// stay, whatever comes into the sets.
type shape struct {
	lookups int
	names   []port
	steps   map[*bundle][]step
}

func (g *group) shape() shape {
	s := shape{names: g.names(), steps: map[*bundle][]step{}}
	if g.active() {
		s.lookups = part{group: g}.lookups()
	}
	for b := range g.bundles {
		s.steps[b] = b.steps()
	}
	return s
}

func (s shape) equal(o shape) bool {
	// Named ports decide which bundle a pod uses: whoever has some looks again.
	return s.lookups == o.lookups && len(s.names)+len(o.names) == 0 && maps.EqualFunc(s.steps, o.steps, slices.Equal)
}
