package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// What a policy says and cannot be enforced is found, with the field and its value.
func TestFindings(t *testing.T) {
	port := func(p intstr.IntOrString) *intstr.IntOrString { return &p }
	number := func(n int32) *int32 { return &n }
	icmp := corev1.Protocol("ICMP")
	wrong := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Like"}}}
	for _, c := range []struct {
		peer networkingv1.NetworkPolicyPeer
		port networkingv1.NetworkPolicyPort
		want string
	}{
		{peer: networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0"}}, want: `spec.ingress[0].from[0].ipBlock.cidr: "10.0.0.0" is not a CIDR`},
		{peer: networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.1.0.0/33"}}}, want: `ipBlock.except[0]: "10.1.0.0/33" is not a CIDR`},
		{peer: networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "::ffff:10.0.0.0/104"}}, want: "write it as IPv4"},
		{peer: networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}, IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8"}}, want: "an ipBlock and a selector"},
		{peer: networkingv1.NetworkPolicyPeer{}, want: "no ipBlock, podSelector or namespaceSelector"},
		{peer: networkingv1.NetworkPolicyPeer{PodSelector: wrong}, want: `from[0].podSelector: "Like" is not a valid label selector operator`},
		{peer: networkingv1.NetworkPolicyPeer{NamespaceSelector: wrong}, want: `from[0].namespaceSelector: "Like" is not a valid label selector operator`},
		{port: networkingv1.NetworkPolicyPort{Protocol: &icmp}, want: `spec.ingress[0].ports[0].protocol: "ICMP" is not known`},
		{port: networkingv1.NetworkPolicyPort{EndPort: number(90)}, want: "ports[0].endPort: 90 has no port to begin at"},
		{port: networkingv1.NetworkPolicyPort{Port: port(intstr.FromString("http")), EndPort: number(90)}, want: `90 cannot follow the named port "http"`},
		{port: networkingv1.NetworkPolicyPort{Port: port(intstr.FromInt32(91)), EndPort: number(90)}, want: "ports 91 to 90 are no range"},
		{port: networkingv1.NetworkPolicyPort{Port: port(intstr.FromInt32(70000))}, want: "ports 70000 to 70000 are no range"},
	} {
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
		r := networkingv1.NetworkPolicyIngressRule{}
		if c.port != (networkingv1.NetworkPolicyPort{}) {
			r.Ports = append(r.Ports, c.port)
		} else {
			r.From = append(r.From, c.peer)
		}
		np.Spec.Ingress = append(np.Spec.Ingress, r)
		rules, findings := parseNetworkPolicy(PolicyRef{np.Namespace, np.Name}, np.UID, &packedSpec{spec: &np.Spec}, ingress)
		if len(findings) != 1 || !strings.Contains(findings[0].Message, c.want) || findings[0].Policy.String() != "NetworkPolicy shop/web" {
			t.Errorf("findings %v, want one with %q", findings, c.want)
		}
		if len(rules[0].peers) > 0 && len(rules[0].ports) > 0 {
			t.Errorf("%s: the rule matches something: %+v", c.want, rules)
		}
	}
}

// The policy types are inferred as the API says.
func TestDirections(t *testing.T) {
	rule := []networkingv1.NetworkPolicyEgressRule{{}}
	for _, c := range []struct {
		types   []networkingv1.PolicyType
		egress  []networkingv1.NetworkPolicyEgressRule
		in, out bool
	}{
		{in: true},
		{egress: rule, in: true, out: true},
		{types: []networkingv1.PolicyType{"Ingress"}, egress: rule, in: true},
		{types: []networkingv1.PolicyType{"Egress"}, out: true},
		{types: []networkingv1.PolicyType{"Egress", "Ingress"}, in: true, out: true},
	} {
		np := &networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{PolicyTypes: c.types, Egress: c.egress}}
		if in, out := directions(np); in != c.in || out != c.out {
			t.Errorf("policyTypes %v with %d egress rules: ingress %v, egress %v", c.types, len(c.egress), in, out)
		}
	}
}

func TestSpans(t *testing.T) {
	spanOf := func(s string) span { return prefixSpan(netip.MustParsePrefix(s)) }
	text := func(spans []span) (out []string) {
		for _, s := range spans {
			out = append(out, fmt.Sprintf("%s-%s", s.from, s.to))
		}
		return out
	}
	for _, c := range []struct {
		block  string
		except []string
		want   []string
	}{
		{"10.0.0.0/8", nil, []string{"10.0.0.0-10.255.255.255"}},
		{"10.0.0.7/24", []string{"10.0.0.0/25"}, []string{"10.0.0.128-10.0.0.255"}},
		{"10.0.0.0/24", []string{"10.0.0.4/30", "10.0.0.6/32", "10.0.0.255/32"}, []string{"10.0.0.0-10.0.0.3", "10.0.0.8-10.0.0.254"}},
		{"10.0.0.0/24", []string{"10.0.0.0/8"}, nil},
		{"::/0", []string{"0.0.0.0/0"}, []string{"::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}},
		{"::/0", []string{"::/1"}, []string{"8000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}},
	} {
		spans := []span{spanOf(c.block)}
		for _, e := range c.except {
			spans = subtract(spans, spanOf(e))
		}
		if got := text(spans); !slices.Equal(got, c.want) {
			t.Errorf("%s except %v is %v, want %v", c.block, c.except, got, c.want)
		}
	}
	got := text(union([]span{spanOf("10.0.1.0/24"), spanOf("10.0.0.0/24"), spanOf("10.0.0.0/30"), spanOf("10.0.3.0/24")}))
	if want := []string{"10.0.0.0-10.0.1.255", "10.0.3.0-10.0.3.255"}; !slices.Equal(got, want) {
		t.Errorf("union %v, want %v", got, want)
	}
}

// Findings follow what policies say and which pods they select.
func TestFindingsFollow(t *testing.T) {
	wrong := func(name, app, cidr string) *networkingv1.NetworkPolicy {
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		np.Spec.PodSelector.MatchLabels = map[string]string{"app": app}
		np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: cidr}}}}}
		return np
	}
	unreadable := wrong("unreadable", "web", "10.0.0.0/8")
	unreadable.Spec.PodSelector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Like"}}}
	pod := func(name, app string) Pod {
		return Pod{Namespace: "shop", Name: name, Labels: map[string]string{"app": app}, Links: []string{"flock" + name}}
	}
	x := NewIndex()
	for _, c := range []struct {
		what string
		do   func()
		want []string // the policies
	}{
		{"nothing is selected", func() { x.SetNetworkPolicy(wrong("a", "web", "?")) }, nil},
		{"a pod is selected", func() { x.SetPod(pod("1", "web")) }, []string{"a"}},
		{"another policy of the group", func() { x.SetNetworkPolicy(wrong("b", "web", "?")) }, []string{"a", "b"}},
		{"of another group, which selects nothing", func() { x.SetNetworkPolicy(wrong("c", "db", "?")) }, []string{"a", "b"}},
		{"a policy without a readable selector", func() { x.SetNetworkPolicy(unreadable) }, []string{"a", "b", "unreadable"}},
		{"one is mended", func() { x.SetNetworkPolicy(wrong("a", "web", "10.0.0.0/8")) }, []string{"b", "unreadable"}},
		{"the pod has other labels", func() { x.SetPod(pod("1", "db")) }, []string{"c", "unreadable"}},
		{"and the first again", func() { x.SetPod(pod("1", "web")) }, []string{"b", "unreadable"}},
		{"the pod goes and another comes at once", func() { x.DeletePod("shop", "1", ""); x.SetPod(pod("2", "web")) }, []string{"b", "unreadable"}},
		{"one selects others now", func() { x.SetNetworkPolicy(wrong("b", "db", "?")) }, []string{"unreadable"}},
		{"and the first again", func() { x.SetNetworkPolicy(wrong("b", "web", "?")) }, []string{"b", "unreadable"}},
		{"the unreadable one goes", func() { x.DeletePolicy(PolicyRef{"shop", "unreadable"}) }, []string{"b"}},
		{"the pod goes", func() { x.DeletePod("shop", "2", "") }, nil},
		{"and comes again", func() { x.SetPod(pod("2", "web")) }, []string{"b"}},
		{"a policy goes", func() { x.DeletePolicy(PolicyRef{"shop", "b"}) }, nil},
	} {
		c.do()
		var got []string
		for _, f := range x.Findings() {
			got = append(got, f.Policy.Name)
		}
		x.Flush()
		var after []string
		for _, f := range x.Findings() {
			after = append(after, f.Policy.Name)
		}
		if !slices.Equal(got, c.want) || !slices.Equal(after, c.want) {
			t.Errorf("%s: findings of %q, after the flush of %q, want %q", c.what, got, after, c.want)
		}
	}
}
