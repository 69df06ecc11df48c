package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// A World is all that policies are made of and about.
type World struct {
	NetworkPolicies []*networkingv1.NetworkPolicy
	// ClusterNetworkPolicies of the same priority decide in the order of their names.
	ClusterNetworkPolicies []*policyv1beta1.ClusterNetworkPolicy
	Pods                   []*policy.Pod
	Namespaces             []*policy.Namespace
	Nodes                  []*policy.Node
}

// Input is the world for [policy.Compile].
func (w *World) Input() policy.Input {
	in := policy.Input{NetworkPolicies: w.NetworkPolicies, ClusterNetworkPolicies: w.ClusterNetworkPolicies}
	for _, p := range w.Pods {
		in.Pods = append(in.Pods, *p)
	}
	for _, n := range w.Namespaces {
		in.Namespaces = append(in.Namespaces, *n)
	}
	for _, n := range w.Nodes {
		in.Nodes = append(in.Nodes, *n)
	}
	return in
}

// A Maker makes random objects from few words, so that they often concern each other.
type Maker struct{ *rand.Rand }

func pick[T any](m Maker, of ...T) T { return of[m.IntN(len(of))] }

func (m Maker) often() bool  { return m.IntN(3) > 0 }
func (m Maker) seldom() bool { return m.IntN(4) == 0 }

// Ports that policies and probes are about.
var Ports = []uint16{53, 80, 81, 443, 8080}

var namespaceNames = []string{"blue", "red", "green"}

// Namespaces makes the namespaces.
func (m Maker) Namespaces() (out []*policy.Namespace) {
	for _, name := range namespaceNames {
		out = append(out, &policy.Namespace{Name: name, Labels: m.NamespaceLabels(name)})
	}
	return out
}

// NamespaceLabels makes labels of a namespace.
func (m Maker) NamespaceLabels(name string) map[string]string {
	return map[string]string{"kubernetes.io/metadata.name": name, "team": pick(m, "a", "b")}
}

// PodLabels makes labels of a pod.
func (m Maker) PodLabels() map[string]string {
	l := map[string]string{"app": pick(m, "web", "db", "cache")}
	if m.often() {
		l["tier"] = pick(m, "front", "back")
	}
	return l
}

// PodPorts makes named ports of a pod. Two containers may give one name to different ports.
func (m Maker) PodPorts() (out []policy.NamedPort) {
	for _, name := range []string{"http", "dns"} {
		for range pick(m, 0, 1, 1, 1, 2) {
			out = append(out, policy.NamedPort{Name: name, Protocol: pick(m, corev1.ProtocolTCP, corev1.ProtocolUDP), Number: pick(m, Ports...)})
		}
	}
	return out
}

// Pod makes the n-th pod, with one address of each family.
func (m Maker) Pod(n int) *policy.Pod {
	return &policy.Pod{
		Namespace: pick(m, namespaceNames...), Name: fmt.Sprint("pod", n), UID: fmt.Sprint("uid", n),
		Labels: m.PodLabels(), Ports: m.PodPorts(), Addrs: PodAddrs(n),
	}
}

// PodAddrs are the n-th pod's.
func PodAddrs(n int) []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{10, 1, byte(n / 8), byte(n%8 + 1)}),
		netip.MustParseAddr(fmt.Sprintf("fd00:1::%x:%x", n/8, n%8+1)),
	}
}

// Outside are addresses that no pod holds, of each family.
var Outside = [2][2]netip.Addr{
	{netip.MustParseAddr("10.9.0.9"), netip.MustParseAddr("192.0.2.9")},
	{netip.MustParseAddr("fd00:9::9"), netip.MustParseAddr("2001:db8::9")},
}

func (m Maker) podSelector() metav1.LabelSelector {
	switch m.IntN(6) {
	case 0:
		return metav1.LabelSelector{}
	case 1:
		return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
			Key: "app", Operator: pick(m, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: []string{"web", pick(m, "db", "cache")},
		}}}
	case 2:
		return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
			Key: "tier", Operator: pick(m, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist),
		}}}
	case 3:
		return metav1.LabelSelector{MatchLabels: map[string]string{"tier": pick(m, "front", "back")}}
	}
	return metav1.LabelSelector{MatchLabels: map[string]string{"app": pick(m, "web", "db", "cache")}}
}

func (m Maker) namespaceSelector() metav1.LabelSelector {
	switch m.IntN(3) {
	case 0:
		return metav1.LabelSelector{}
	case 1:
		return metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": pick(m, namespaceNames...)}}
	}
	return metav1.LabelSelector{MatchLabels: map[string]string{"team": pick(m, "a", "b")}}
}

func (m Maker) peers() (out []networkingv1.NetworkPolicyPeer) {
	for range pick(m, 0, 1, 1, 2) {
		var p networkingv1.NetworkPolicyPeer
		if m.IntN(3) == 0 {
			p.IPBlock = m.block()
		} else {
			pods, namespaces := m.podSelector(), m.namespaceSelector()
			which := m.IntN(3)
			if which != 0 {
				p.PodSelector = &pods
			}
			if which != 1 {
				p.NamespaceSelector = &namespaces
			}
		}
		out = append(out, p)
	}
	return out
}

func (m Maker) block() *networkingv1.IPBlock {
	if m.IntN(2) == 0 {
		b := &networkingv1.IPBlock{CIDR: pick(m, "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/29", "10.9.0.0/24", "10.1.0.2/32")}
		if m.often() && b.CIDR != "10.1.0.2/32" {
			b.Except = m.excepts("10.1.0.2/32", "10.1.0.0/30", "10.1.0.3/32")
		}
		if b.CIDR == "10.9.0.0/24" {
			b.Except = nil
		}
		return b
	}
	b := &networkingv1.IPBlock{CIDR: pick(m, "::/0", "fd00::/8", "fd00:1::/112", "fd00:9::/64")}
	if m.often() && b.CIDR != "fd00:9::/64" {
		b.Except = m.excepts("fd00:1::2/128", "fd00:1::/126", "fd00:1::3/128")
	}
	return b
}

// excepts are one or several, which may overlap or touch.
func (m Maker) excepts(of ...string) (out []string) {
	for range pick(m, 1, 1, 2, 3) {
		out = append(out, pick(m, of...))
	}
	return out
}

func (m Maker) ports() (out []networkingv1.NetworkPolicyPort) {
	n := pick(m, 0, 1, 1, 2, 3)
	if m.IntN(8) == 0 {
		n = 16 // more than have sets of blocks of their own
	}
	for range n {
		var p networkingv1.NetworkPolicyPort
		if m.often() {
			protocol := pick(m, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
			p.Protocol = &protocol
		}
		switch m.IntN(6) {
		case 0:
		case 1:
			name := intstr.FromString(pick(m, "http", "dns"))
			p.Port = &name
		case 2:
			port, end := intstr.FromInt32(int32(pick(m, 50, 80, 82))), int32(pick(m, 82, 443, 9000))
			p.Port, p.EndPort = &port, &end
		default:
			port := intstr.FromInt32(int32(pick(m, Ports...)))
			p.Port = &port
		}
		out = append(out, p)
	}
	return out
}

// NetworkPolicy makes the n-th policy.
func (m Maker) NetworkPolicy(n int) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: pick(m, namespaceNames...), Name: fmt.Sprint("policy", n)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: m.podSelector(),
			PolicyTypes: pick(m, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"}),
		},
	}
	for range pick(m, 0, 1, 1, 2, 3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: m.peers(), Ports: m.ports()})
	}
	for range pick(m, 0, 1, 1, 2, 3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: m.peers(), Ports: m.ports()})
	}
	return np
}

// Nodes makes nodes that are none of the pods' business; policies may know them.
func (m Maker) Nodes() []*policy.Node {
	return []*policy.Node{
		{Name: "near", Labels: map[string]string{"zone": pick(m, "a", "b")}, Addrs: []netip.Addr{Outside[0][0], Outside[1][0]}},
		{Name: "far", Labels: map[string]string{"zone": pick(m, "a", "b")}, Addrs: []netip.Addr{Outside[0][1], Outside[1][1]}},
	}
}

func (m Maker) namespacedPod() policyv1beta1.NamespacedPod {
	return policyv1beta1.NamespacedPod{NamespaceSelector: m.namespaceSelector(), PodSelector: m.podSelector()}
}

func (m Maker) clusterPeer(d networkingv1.PolicyType) (p policyv1beta1.ClusterNetworkPolicyEgressPeer) {
	namespaces, pods := m.namespaceSelector(), m.namespacedPod()
	kind := m.IntN(4)
	if d == networkingv1.PolicyTypeIngress {
		kind = m.IntN(2)
	}
	switch kind {
	case 0:
		p.Namespaces = &namespaces
	case 1:
		p.Pods = &pods
	case 2:
		p.Nodes = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": pick(m, "a", "b")}}
		if m.seldom() {
			p.Nodes = &metav1.LabelSelector{}
		}
	case 3:
		for range 1 + m.IntN(2) {
			p.Networks = append(p.Networks, policyv1beta1.CIDR(m.block().CIDR))
		}
	}
	return p
}

func (m Maker) clusterProtocols(peers []policyv1beta1.ClusterNetworkPolicyEgressPeer) (out []policyv1beta1.ClusterNetworkPolicyProtocol) {
	for range pick(m, 0, 0, 1, 2) {
		var port *policyv1beta1.Port
		switch m.IntN(4) {
		case 0:
		case 1:
			port = &policyv1beta1.Port{Range: &policyv1beta1.PortRange{Start: int32(pick(m, 50, 80, 81)), End: int32(pick(m, 82, 443, 9000))}}
		default:
			port = &policyv1beta1.Port{Number: int32(pick(m, Ports...))}
		}
		var p policyv1beta1.ClusterNetworkPolicyProtocol
		switch m.IntN(4) {
		case 0:
			p.UDP = &policyv1beta1.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
		case 1:
			p.DestinationNamedPort = pick(m, "http", "dns")
			for _, peer := range peers {
				if peer.Networks != nil || peer.Nodes != nil { // which have no named ports
					p = policyv1beta1.ClusterNetworkPolicyProtocol{SCTP: &policyv1beta1.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}}
				}
			}
		default:
			p.TCP = &policyv1beta1.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		}
		out = append(out, p)
	}
	return out
}

// ClusterNetworkPolicy makes the n-th policy. Two have the same priority.
func (m Maker) ClusterNetworkPolicy(n int) *policyv1beta1.ClusterNetworkPolicy {
	cnp := &policyv1beta1.ClusterNetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("cluster", n)},
		Spec:       policyv1beta1.ClusterNetworkPolicySpec{Tier: pick(m, policyv1beta1.AdminTier, policyv1beta1.BaselineTier), Priority: int32(n / 2)},
	}
	namespaces, pods := m.namespaceSelector(), m.namespacedPod()
	if m.IntN(2) == 0 {
		cnp.Spec.Subject.Namespaces = &namespaces
	} else {
		cnp.Spec.Subject.Pods = &pods
	}
	actions := []policyv1beta1.ClusterNetworkPolicyRuleAction{"Accept", "Deny", "Pass"}
	for range pick(m, 0, 1, 1, 2, 3) {
		r := policyv1beta1.ClusterNetworkPolicyIngressRule{Action: pick(m, actions...)}
		for range 1 + m.IntN(2) {
			p := m.clusterPeer(networkingv1.PolicyTypeIngress)
			r.From = append(r.From, policyv1beta1.ClusterNetworkPolicyIngressPeer{Namespaces: p.Namespaces, Pods: p.Pods})
		}
		r.Protocols = m.clusterProtocols(nil)
		cnp.Spec.Ingress = append(cnp.Spec.Ingress, r)
	}
	for range pick(m, 0, 1, 1, 2, 3) {
		r := policyv1beta1.ClusterNetworkPolicyEgressRule{Action: pick(m, actions...)}
		for range 1 + m.IntN(2) {
			r.To = append(r.To, m.clusterPeer(networkingv1.PolicyTypeEgress))
		}
		r.Protocols = m.clusterProtocols(r.To)
		cnp.Spec.Egress = append(cnp.Spec.Egress, r)
	}
	return cnp
}

// Protocol makes a protocol's number: TCP, UDP, SCTP, ICMP or one without ports.
func (m Maker) Protocol(v6 bool) uint8 {
	icmp := uint8(1)
	if v6 {
		icmp = 58
	}
	return pick(m, 6, 6, 17, 17, 132, icmp, 47)
}
