package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/policy/policytest"
)

// The rules that a verdict names are those that make it: without them, or with the
// opposite action, the reference decides otherwise.
func TestExplainNamesWhatDecides(t *testing.T) {
	t.Parallel()
	m := maker(t)
	byTier := map[string]int{}
	for range 150 {
		s := newScene(m)
		for range 4 + m.IntN(12) {
			s.addPod(m.IntN(2) == 0)
		}
		for range m.IntN(16) {
			s.addPolicy()
		}
		for range m.IntN(5) {
			s.addClusterPolicy()
		}
		s.fill()
		for range 60 {
			p, _, _ := s.packet()
			if (p.From == nil) == (p.To == nil) {
				continue // one side's verdict is the packet's
			}
			allowed, why := s.explain(p)
			v := why[0]
			if v.Passed != nil {
				byTier["passed"]++
				// A Deny in its place denies.
				if policytest.Allowed(s.with([]policy.RuleRef{*v.Passed}, "Deny"), p) {
					t.Fatalf("%+v was passed by %v, and passes though it denies", p, v.Passed)
				}
			}
			if len(v.By) == 0 {
				// Nothing but the default: without any rule, the same.
				byTier[fmt.Sprint("default ", allowed)]++
				if !allowed && len(v.Isolating) == 0 {
					t.Fatalf("%+v is denied by nothing: %+v", p, v)
				}
				continue
			}
			tier := v.By[0].Tier
			byTier[fmt.Sprint(tier, " ", allowed)]++
			action := policyv1beta1.ClusterNetworkPolicyRuleActionDeny
			if !allowed {
				action = policyv1beta1.ClusterNetworkPolicyRuleActionAccept
			}
			if policytest.Allowed(s.with(v.By, action), p) == allowed {
				t.Fatalf("%+v is decided by %v, and the same otherwise", p, v.By)
			}
		}
	}
	t.Log(byTier)
	for _, kind := range []string{"passed", "default true", "default false", " true", "Admin true", "Admin false", "Baseline true", "Baseline false"} {
		if byTier[kind] == 0 {
			t.Errorf("no verdict %q", kind)
		}
	}
}

// with is the world with another action of the rules. A rule of a NetworkPolicy, which
// has none, matches nothing.
func (s *scene) with(rules []policy.RuleRef, action policyv1beta1.ClusterNetworkPolicyRuleAction) *policytest.World {
	w := s.World
	w.NetworkPolicies, w.ClusterNetworkPolicies = nil, nil
	index := func(r policy.RuleRef) (i int) {
		fmt.Sscanf(r.Rule[strings.IndexByte(r.Rule, '['):], "[%d]", &i)
		return i
	}
	nobody := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"no": "body"}}}}
	for _, np := range s.NetworkPolicies {
		np = np.DeepCopy()
		for _, r := range rules {
			switch {
			case r.Policy != policy.PolicyRef{Namespace: np.Namespace, Name: np.Name}:
			case strings.HasPrefix(r.Rule, "spec.ingress"):
				np.Spec.Ingress[index(r)].From = nobody
			default:
				np.Spec.PolicyTypes = policyTypes(np) // which an empty list of rules would change
				np.Spec.Egress[index(r)].To = nobody
			}
		}
		w.NetworkPolicies = append(w.NetworkPolicies, np)
	}
	for _, cnp := range s.ClusterNetworkPolicies {
		cnp = cnp.DeepCopy()
		for _, r := range rules {
			switch {
			case r.Policy != policy.PolicyRef{Name: cnp.Name}:
			case strings.HasPrefix(r.Rule, "spec.ingress"):
				cnp.Spec.Ingress[index(r)].Action = action
			default:
				cnp.Spec.Egress[index(r)].Action = action
			}
		}
		w.ClusterNetworkPolicies = append(w.ClusterNetworkPolicies, cnp)
	}
	return &w
}

func policyTypes(np *networkingv1.NetworkPolicy) []networkingv1.PolicyType {
	if len(np.Spec.PolicyTypes) > 0 {
		return np.Spec.PolicyTypes
	}
	return []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
}

// explained is an Index with the pods web and db of namespace shop on this node.
func explained(t *testing.T, policies ...string) *policy.Index {
	t.Helper()
	x := policy.NewIndex()
	x.SetNamespace(policy.Namespace{Name: "shop", Labels: map[string]string{"team": "a"}})
	x.SetNamespace(policy.Namespace{Name: "lab", Labels: map[string]string{"team": "b"}})
	for i, p := range []policy.Pod{
		{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}, Links: []string{"flock1"}, Ports: []policy.NamedPort{{Name: "http", Protocol: "TCP", Number: 8080}}},
		{Namespace: "shop", Name: "db", Labels: map[string]string{"app": "db"}, Ports: []policy.NamedPort{{Name: "sql", Protocol: "TCP", Number: 5432}}},
		{Namespace: "lab", Name: "probe", Labels: map[string]string{"app": "probe"}},
	} {
		p.UID = p.Name
		p.Addrs = policytest.PodAddrs(i)
		x.SetPod(p)
	}
	x.SetNode(policy.Node{Name: "node1", Labels: map[string]string{"zone": "a"}, Addrs: policytest.Outside[0][:]})
	for _, text := range policies {
		if strings.Contains(text, "tier:") {
			cnp := &policyv1beta1.ClusterNetworkPolicy{}
			if err := yaml.UnmarshalStrict([]byte(text), cnp); err != nil {
				t.Fatal(err)
			}
			x.SetClusterNetworkPolicy(cnp)
			continue
		}
		np := &networkingv1.NetworkPolicy{}
		if err := yaml.UnmarshalStrict([]byte(text), np); err != nil {
			t.Fatal(err)
		}
		x.SetNetworkPolicy(np)
	}
	return x
}

const (
	denyAll    = `{metadata: {namespace: shop, name: deny}, spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}`
	allowProbe = `{metadata: {namespace: shop, name: allow}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [
		{ports: [{port: 22}]},
		{from: [{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: probe}}}, {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/25]}}], ports: [{port: http}, {protocol: UDP, port: 53, endPort: 54}]}]}}`
	adminRules = `{metadata: {name: rules}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [
		{action: Pass, from: [{namespaces: {matchLabels: {team: b}}}], protocols: [{tcp: {destinationPort: {number: 8080}}}]},
		{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: probe}}}}], protocols: [{tcp: {destinationPort: {number: 23}}}]}],
		egress: [{action: Deny, to: [{nodes: {}}]}, {action: Accept, to: [{networks: [203.0.113.0/24]}]}]}}`
	baselineRules = `{metadata: {name: default}, spec: {tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}}`
)

func TestExplainInWords(t *testing.T) {
	t.Parallel()
	probe := policytest.PodAddrs(2)[0]
	for name, c := range map[string]struct {
		policies []string
		ask      policy.Question
		want     string
	}{
		"none":          {nil, policy.Question{Peer: probe, Protocol: 6, Port: 80}, "allowed because no policy decides about it"},
		"other pod":     {[]string{denyAll}, policy.Question{Name: "nobody", Peer: probe, Protocol: 6, Port: 80}, "allowed because no policy decides about it"},
		"isolated":      {[]string{denyAll, allowProbe}, policy.Question{Peer: probe, Protocol: 6, Port: 80}, "denied because no rule of the policies that select the pod allows it: NetworkPolicy shop/allow, NetworkPolicy shop/deny"},
		"rule":          {[]string{denyAll, allowProbe}, policy.Question{Peer: probe, Protocol: 6, Port: 8080}, "allowed by NetworkPolicy shop/allow spec.ingress[1]"},
		"rules":         {[]string{strings.ReplaceAll(allowProbe, "22", "8080")}, policy.Question{Peer: probe, Protocol: 6, Port: 8080}, "allowed by each of NetworkPolicy shop/allow spec.ingress[0], NetworkPolicy shop/allow spec.ingress[1]"},
		"block":         {[]string{allowProbe}, policy.Question{Peer: netip.MustParseAddr("192.0.2.200"), Protocol: 17, Port: 54}, "allowed by NetworkPolicy shop/allow spec.ingress[1]"},
		"except":        {[]string{allowProbe}, policy.Question{Peer: netip.MustParseAddr("192.0.2.20"), Protocol: 17, Port: 54}, "denied because no rule of the policies that select the pod allows it: NetworkPolicy shop/allow"},
		"admin":         {[]string{allowProbe, adminRules}, policy.Question{Peer: probe, Protocol: 6, Port: 23}, "denied by ClusterNetworkPolicy rules spec.ingress[1]"},
		"pass":          {[]string{allowProbe, adminRules}, policy.Question{Peer: probe, Protocol: 6, Port: 8080}, "allowed by NetworkPolicy shop/allow spec.ingress[1], after ClusterNetworkPolicy rules spec.ingress[0] passed it on"},
		"baseline":      {[]string{adminRules, baselineRules}, policy.Question{Peer: probe, Protocol: 6, Port: 8080}, "denied by ClusterNetworkPolicy default spec.ingress[0], after ClusterNetworkPolicy rules spec.ingress[0] passed it on"},
		"egress":        {[]string{denyAll, adminRules}, policy.Question{Direction: policy.Egress, Peer: netip.MustParseAddr("203.0.113.9"), Protocol: 6, Port: 80}, "allowed by ClusterNetworkPolicy rules spec.egress[1]"},
		"to node":       {[]string{denyAll, adminRules}, policy.Question{Direction: policy.Egress, ToNode: true, Peer: policytest.Outside[0][0], Protocol: 6, Port: 80}, "denied by ClusterNetworkPolicy rules spec.egress[0]"},
		"other to node": {[]string{denyAll, adminRules}, policy.Question{Direction: policy.Egress, ToNode: true, Peer: probe, Protocol: 6, Port: 80}, "allowed because no policy decides about it"},
	} {
		q := c.ask
		q.Namespace = "shop"
		if q.Name == "" {
			q.Name = "web"
		}
		q.UID = q.Name
		if q.Direction == "" {
			q.Direction = policy.Ingress
		}
		if got := explained(t, c.policies...).Explain(q)[0].Reason(); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestSides(t *testing.T) {
	t.Parallel()
	x := explained(t, denyAll, allowProbe, adminRules, baselineRules)
	if got := x.Sides("lab", "probe", "probe", 9); got != nil {
		t.Errorf("a pod of another node has %v", got)
	}
	got, err := yaml.Marshal(x.Sides("shop", "web", "web", 1))
	if err != nil {
		t.Fatal(err)
	}
	want := `- direction: ingress
  isolating:
  - name: allow
    namespace: shop
  - name: deny
    namespace: shop
  rules:
  - action: Pass
    peers:
    - addresses:
      - 10.1.0.3
      selects: true
      text: all pods in namespaces team=b
      total: 2
    policy:
      name: rules
    ports:
    - TCP 8080
    rule: spec.ingress[0]
    tier: Admin
  - action: Deny
    peers:
    - addresses:
      - 10.1.0.3
      selects: true
      text: pods app=probe in all namespaces
      total: 2
    policy:
      name: rules
    ports:
    - TCP 23
    rule: spec.ingress[1]
    tier: Admin
  - action: Accept
    peers:
    - text: everybody
    policy:
      name: allow
      namespace: shop
    ports:
    - TCP 22
    rule: spec.ingress[0]
  - action: Accept
    peers:
    - addresses:
      - 10.1.0.3
      selects: true
      text: pods app=probe in namespaces team=b
      total: 2
    - text: 192.0.2.128/25
    policy:
      name: allow
      namespace: shop
    ports:
    - TCP http (8080)
    - UDP 53-54
    rule: spec.ingress[1]
  - action: Deny
    peers:
    - addresses:
      - 10.1.0.1
      selects: true
      text: all pods in all namespaces
      total: 6
    policy:
      name: default
    ports:
    - every protocol
    rule: spec.ingress[0]
    tier: Baseline
- direction: egress
  isolating:
  - name: deny
    namespace: shop
  rules:
  - action: Deny
    peers:
    - addresses:
      - 10.9.0.9
      selects: true
      text: all nodes
      total: 2
    policy:
      name: rules
    ports:
    - every protocol
    rule: spec.egress[0]
    tier: Admin
  - action: Accept
    peers:
    - text: 203.0.113.0/24
    policy:
      name: rules
    ports:
    - every protocol
    rule: spec.egress[1]
    tier: Admin
`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Who holds an address is asked of all pods, but not of nodes.
func TestHolders(t *testing.T) {
	t.Parallel()
	nowhere, node, probe := netip.MustParseAddr("203.0.113.1"), policytest.Outside[0][0], policytest.PodAddrs(2)[1]
	got := explained(t).Holders(nowhere, node, probe)
	if fmt.Sprint(got[nowhere], got[node], got[probe]) != "[] [] [lab/probe]" {
		t.Errorf("holders %v", got)
	}
}
