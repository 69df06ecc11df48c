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
	author
	parse    func() ([]rule, []Finding)
	parsed   bool
	rules    []rule
	findings []Finding
	// needs is what contribution.needs has found without named ports; nil is not known.
	needs map[lookup]bool
	// withheld: it is over its namespace's budget, and allows nothing.
	withheld bool
}

// forget drops what is known of a member whose group selects no pod of this node.
func (m *member) forget() { *m = member{author: m.author, parse: m.parse} }

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
	account     *account         // that of the namespace; nil for a ClusterNetworkPolicy
	reasons     map[lookup]int32 // how many contributions need the lookup
	netReasons  map[lookup]int32 // the same for blocks of addresses
	guards      map[guard]int32  // how many blocks' ports, withheld ones too, are these
	sets        map[lookup]*Set  // of the lookups, where the kind has one
	// stale: the sets of pods' addresses are not kept up to date, because they are too
	// many, and staleNets the same for blocks of addresses. The next Flush makes them.
	stale, staleNets bool
}

// A contribution is what a member puts into a bundle.
type contribution struct {
	lookups []lookup // as often as they are needed
	static  []staticElement
	nets    []netTerm
	uses    []*use
	// Since it is in a bundle:
	bundle   *bundle
	member   *member
	cost     int // elements
	netCost  int // those of cost that are for nets
	withheld bool
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
	contribution *contribution
	selector     *selector
}

// contribute adds a pod to the bundle's sets, or takes it out.
func (u *use) contribute(x *Index, p *pod, n int32) {
	u.contribution.charge(x, int(n)*u.count(p))
	if b := u.contribution.bundle; !u.contribution.withheld && !b.stale {
		u.each(p, func(l lookup, key string) { b.sets[l].add(x, key, n) })
	}
}

// contributeAll is contribute for all pods that the selector selects.
func (u *use) contributeAll(x *Index, n int32) {
	b := u.contribution.bundle
	u.eachPod(func(p *pod) { u.each(p, func(l lookup, key string) { b.sets[l].add(x, key, n) }) })
}

func (u *use) eachPod(f func(*pod)) {
	for cl := range u.selector.classes {
		for p := range cl.pods {
			f(p)
		}
	}
}

// count is how often each calls.
func (u *use) count(p *pod) int {
	addrs, ports := len(p.Addrs), 0
	if len(u.within) > 0 {
		addrs = 0
		for _, a := range p.Addrs {
			if anyContains(u.within, a) {
				addrs++
			}
		}
	}
	for _, q := range u.ports {
		if q.name == "" {
			ports++
			continue
		}
		for _, named := range p.Ports {
			if q.isNamed(named) {
				ports++
			}
		}
	}
	return addrs * ports
}

// each calls f with what a pod has in the bundle's sets.
func (u *use) each(p *pod, f func(l lookup, key string)) {
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
						f(lookup{kind: kindPort, family: family}, portKey(a, q.proto, named.Number))
					}
				}
			case q.isExact():
				f(lookup{kind: kindPort, family: family}, portKey(a, q.proto, q.lo))
			default:
				f(q.addrLookup(family), addrKey(a))
			}
		}
	}
}

// addrLookup is the lookup for addresses that may use a range of ports.
func (p port) addrLookup(family uint8) lookup { return lookup{kindAddr, family, p.guard()} }

func (p port) guard() guard { return guard{p.proto, p.lo, p.hi} }

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
		contributed: map[*member]*contribution{}, sets: map[lookup]*Set{},
		reasons: map[lookup]int32{}, netReasons: map[lookup]int32{}, guards: map[guard]int32{},
	}
	if g.order.tier == namespaced {
		b.account = x.account(owner)
	}
	x.bundles[key] = b
	x.unused[b] = struct{}{}
	for _, p := range parts {
		p.group.bundles[b] = struct{}{}
		for _, m := range p.group.members {
			b.add(x, p, m)
		}
	}
	return b
}

// add puts a member's contribution in, unless there is no room for it. What is in sets of
// intervals is for settle.
func (b *bundle) add(x *Index, from part, m *member) {
	c := from.contribution(m)
	c.bundle, c.member = b, m
	b.contributed[m] = c
	for _, t := range c.nets {
		b.guards[t.port.guard()]++
		c.netCost += len(t.spans)
	}
	cost := len(c.static) + c.netCost
	for _, u := range c.uses {
		u.contribution, u.selector = c, x.selector(u.pods)
		u.selector.uses[u] = struct{}{}
		u.eachPod(func(p *pod) { cost += u.count(p) })
	}
	if b.account != nil {
		b.account = x.account(b.account.namespace)
		b.account.contributions[c] = struct{}{}
	}
	c.withheld = !b.account.fits(x, cost)
	c.charge(x, cost)
	if !c.withheld {
		b.admit(x, c)
	}
	b.touchNets(x, c)
}

// admit makes a contribution one that is held.
func (b *bundle) admit(x *Index, c *contribution) {
	for _, l := range c.lookups {
		if b.reasons[l]++; b.reasons[l] == 1 && l.kind != kindAny {
			b.sets[l] = x.makeSet(b.prefix+"-"+l.String(), l, b.effect, nil)
		}
	}
	for l := range c.netLookups {
		b.netReasons[l]++
	}
	if !b.stale {
		b.contributeAll(x, c, 1)
	}
	b.touchNets(x, c)
}

// retract takes back what admit did.
func (b *bundle) retract(x *Index, c *contribution) {
	if !b.stale {
		b.contributeAll(x, c, -1)
	}
	for _, l := range c.lookups {
		if b.reasons[l]--; b.reasons[l] > 0 {
			continue
		}
		delete(b.reasons, l)
		b.drop(x, l)
	}
	for l := range c.netLookups {
		if b.netReasons[l]--; b.netReasons[l] == 0 {
			delete(b.netReasons, l)
		}
	}
	b.touchNets(x, c)
}

func (b *bundle) contributeAll(x *Index, c *contribution, n int32) {
	for _, e := range c.static {
		b.sets[e.lookup].add(x, e.key, n)
	}
	for _, u := range c.uses {
		u.contributeAll(x, n)
	}
}

func (b *bundle) touchNets(x *Index, c *contribution) {
	if len(c.nets) > 0 {
		b.staleNets = true
		x.unsettled[b] = struct{}{}
	}
}

func (b *bundle) drop(x *Index, l lookup) {
	if s := b.sets[l]; s != nil {
		x.dropSet(s)
		delete(b.sets, l)
	}
}

// netLookups are those for the blocks, while there are few guards; one is there as often
// as there are blocks of its family.
func (c *contribution) netLookups(yield func(lookup) bool) {
	for _, t := range c.nets {
		for _, family := range []uint8{4, 6} {
			if slices.ContainsFunc(t.spans, func(s span) bool { return familyOf(s.from) == family }) &&
				!yield(lookup{kindNet, family, t.port.guard()}) {
				return
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
	if !c.withheld {
		b.retract(x, c)
	}
	for _, u := range c.uses {
		delete(u.selector.uses, u)
		x.forgetSelector(u.selector)
	}
	for _, t := range c.nets {
		if b.guards[t.port.guard()]--; b.guards[t.port.guard()] == 0 {
			delete(b.guards, t.port.guard())
		}
	}
	b.touchNets(x, c)
	c.close(x)
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
		c.close(x)
	}
	for _, s := range b.sets {
		x.dropSet(s)
	}
	delete(x.bundles, b.key)
	delete(x.unsettled, b)
}

// steps are the bundle's lookups, in an order of their own: the cheap ones first.
func (b *bundle) steps() []step {
	var lookups []lookup
	for l := range b.reasons {
		lookups = append(lookups, l)
	}
	for l := range b.netReasons {
		if !b.boxed(l) {
			lookups = append(lookups, l)
		}
	}
	for l := range b.sets {
		if l.kind == kindNetPort {
			lookups = append(lookups, l)
		}
	}
	slices.SortFunc(lookups, lookup.compare)
	out := make([]step, len(lookups))
	for i, l := range lookups {
		out[i] = step{lookup: l, effect: b.effect, counter: b.prefix + "-" + l.String(), bundle: b}
		if set := b.sets[l]; set != nil {
			out[i].set = set.Name
		} else if l.kind == kindNet {
			out[i].set = out[i].counter // until settle makes it
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
