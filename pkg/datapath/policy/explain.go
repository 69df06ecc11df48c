package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// Direction is a pod's side of a connection, in the words of the API.
type Direction string

const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// A Question is what a pod's policies say about one direction of a connection. The
// pod is one that has Links in the Index.
type Question struct {
	Namespace, Name, UID string
	Direction            Direction
	// ToNode: the pod sends to its own node, where only ClusterNetworkPolicies judge.
	ToNode bool
	// Peer is the other end's address at the forward hook.
	Peer     netip.Addr
	Protocol uint8
	Port     uint16 // of the destination; 0 for protocols without ports
}

// A RuleRef names a rule of a policy.
type RuleRef struct {
	Policy PolicyRef `json:"policy"`
	// Tier is Admin or Baseline; empty for a NetworkPolicy.
	Tier string `json:"tier,omitempty"`
	// Rule is the rule's field in the policy: "spec.ingress[0]".
	Rule string `json:"rule"`
	// Action is Accept, Deny or Pass. Rules of NetworkPolicies accept.
	Action string `json:"action"`
}

func (r RuleRef) String() string { return fmt.Sprintf("%v %s", r.Policy, r.Rule) }

// List names policies or rules in words, the first few if there are many.
func List[T fmt.Stringer](all []T) string {
	const most = 8
	var out []string
	for _, one := range all[:min(most, len(all))] {
		out = append(out, one.String())
	}
	if more := len(all) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(out, ", "), more)
	}
	return strings.Join(out, ", ")
}

// A Verdict is the answer to a [Question].
type Verdict struct {
	Allowed bool `json:"allowed"`
	// By are the rules that decide: one of a ClusterNetworkPolicy, or all of
	// NetworkPolicies that allow it. Without one, the default decides: what is
	// isolated is denied, all else is allowed.
	By []RuleRef `json:"by,omitempty"`
	// Passed is the rule of the Admin tier that left the decision to the next tier.
	Passed *RuleRef `json:"passed,omitempty"`
	// Isolating are the NetworkPolicies that select the pod in this direction.
	Isolating []PolicyRef `json:"isolating,omitempty"`
	// Withheld are rules that would allow it, of NetworkPolicies that are over their
	// namespace's budget.
	Withheld []RuleRef `json:"withheld,omitempty"`
}

// Reason is the verdict in a few words.
func (v Verdict) Reason() string {
	var out []string
	switch {
	case len(v.By) > 0:
		verb := "allowed by "
		if !v.Allowed {
			verb = "denied by "
		} else if len(v.By) > 1 {
			verb = "allowed by each of "
		}
		out = append(out, verb+List(v.By))
	case !v.Allowed:
		out = append(out, "denied because no rule of the policies that select the pod allows it: "+List(v.Isolating))
		if len(v.Withheld) > 0 {
			out = append(out, fmt.Sprintf("and %s, which would, is over its namespace's budget", List(v.Withheld)))
		}
	case len(v.Isolating) == 0:
		out = append(out, "allowed because no policy decides about it")
	}
	if v.Passed != nil {
		out = append(out, fmt.Sprintf("after %v passed it on", v.Passed))
	}
	return strings.Join(out, ", ")
}

// Explain answers questions from the policies themselves, not from the [Ruleset] that
// they were compiled to; a test holds one against the other. A pod that the Index does
// not know, or that has no Links, has no policies. It takes a look at all pods,
// whatever the number of questions.
func (x *Index) Explain(questions ...Question) []Verdict {
	holders := map[netip.Addr][]*pod{}
	for _, q := range questions {
		holders[q.Peer] = nil
	}
	for _, p := range x.pods {
		for _, a := range p.Addrs {
			if _, asked := holders[a]; asked {
				holders[a] = append(holders[a], p)
			}
		}
	}
	out := make([]Verdict, len(questions))
	for i, q := range questions {
		p := x.pods[podKey{q.Namespace, q.Name, q.UID}]
		if p == nil {
			out[i].Allowed = true
			continue
		}
		out[i] = p.explain(q, holders[q.Peer])
	}
	return out
}

// Holders are the names of the pods, NAMESPACE/NAME, that hold each of the addresses.
func (x *Index) Holders(addrs ...netip.Addr) map[netip.Addr][]string {
	out := map[netip.Addr][]string{}
	for _, a := range addrs {
		out[a] = nil
	}
	for _, p := range x.pods {
		if p.Namespace == nodesNamespace {
			continue
		}
		for _, a := range p.Addrs {
			if _, asked := out[a]; asked {
				out[a] = append(out[a], p.Namespace+"/"+p.Name)
			}
		}
	}
	for _, names := range out {
		slices.Sort(names)
	}
	return out
}

// groupsOf are the groups that decide about a pod's direction, in their order.
func (p *pod) groupsOf(d direction, toNode bool) []*group {
	var groups []*group
	for g := range p.groups {
		if g.dir == d && (!toNode || g.toNode) {
			groups = append(groups, g)
		}
	}
	slices.SortFunc(groups, func(a, b *group) int {
		if c := a.order.compare(b.order); c != 0 {
			return c
		}
		return strings.Compare(a.key, b.key)
	})
	return groups
}

func (p *pod) explain(q Question, holders []*pod) (v Verdict) {
	d := ingress
	if q.Direction == Egress {
		d = egress
	}
	groups := p.groupsOf(d, q.ToNode)
	// byTier asks the rules of one tier of ClusterNetworkPolicies in their order.
	byTier := func(t tier) (RuleRef, effect, bool) {
		for _, g := range groups {
			if g.order.tier != t {
				continue
			}
			for ref, m := range g.members {
				for _, r := range m.rules {
					if p.matches(r, d, q, holders) {
						return g.ruleRef(ref, 0), g.action, true
					}
				}
			}
		}
		return RuleRef{}, 0, false
	}
	if by, does, ok := byTier(admin); ok {
		if does != passes {
			return Verdict{Allowed: does == allows, By: []RuleRef{by}}
		}
		v.Passed = &by
	}
	for _, g := range groups {
		if g.order.tier != namespaced {
			continue
		}
		for ref, m := range g.members {
			v.Isolating = append(v.Isolating, ref)
			for i, r := range m.rules {
				switch {
				case !p.matches(r, d, q, holders):
				case m.withheld:
					v.Withheld = append(v.Withheld, g.ruleRef(ref, i))
				default:
					v.By = append(v.By, g.ruleRef(ref, i))
				}
			}
		}
	}
	slices.SortFunc(v.Isolating, PolicyRef.compare)
	for _, rules := range [][]RuleRef{v.By, v.Withheld} {
		slices.SortFunc(rules, func(a, b RuleRef) int {
			if c := a.Policy.compare(b.Policy); c != 0 {
				return c
			}
			return ruleIndex(a.Rule) - ruleIndex(b.Rule)
		})
	}
	if len(v.Isolating) > 0 {
		if v.Allowed = len(v.By) > 0; v.Allowed {
			v.Withheld = nil
		}
		return v
	}
	v.Allowed = true
	if by, does, ok := byTier(baseline); ok {
		v.By = []RuleRef{by}
		v.Allowed = does != denies
	}
	return v
}

func (r PolicyRef) compare(o PolicyRef) int {
	return slices.Compare([]string{r.Namespace, r.Name}, []string{o.Namespace, o.Name})
}

func ruleIndex(field string) (i int) {
	fmt.Sscanf(field[strings.IndexByte(field, '[')+1:], "%d", &i)
	return i
}

// ruleRef names the rule with an index in a member's rules.
func (g *group) ruleRef(ref PolicyRef, i int) RuleRef {
	out := RuleRef{Policy: ref, Action: g.action.String()}
	if g.order.tier != namespaced {
		out.Tier, i = g.order.tier.String(), g.order.index
	}
	out.Rule = fmt.Sprintf("spec.%s[%d]", g.dir.field(), i)
	return out
}

func (t tier) String() string {
	return [...]string{admin: "Admin", namespaced: "NetworkPolicy", baseline: "Baseline"}[t]
}

func (e effect) String() string {
	return [...]string{allows: "Accept", denies: "Deny", passes: "Pass"}[e]
}

// matches says whether a rule of the pod's is about what a question asks for. holders
// are the pods and nodes that hold the peer's address.
func (p *pod) matches(r rule, d direction, q Question, holders []*pod) bool {
	for _, pe := range r.peers {
		for _, po := range r.ports {
			if p.matchesOne(pe, po, d, q, holders) {
				return true
			}
		}
	}
	return false
}

func (p *pod) matchesOne(pe peer, po port, d direction, q Question, holders []*pod) bool {
	within := len(pe.blocks) == 0 || anyContains(pe.blocks, q.Peer)
	named := func(of *pod) bool {
		return slices.ContainsFunc(of.Ports, func(n NamedPort) bool {
			return po.isNamed(n) && po.proto == q.Protocol && n.Number == q.Port
		})
	}
	switch {
	case po.name != "" && d == egress: // only pods have named ports
		pods := pe.pods
		if pods == nil {
			pods = everyPod
		}
		return within && slices.ContainsFunc(holders, func(h *pod) bool { return pods.selects(h.class) && named(h) })
	case po.name != "":
		if !named(p) {
			return false
		}
	case !po.isAll() && (po.proto != q.Protocol || q.Port < po.lo || q.Port > po.hi):
		return false
	}
	if pe.pods != nil {
		return within && slices.ContainsFunc(holders, func(h *pod) bool { return pe.pods.selects(h.class) })
	}
	return pe.all || len(pe.blocks) > 0 && within
}

// A Side is what decides about a pod in one direction.
type Side struct {
	Direction Direction `json:"direction"`
	// Isolating are the NetworkPolicies that select the pod: what none of their rules
	// allows is denied. Without one, Rules of the Baseline tier decide, and all else
	// is allowed.
	Isolating []PolicyRef `json:"isolating,omitempty"`
	// Rules are in the order of their decision. Those of the Baseline tier come last,
	// and decide nothing about a pod that is isolated.
	Rules []Rule `json:"rules,omitempty"`
}

// A Rule is one of a policy that selects the pod, as it is understood now.
type Rule struct {
	RuleRef
	Peers []RulePeers `json:"peers"`
	Ports []string    `json:"ports"`
}

// RulePeers are one of a rule's peers, and whom it is at present.
type RulePeers struct {
	// Text is the peer as the policy has it.
	Text string `json:"text"`
	// Addresses are those of the pods or nodes that it selects, at most as many as
	// were asked for, of Total. A peer that selects by address has none.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Total     int          `json:"total,omitempty"`
	// Selects says that the peer is pods or nodes.
	Selects bool `json:"selects,omitempty"`
}

// Sides are the pod's two, with at most so many addresses of each peer. A pod that the
// Index does not know, or that has no Links, has none.
func (x *Index) Sides(namespace, name, uid string, maxAddrs int) []Side {
	p := x.pods[podKey{namespace, name, uid}]
	if p == nil || len(p.Links) == 0 {
		return nil
	}
	var out []Side
	for _, d := range []direction{ingress, egress} {
		s := Side{Direction: d.field()}
		for _, g := range p.groupsOf(d, false) {
			refs := make([]PolicyRef, 0, len(g.members))
			for ref := range g.members {
				refs = append(refs, ref)
			}
			slices.SortFunc(refs, PolicyRef.compare)
			for _, ref := range refs {
				if g.order.tier == namespaced {
					s.Isolating = append(s.Isolating, ref)
				}
				for i, r := range g.members[ref].rules {
					s.Rules = append(s.Rules, x.describe(p, g, g.ruleRef(ref, i), r, maxAddrs))
				}
			}
		}
		slices.SortFunc(s.Isolating, PolicyRef.compare)
		out = append(out, s)
	}
	return out
}

// PeerSelector is the pods that a rule's peer may be, of one namespace or of all.
type PeerSelector struct {
	Namespace string // empty: those of all that the peer selects
	Pods      labels.Selector
}

// PeerSelectors are those of all rules about a pod: who knows the pods that they select
// knows the Sides. Each is there once.
func (x *Index) PeerSelectors(namespace, name, uid string) (out []PeerSelector) {
	p := x.pods[podKey{namespace, name, uid}]
	if p == nil {
		return nil
	}
	seen := map[string]bool{}
	for g := range p.groups {
		for _, m := range g.members {
			for _, r := range m.rules {
				for _, pe := range r.peers {
					if pe.pods == nil || pe.pods.namespace == nodesNamespace {
						continue
					}
					one := PeerSelector{pe.pods.namespace, pe.pods.pods}
					if key := one.Namespace + "|" + one.Pods.String(); !seen[key] {
						seen[key] = true
						out = append(out, one)
					}
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b PeerSelector) int {
		return slices.Compare([]string{a.Namespace, a.Pods.String()}, []string{b.Namespace, b.Pods.String()})
	})
	return out
}

func (x *Index) describe(p *pod, g *group, ref RuleRef, r rule, maxAddrs int) Rule {
	out := Rule{RuleRef: ref, Peers: []RulePeers{}, Ports: []string{}}
	for _, pe := range r.peers {
		one := RulePeers{Text: pe.String()}
		if pe.pods != nil {
			one.Selects = true
			var addrs []netip.Addr
			for _, q := range x.pods {
				if pe.pods.selects(q.class) {
					for _, a := range q.Addrs {
						if len(pe.blocks) == 0 || anyContains(pe.blocks, a) {
							addrs = append(addrs, a)
						}
					}
				}
			}
			slices.SortFunc(addrs, netip.Addr.Compare)
			addrs = slices.Compact(addrs)
			one.Total = len(addrs)
			one.Addresses = addrs[:min(maxAddrs, len(addrs))]
		}
		out.Peers = append(out.Peers, one)
	}
	for _, po := range r.ports {
		text := po.String()
		if po.name != "" && g.dir == ingress {
			var numbers []string
			for _, n := range p.Ports {
				if po.isNamed(n) {
					numbers = append(numbers, fmt.Sprint(n.Number))
				}
			}
			text += " (" + strings.Join(numbers, ", ") + ")"
			if len(numbers) == 0 {
				text = po.String() + " (the pod has no such port)"
			}
		}
		out.Ports = append(out.Ports, text)
	}
	return out
}

func (p peer) String() string {
	var of []string
	if p.pods != nil {
		of = append(of, p.pods.String())
	}
	for _, b := range p.blocks {
		of = append(of, b.String())
	}
	if p.all {
		of = append(of, "everybody")
	}
	return strings.Join(of, ", ")
}

func (s *podSelector) String() string {
	what := func(of string, s labels.Selector) string {
		if s.Empty() {
			return "all " + of
		}
		return of + " " + s.String()
	}
	switch {
	case s.namespace == nodesNamespace:
		return what("nodes", s.pods)
	case s.namespaces == nil:
		return what("pods", s.pods) + " in namespace " + s.namespace
	}
	return what("pods", s.pods) + " in " + what("namespaces", s.namespaces)
}

func (s span) String() string {
	for bits := range s.from.BitLen() + 1 {
		if p := netip.PrefixFrom(s.from, bits); prefixSpan(p) == s {
			return p.String()
		}
	}
	return s.from.String() + "-" + s.to.String()
}

func (p port) String() string {
	name := map[uint8]string{tcp: "TCP", udp: "UDP", sctp: "SCTP"}[p.proto]
	switch {
	case p.isAll():
		return "every protocol"
	case p.name != "":
		return name + " " + p.name
	case p.lo == 0 && p.hi == maxPort:
		return name
	case p.lo == p.hi:
		return fmt.Sprintf("%s %d", name, p.lo)
	}
	return fmt.Sprintf("%s %d-%d", name, p.lo, p.hi)
}
