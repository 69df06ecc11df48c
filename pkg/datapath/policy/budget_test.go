package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/policy/policytest"
)

// portsPolicy lets all pods of namespace many reach the pods with label app=web of a
// namespace on so many ports.
func portsPolicy(namespace, name string, age time.Duration, ports int) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age))}}
	np.Spec.PodSelector.MatchLabels = map[string]string{"app": "web"}
	rule := networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"many": "yes"}}}}}
	for i := range ports {
		port := intstr.FromInt32(int32(1000 + i))
		rule.Ports = append(rule.Ports, networkingv1.NetworkPolicyPort{Port: &port})
	}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{rule}
	return np
}

// budgetIndex has a pod of this node in each of two namespaces, and fifty pods of another
// node in namespace many.
func budgetIndex(budget int) *policy.Index {
	x := policy.NewIndex()
	x.SetBudget(budget)
	x.SetNamespace(policy.Namespace{Name: "many", Labels: map[string]string{"many": "yes"}})
	for i, ns := range []string{"shop", "bank"} {
		x.SetNamespace(policy.Namespace{Name: ns})
		x.SetPod(policy.Pod{Namespace: ns, Name: "web", UID: ns, Labels: map[string]string{"app": "web"}, Links: []string{fmt.Sprintf("flock%08x", i)}})
	}
	for i := range 50 {
		x.SetPod(manyPod(i))
	}
	return x
}

func manyPod(i int) policy.Pod {
	return policy.Pod{Namespace: "many", Name: fmt.Sprint("pod", i), UID: fmt.Sprint("many", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 3, 0, byte(i)})}}
}

// What is over a namespace's budget allows nothing, and is found; the oldest policies
// come first, and other namespaces are not affected.
func TestBudget(t *testing.T) {
	t.Parallel()
	peer := netip.AddrFrom4([4]byte{10, 3, 0, 7})
	for _, c := range []struct {
		name     string
		budget   int
		policies []*networkingv1.NetworkPolicy
		after    func(x *policy.Index) // a change
		allowed  []string              // NAMESPACE PORT
		denied   []string
		over     []string
	}{
		{"all fit", 100, []*networkingv1.NetworkPolicy{portsPolicy("shop", "a", 0, 1), portsPolicy("bank", "a", 0, 2)}, nil, []string{"shop 1000", "bank 1001"}, []string{"shop 1001", "bank 1002"}, nil},
		{"one is too much", 99, []*networkingv1.NetworkPolicy{portsPolicy("shop", "a", 0, 1), portsPolicy("bank", "a", 0, 2)}, nil, []string{"shop 1000"}, []string{"bank 1000", "bank 1001"}, []string{"bank/a"}},
		{"the oldest come first", 100, []*networkingv1.NetworkPolicy{portsPolicy("shop", "a", 1, 2), portsPolicy("shop", "b", 2, 1), portsPolicy("bank", "a", 0, 1)}, nil, []string{"shop 1000", "bank 1000"}, []string{"shop 1001"}, []string{"shop/a"}},
		{"the smaller one fits", 100, []*networkingv1.NetworkPolicy{portsPolicy("shop", "a", 2, 3), portsPolicy("shop", "b", 1, 1)}, nil, []string{"shop 1000"}, []string{"shop 1001"}, []string{"shop/a"}},
		{"too many pods come", 50, []*networkingv1.NetworkPolicy{portsPolicy("shop", "a", 2, 1)}, func(x *policy.Index) { x.SetPod(manyPod(50)) }, nil, []string{"shop 1000"}, []string{"shop/a"}},
		{"too many pods go", 99, []*networkingv1.NetworkPolicy{portsPolicy("shop", "a", 2, 1), portsPolicy("shop", "b", 1, 2)}, func(x *policy.Index) {
			for i := range 17 {
				x.DeletePod("many", fmt.Sprint("pod", 33+i), fmt.Sprint("many", 33+i))
			}
		}, []string{"shop 1000", "shop 1001"}, nil, nil},
		{"the namespace of the peers comes", 50, []*networkingv1.NetworkPolicy{portsPolicy("shop", "a", 2, 1)}, func(x *policy.Index) {
			x.SetPod(policy.Pod{Namespace: "more", Name: "one", UID: "one", Addrs: []netip.Addr{netip.MustParseAddr("10.4.0.1")}})
			x.SetNamespace(policy.Namespace{Name: "more", Labels: map[string]string{"many": "yes"}})
		}, nil, []string{"shop 1000"}, []string{"shop/a"}},
		{"the policy becomes smaller", 100, []*networkingv1.NetworkPolicy{portsPolicy("shop", "a", 2, 3)}, func(x *policy.Index) { x.SetNetworkPolicy(portsPolicy("shop", "a", 2, 2)) }, []string{"shop 1001"}, []string{"shop 1002"}, nil},
		{"the policy becomes larger", 100, []*networkingv1.NetworkPolicy{portsPolicy("shop", "a", 2, 2)}, func(x *policy.Index) { x.SetNetworkPolicy(portsPolicy("shop", "a", 2, 3)) }, nil, []string{"shop 1000"}, []string{"shop/a"}},
		{"the older one goes", 100, []*networkingv1.NetworkPolicy{portsPolicy("shop", "a", 2, 2), portsPolicy("shop", "b", 1, 1)}, func(x *policy.Index) { x.DeletePolicy(policy.PolicyRef{Namespace: "shop", Name: "a"}) }, []string{"shop 1000"}, []string{"shop 1001"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := budgetIndex(c.budget)
			for _, np := range c.policies {
				x.SetNetworkPolicy(np)
			}
			mirror := policy.NewMirror()
			flush := func() {
				if err := mirror.Apply(x.Flush()); err != nil {
					t.Fatal(err)
				}
				if d := mirror.Diff(x.Ruleset()); d != "" {
					t.Fatal(d)
				}
			}
			flush()
			if c.after != nil {
				c.after(x)
				flush()
			}
			for _, want := range []bool{true, false} {
				probes := c.allowed
				if !want {
					probes = c.denied
				}
				for _, probe := range probes {
					var ns string
					var port uint16
					fmt.Sscan(probe, &ns, &port)
					link := fmt.Sprintf("flock%08x", map[string]int{"shop": 0, "bank": 1}[ns])
					if got := policy.Simulate(x.Ruleset(), "", link, peer, netip.Addr{}, 6, port); got != want {
						t.Errorf("%s is allowed: %v, want %v", probe, got, want)
					}
					v := x.Explain(policy.Question{Namespace: ns, Name: "web", UID: ns, Direction: policy.Ingress, Peer: peer, Protocol: 6, Port: port})[0]
					if v.Allowed != want {
						t.Errorf("%s is explained as %v", probe, v)
					}
					if withheld := strings.Contains(v.Reason(), "over its namespace's budget"); withheld != (len(v.Withheld) > 0) {
						t.Errorf("%s: reason %q of %+v", probe, v.Reason(), v)
					}
				}
			}
			if over := overBudget(x); !slices.Equal(over, c.over) {
				t.Errorf("over budget are %v, want %v", over, c.over)
			}
			if n := elements(x, "shop"); n > c.budget {
				t.Errorf("namespace shop has %d elements, its budget is %d", n, c.budget)
			}
		})
	}
}

func overBudget(x *policy.Index) (out []string) {
	for _, f := range x.Findings() {
		if f.OverBudget {
			out = append(out, f.Policy.Namespace+"/"+f.Policy.Name)
		}
	}
	return out
}

// elements are those of a namespace's sets.
func elements(x *policy.Index, namespace string) (n int) {
	for name, s := range x.Ruleset().Sets {
		if strings.HasPrefix(name, "in-"+namespace+"-") || strings.HasPrefix(name, "out-"+namespace+"-") {
			n += s.Len()
		}
	}
	return n
}

// What is not to be held is never held: not while it is counted, either.
func TestBudgetIsNotExceededMeanwhile(t *testing.T) {
	t.Parallel()
	const budget = 10_000
	x := budgetIndex(budget)
	x.SetNetworkPolicy(portsPolicy("shop", "a", 0, 150)) // 7,500 elements
	x.Flush()
	before := elements(x, "shop")
	most := before
	for i := range 100 { // a hundred pods more, before anything is put into force
		x.SetPod(manyPod(50 + i))
		most = max(most, elements(x, "shop"))
	}
	x.SetNetworkPolicy(portsPolicy("shop", "b", 0, 1000))
	most = max(most, elements(x, "shop"))
	if before != 7500 || most > budget+150 {
		t.Errorf("%d elements at first, want 7500; then %d, want %d at most", before, most, budget)
	}
	x.Flush()
	if n := elements(x, "shop"); n != 0 {
		t.Errorf("%d elements, want none: no policy fits", n)
	}
}

// Under any budget, an Index that followed changes has what Compile makes from nothing,
// no namespace has more than its budget, and the rest is as if the policies that are over
// it had no rules.
func TestBudgetAgainstReference(t *testing.T) {
	t.Parallel()
	m := maker(t)
	over, changes := 0, 0
	for range 12 {
		s := newScene(m)
		budget := 1 + m.IntN(60)
		s.x.SetBudget(budget)
		s.fill()
		mirror := policy.NewMirror()
		for i := range 60 {
			for range 1 + m.IntN(3) {
				s.change()
			}
			if err := mirror.Apply(s.x.Flush()); err != nil {
				t.Fatalf("budget %d, change %d: %v", budget, i, err)
			}
			in := s.Input()
			in.Budget = budget
			want, findings := policy.Compile(in)
			if d := s.x.Ruleset().Diff(want); d != "" {
				t.Fatalf("budget %d: after change %d the index and a compilation differ: %s", budget, i, d)
			}
			if d := mirror.Diff(want); d != "" {
				t.Fatalf("budget %d: change %d does not lead to the ruleset: %s", budget, i, d)
			}
			if got := s.x.Findings(); !slices.Equal(got, findings) {
				t.Fatalf("findings %v, want %v", got, findings)
			}
			// The reference has the same world, less what is withheld.
			world := s.World
			s.World.NetworkPolicies = nil
			for _, np := range world.NetworkPolicies {
				s.World.NetworkPolicies = append(s.World.NetworkPolicies, lessWithheld(np, findings))
			}
			s.check(t, 30)
			s.World = world
			for _, n := range s.Namespaces {
				if n := elements(s.x, n.Name); n > budget {
					t.Fatalf("%d elements, the budget is %d", n, budget)
				}
			}
			over += len(overBudget(s.x))
			changes++
		}
	}
	if t.Logf("%d times of %d, a policy was over the budget", over, changes); over == 0 {
		t.Error("no policy was ever over the budget")
	}
}

// lessWithheld is the policy without the rules of directions that are over the budget.
func lessWithheld(np *networkingv1.NetworkPolicy, findings []policy.Finding) *networkingv1.NetworkPolicy {
	for _, f := range findings {
		if !f.OverBudget || f.Policy != (policy.PolicyRef{Namespace: np.Namespace, Name: np.Name}) {
			continue
		}
		np = np.DeepCopy()
		if len(np.Spec.PolicyTypes) == 0 {
			np.Spec.PolicyTypes = policytest.PolicyTypes(np)
		}
		if strings.HasPrefix(f.Message, "spec.ingress:") {
			np.Spec.Ingress = nil
		} else {
			np.Spec.Egress = nil
		}
	}
	return np
}
