package policy

import (
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// A class is the pods of a namespace that have the same labels: to selectors they are
// all the same.
type class struct {
	namespace *namespace
	key       string
	labels    labels.Set
	ports     []NamedPort // of the pod that was set last
	pods      map[*pod]struct{}
	selectors map[*selector]struct{} // those that select it
}

// A namespace may have pods and selectors before the Namespace itself is known.
type namespace struct {
	name      string
	known     bool
	labels    labels.Set
	classes   map[string]*class
	selectors map[*selector]struct{} // those of this namespace alone
	reach     selectorSet            // those, and the others that can select pods here
	local     map[*pod]struct{}
	groups    map[*group]struct{} // those of this namespace alone
}

// A selector is what some rules' peers have in common: which pods they are.
type selector struct {
	podSelector
	id      string
	classes map[*class]struct{}
	uses    map[*use]struct{}
	needs   []labelValue // a pod needs one of these to be selected; none: it may need nothing
}

type labelValue struct{ key, value string }

// needed finds labels of which a pod must have one to be selected: those of a
// requirement, the one with the fewest.
func needed(s labels.Selector) (least []labelValue) {
	requirements, _ := s.Requirements()
	for _, r := range requirements {
		var values []labelValue
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			for v := range r.Values() {
				values = append(values, labelValue{r.Key(), v})
			}
		}
		if len(values) > 0 && (least == nil || len(values) < len(least)) {
			least = values
		}
	}
	return least
}

// A selectorSet finds the selectors that may select a pod without asking all of them:
// a cluster has many thousands.
type selectorSet struct {
	byLabel map[labelValue]map[*selector]struct{}
	others  map[*selector]struct{} // those that need no label
}

func (t *selectorSet) add(s *selector) {
	if len(s.needs) == 0 {
		if t.others == nil {
			t.others = map[*selector]struct{}{}
		}
		t.others[s] = struct{}{}
	}
	for _, l := range s.needs {
		if t.byLabel == nil {
			t.byLabel = map[labelValue]map[*selector]struct{}{}
		}
		if t.byLabel[l] == nil {
			t.byLabel[l] = map[*selector]struct{}{}
		}
		t.byLabel[l][s] = struct{}{}
	}
}

func (t *selectorSet) delete(s *selector) {
	delete(t.others, s)
	for _, l := range s.needs {
		delete(t.byLabel[l], s)
		if len(t.byLabel[l]) == 0 {
			delete(t.byLabel, l)
		}
	}
}

// selecting calls f with each selector that selects pods with these labels.
func (t *selectorSet) selecting(l labels.Set, f func(*selector)) {
	try := func(among map[*selector]struct{}) {
		for s := range among {
			if s.pods.Matches(l) {
				f(s)
			}
		}
	}
	try(t.others)
	for key, value := range l {
		try(t.byLabel[labelValue{key, value}])
	}
}

func (x *Index) namespace(name string) *namespace {
	ns := x.namespaces[name]
	if ns == nil {
		ns = &namespace{
			name: name, classes: map[string]*class{}, selectors: map[*selector]struct{}{},
			local: map[*pod]struct{}{}, groups: map[*group]struct{}{},
		}
		x.namespaces[name] = ns
	}
	return ns
}

// forgetNamespace drops what nothing refers to.
func (x *Index) forgetNamespace(ns *namespace) {
	if !ns.known && len(ns.classes)+len(ns.selectors)+len(ns.groups) == 0 {
		delete(x.namespaces, ns.name)
	}
}

// inNamespace says whether pods of a namespace can be selected.
func (s *podSelector) inNamespace(ns *namespace) bool {
	if s.namespaces == nil {
		return s.namespace == ns.name
	}
	return ns.known && s.namespaces.Matches(ns.labels)
}

func (s *podSelector) selects(c *class) bool {
	return s.inNamespace(c.namespace) && s.pods.Matches(c.labels)
}

func labelsKey(l map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(l)) {
		b.WriteString(k)
		b.WriteByte('=')
		b.WriteString(l[k])
		b.WriteByte(',')
	}
	return b.String()
}

func (x *Index) class(ns *namespace, l map[string]string) *class {
	key := labelsKey(l)
	c := ns.classes[key]
	if c != nil {
		return c
	}
	c = &class{namespace: ns, key: key, labels: l, pods: map[*pod]struct{}{}, selectors: map[*selector]struct{}{}}
	ns.classes[key] = c
	ns.reach.selecting(l, func(s *selector) { s.link(c) })
	return c
}

func (s *selector) link(c *class) {
	s.classes[c] = struct{}{}
	c.selectors[s] = struct{}{}
}

func (s *selector) unlink(c *class) {
	delete(s.classes, c)
	delete(c.selectors, s)
}

// join adds a pod to its class and to whatever selects it.
func (x *Index) join(p *pod) {
	p.class.pods[p] = struct{}{}
	x.contribute(p, 1)
}

func (x *Index) leave(p *pod) {
	x.contribute(p, -1)
	delete(p.class.pods, p)
	x.forgetClass(p.class)
}

// forgetClass drops a class that has no pods.
func (x *Index) forgetClass(c *class) {
	if len(c.pods) > 0 {
		return
	}
	for s := range c.selectors {
		s.unlink(c)
	}
	delete(c.namespace.classes, c.key)
	x.forgetNamespace(c.namespace)
}

func (x *Index) contribute(p *pod, n int32) {
	for s := range p.class.selectors {
		for u := range s.uses {
			u.contribute(x, p, n)
		}
	}
}

// selector returns the one that selects what s does.
func (x *Index) selector(s *podSelector) *selector {
	id := s.key()
	if known := x.selectors[id]; known != nil {
		return known
	}
	out := &selector{podSelector: *s, id: id, classes: map[*class]struct{}{}, uses: map[*use]struct{}{}, needs: needed(s.pods)}
	x.selectors[id] = out
	link := func(ns *namespace) {
		ns.reach.add(out)
		for _, c := range ns.classes {
			if out.pods.Matches(c.labels) {
				out.link(c)
			}
		}
	}
	if s.namespaces == nil {
		ns := x.namespace(s.namespace)
		ns.selectors[out] = struct{}{}
		link(ns)
		return out
	}
	x.clusterSelectors[out] = struct{}{}
	for _, ns := range x.namespaces {
		if out.inNamespace(ns) {
			link(ns)
		}
	}
	return out
}

// forgetSelector drops a selector that has no use any more.
func (x *Index) forgetSelector(s *selector) {
	if len(s.uses) > 0 {
		return
	}
	for c := range s.classes {
		s.unlink(c)
	}
	delete(x.selectors, s.id)
	if s.namespaces != nil {
		delete(x.clusterSelectors, s)
		for _, ns := range x.namespaces {
			ns.reach.delete(s)
		}
	} else if ns := x.namespaces[s.namespace]; ns != nil {
		delete(ns.selectors, s)
		ns.reach.delete(s)
		x.forgetNamespace(ns)
	}
}

// SetNamespace adds a namespace, or changes its labels.
func (x *Index) SetNamespace(n Namespace) { x.relabel(n.Name, true, n.Labels) }

// DeleteNamespace removes a namespace.
func (x *Index) DeleteNamespace(name string) { x.relabel(name, false, nil) }

func (x *Index) relabel(name string, known bool, l map[string]string) {
	ns := x.namespace(name)
	if ns.known == known && maps.Equal(ns.labels, l) {
		x.forgetNamespace(ns)
		return
	}
	before := map[*selector]bool{}
	for s := range x.clusterSelectors {
		before[s] = s.inNamespace(ns)
	}
	ns.known, ns.labels = known, l
	for s, was := range before {
		is := s.inNamespace(ns)
		if is == was {
			continue
		}
		if is {
			ns.reach.add(s)
		} else {
			ns.reach.delete(s)
		}
		for _, c := range ns.classes {
			if !s.pods.Matches(c.labels) {
				continue
			}
			n := int32(1)
			if is {
				s.link(c)
			} else {
				s.unlink(c)
				n = -1
			}
			for u := range s.uses {
				for p := range c.pods {
					u.contribute(x, p, n)
				}
			}
		}
	}
	for p := range ns.local {
		for g := range x.clusterGroups {
			x.reselect(g, p)
		}
	}
	x.forgetNamespace(ns)
}
