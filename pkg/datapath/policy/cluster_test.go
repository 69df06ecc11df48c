package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

type egressRule = policyv1beta1.ClusterNetworkPolicyEgressRule

// clusterPolicy is one of the admin tier about all pods.
func clusterPolicy(egress ...egressRule) *policyv1beta1.ClusterNetworkPolicy {
	cnp := &policyv1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "rules"}}
	cnp.Spec = policyv1beta1.ClusterNetworkPolicySpec{Tier: policyv1beta1.AdminTier, Subject: policyv1beta1.ClusterNetworkPolicySubject{Namespaces: &metav1.LabelSelector{}}, Egress: egress}
	return cnp
}

func toNetworks(action policyv1beta1.ClusterNetworkPolicyRuleAction, networks ...policyv1beta1.CIDR) egressRule {
	return egressRule{Action: action, To: []policyv1beta1.ClusterNetworkPolicyEgressPeer{{Networks: networks}}}
}

// What this version does not know of a policy fails closed, and is found.
func TestClusterFailsClosed(t *testing.T) {
	t.Parallel()
	peer := func(p policyv1beta1.ClusterNetworkPolicyEgressPeer) egressRule {
		return egressRule{To: []policyv1beta1.ClusterNetworkPolicyEgressPeer{p, {Networks: []policyv1beta1.CIDR{"10.9.0.0/24"}}}}
	}
	protocol := func(p policyv1beta1.ClusterNetworkPolicyProtocol) egressRule {
		r := toNetworks("", "10.9.0.0/24")
		r.Protocols = []policyv1beta1.ClusterNetworkPolicyProtocol{p}
		return r
	}
	inside, outside := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		rule    egressRule
		action  string
		inside  bool // whether packets to 10.9.0.1 pass; a Deny of everything follows
		outside bool
		finding string
	}{
		{rule: peer(policyv1beta1.ClusterNetworkPolicyEgressPeer{}), action: "Accept", inside: true, finding: "has no field that is known"},
		{rule: peer(policyv1beta1.ClusterNetworkPolicyEgressPeer{}), action: "Deny", finding: "denies everything"},
		{rule: peer(policyv1beta1.ClusterNetworkPolicyEgressPeer{}), action: "Pass", finding: "denies everything"},
		{rule: peer(policyv1beta1.ClusterNetworkPolicyEgressPeer{DomainNames: []policyv1beta1.DomainName{"a.example"}}), action: "Accept", inside: true, finding: "names are not supported"},
		{rule: peer(policyv1beta1.ClusterNetworkPolicyEgressPeer{Networks: []policyv1beta1.CIDR{"10.0.0.0"}}), action: "Accept", inside: true, finding: `"10.0.0.0" is not a CIDR`},
		{rule: peer(policyv1beta1.ClusterNetworkPolicyEgressPeer{Networks: []policyv1beta1.CIDR{"10.0.0.0"}}), action: "Pass", finding: `"10.0.0.0" is not a CIDR`},
		{rule: protocol(policyv1beta1.ClusterNetworkPolicyProtocol{}), action: "Accept", finding: "has no field that is known"},
		{rule: protocol(policyv1beta1.ClusterNetworkPolicyProtocol{TCP: &policyv1beta1.ClusterNetworkPolicyProtocolTCP{DestinationPort: &policyv1beta1.Port{}}}), action: "Pass", finding: "ports 0 to 0 are no range"},
		{rule: toNetworks("", "10.9.0.0/24"), action: "Log", finding: `"Log" is not known`},
		{rule: toNetworks("", "10.9.0.0/24"), action: "Pass", inside: true},
		{rule: toNetworks("", "0.0.0.0/0"), action: "Accept", inside: true, outside: true},
	} {
		c.rule.Action = policyv1beta1.ClusterNetworkPolicyRuleAction(c.action)
		r, findings := policy.Compile(policy.Input{
			Namespaces:             []policy.Namespace{{Name: "shop"}},
			Pods:                   []policy.Pod{{Namespace: "shop", Name: "web", Links: []string{"flock1"}}},
			ClusterNetworkPolicies: []*policyv1beta1.ClusterNetworkPolicy{clusterPolicy(c.rule, toNetworks("Deny", "0.0.0.0/0"))},
		})
		text := ""
		for _, f := range findings {
			text += f.Policy.String() + ": " + f.Message + "\n"
		}
		if c.finding != "" && !strings.Contains(text, c.finding) || c.finding == "" && text != "" {
			t.Errorf("%s %+v: findings %q, want %q", c.action, c.rule, text, c.finding)
		}
		if got := policy.Simulate(r, "flock1", "", netip.Addr{}, inside, 6, 80); got != c.inside {
			t.Errorf("%s %+v: packets to %s pass: %v", c.action, c.rule, inside, got)
		}
		if got := policy.Simulate(r, "flock1", "", netip.Addr{}, outside, 6, 80); got != c.outside {
			t.Errorf("%s %+v: packets to %s pass: %v", c.action, c.rule, outside, got)
		}
	}

	for _, broken := range []func(*policyv1beta1.ClusterNetworkPolicySpec){
		func(s *policyv1beta1.ClusterNetworkPolicySpec) { s.Subject.Namespaces = nil },
		func(s *policyv1beta1.ClusterNetworkPolicySpec) { s.Tier = "Middle" },
	} {
		cnp := clusterPolicy()
		broken(&cnp.Spec)
		if _, findings := policy.Compile(policy.Input{ClusterNetworkPolicies: []*policyv1beta1.ClusterNetworkPolicy{cnp}}); len(findings) != 1 || !strings.Contains(findings[0].Message, "not enforced") {
			t.Errorf("findings %v", findings)
		}
	}
}
