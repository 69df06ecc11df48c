// Package policytest judges packets by policies in the slow and obvious way, straight
// from the API objects and their documentation, to hold package policy against. It
// also makes random worlds to judge packets in.
package policytest

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// A Packet is the first of a connection. From and To are the pods of this node that
// send and receive it; nil is the world outside.
type Packet struct {
	From, To *policy.Pod
	Src, Dst netip.Addr
	Protocol uint8
	Port     uint16 // of the destination; protocols without ports have none
}

// A verdict is what one evaluator says.
type verdict int

const (
	next verdict = iota // the following evaluator decides
	accept
	deny
)

// Allowed says whether a packet passes, by its sender's and its receiver's policies.
func Allowed(w *World, p Packet) bool {
	if p.From != nil && p.From == p.To {
		return true // a pod to itself
	}
	return side(w, p, p.From, p.Dst, networkingv1.PolicyTypeEgress) && side(w, p, p.To, p.Src, networkingv1.PolicyTypeIngress)
}

// side asks the evaluators in their order for one end of the connection; peer is the
// other.
func side(w *World, p Packet, pod *policy.Pod, peer netip.Addr, d networkingv1.PolicyType) bool {
	if pod == nil || pod.HostNetwork {
		return true
	}
	for _, evaluate := range evaluators {
		switch evaluate(w, p, pod, peer, d) {
		case accept:
			return true
		case deny:
			return false
		}
	}
	return true
}

var evaluators = []func(*World, Packet, *policy.Pod, netip.Addr, networkingv1.PolicyType) verdict{
	tier(policyv1beta1.AdminTier), networkPolicies, tier(policyv1beta1.BaselineTier),
}

// tier is the ClusterNetworkPolicies of one tier, by their priority.
func tier(tier policyv1beta1.Tier) func(*World, Packet, *policy.Pod, netip.Addr, networkingv1.PolicyType) verdict {
	return func(w *World, p Packet, pod *policy.Pod, peer netip.Addr, d networkingv1.PolicyType) verdict {
		cnps := slices.Clone(w.ClusterNetworkPolicies)
		slices.SortFunc(cnps, func(a, b *policyv1beta1.ClusterNetworkPolicy) int {
			return cmp.Or(cmp.Compare(a.Spec.Priority, b.Spec.Priority), cmp.Compare(a.Name, b.Name))
		})
		for _, cnp := range cnps {
			if cnp.Spec.Tier != tier || !isSubject(w, &cnp.Spec.Subject, pod) {
				continue
			}
			for _, r := range clusterRules(cnp, d) {
				if !slices.ContainsFunc(holders(w, peer), func(holder *policy.Pod) bool {
					target := holder
					if d == networkingv1.PolicyTypeIngress {
						target = pod
					}
					return clusterPeersMatch(w, r.To, peer, holder) && protocolsMatch(p, target, r.Protocols)
				}) {
					continue
				}
				switch r.Action {
				case policyv1beta1.ClusterNetworkPolicyRuleActionAccept:
					return accept
				case policyv1beta1.ClusterNetworkPolicyRuleActionDeny:
					return deny
				}
				return next
			}
		}
		return next
	}
}

// clusterRules are the rules of one direction, with From as To.
func clusterRules(cnp *policyv1beta1.ClusterNetworkPolicy, d networkingv1.PolicyType) []policyv1beta1.ClusterNetworkPolicyEgressRule {
	if d == networkingv1.PolicyTypeEgress {
		return cnp.Spec.Egress
	}
	var out []policyv1beta1.ClusterNetworkPolicyEgressRule
	for _, r := range cnp.Spec.Ingress {
		one := policyv1beta1.ClusterNetworkPolicyEgressRule{Action: r.Action, Protocols: r.Protocols}
		for _, f := range r.From {
			one.To = append(one.To, policyv1beta1.ClusterNetworkPolicyEgressPeer{Namespaces: f.Namespaces, Pods: f.Pods})
		}
		out = append(out, one)
	}
	return out
}

func isSubject(w *World, s *policyv1beta1.ClusterNetworkPolicySubject, pod *policy.Pod) bool {
	if s.Namespaces != nil {
		return namespaceMatches(w, s.Namespaces, pod.Namespace)
	}
	return namespaceMatches(w, &s.Pods.NamespaceSelector, pod.Namespace) && matches(&s.Pods.PodSelector, pod.Labels)
}

func clusterPeersMatch(w *World, peers []policyv1beta1.ClusterNetworkPolicyEgressPeer, addr netip.Addr, holder *policy.Pod) bool {
	return slices.ContainsFunc(peers, func(p policyv1beta1.ClusterNetworkPolicyEgressPeer) bool {
		switch {
		case p.Networks != nil:
			return slices.ContainsFunc(p.Networks, func(n policyv1beta1.CIDR) bool { return inBlock(string(n), addr) })
		case p.Nodes != nil:
			return slices.ContainsFunc(w.Nodes, func(n *policy.Node) bool {
				return slices.Contains(n.Addrs, addr) && matches(p.Nodes, n.Labels)
			})
		case holder == nil:
			return false
		case p.Namespaces != nil:
			return namespaceMatches(w, p.Namespaces, holder.Namespace)
		}
		return namespaceMatches(w, &p.Pods.NamespaceSelector, holder.Namespace) && matches(&p.Pods.PodSelector, holder.Labels)
	})
}

func protocolsMatch(p Packet, target *policy.Pod, protocols []policyv1beta1.ClusterNetworkPolicyProtocol) bool {
	if len(protocols) == 0 {
		return true
	}
	is := func(proto uint8, port *policyv1beta1.Port) bool {
		switch {
		case p.Protocol != proto:
			return false
		case port == nil:
			return true
		case port.Range != nil:
			return int32(p.Port) >= port.Range.Start && int32(p.Port) <= port.Range.End
		}
		return int32(p.Port) == port.Number
	}
	return slices.ContainsFunc(protocols, func(c policyv1beta1.ClusterNetworkPolicyProtocol) bool {
		switch {
		case c.TCP != nil:
			return is(6, c.TCP.DestinationPort)
		case c.UDP != nil:
			return is(17, c.UDP.DestinationPort)
		case c.SCTP != nil:
			return is(132, c.SCTP.DestinationPort)
		}
		return target != nil && slices.ContainsFunc(target.Ports, func(n policy.NamedPort) bool {
			return n.Name == c.DestinationNamedPort && number(n.Protocol) == p.Protocol && n.Number == p.Port
		})
	})
}

// networkPolicies decide about each pod that one of them selects.
func networkPolicies(w *World, p Packet, pod *policy.Pod, peer netip.Addr, d networkingv1.PolicyType) verdict {
	selected := false
	for _, np := range w.NetworkPolicies {
		if np.Namespace != pod.Namespace || !matches(&np.Spec.PodSelector, pod.Labels) || !slices.Contains(PolicyTypes(np), d) {
			continue
		}
		selected = true
		// Of several pods with the peer's address, one must be meant by the rule.
		for _, holder := range holders(w, peer) {
			if d == networkingv1.PolicyTypeIngress {
				for _, r := range np.Spec.Ingress {
					if peersMatch(w, np.Namespace, r.From, peer, holder) && portsMatch(p, pod, r.Ports) {
						return accept
					}
				}
				continue
			}
			for _, r := range np.Spec.Egress {
				if peersMatch(w, np.Namespace, r.To, peer, holder) && portsMatch(p, holder, r.Ports) {
					return accept
				}
			}
		}
	}
	if selected {
		return deny
	}
	return next
}

// PolicyTypes are the directions in which a policy isolates its pods.
func PolicyTypes(np *networkingv1.NetworkPolicy) []networkingv1.PolicyType {
	if len(np.Spec.PolicyTypes) > 0 {
		return np.Spec.PolicyTypes
	}
	if len(np.Spec.Egress) > 0 {
		return []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	}
	return []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
}

func peersMatch(w *World, namespace string, peers []networkingv1.NetworkPolicyPeer, addr netip.Addr, holder *policy.Pod) bool {
	if len(peers) == 0 {
		return true
	}
	return slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		switch {
		case p.IPBlock != nil:
			return inBlock(p.IPBlock.CIDR, addr) && !slices.ContainsFunc(p.IPBlock.Except, func(e string) bool { return inBlock(e, addr) })
		case holder == nil, p.PodSelector != nil && !matches(p.PodSelector, holder.Labels):
			return false
		case p.NamespaceSelector == nil:
			return holder.Namespace == namespace
		}
		return namespaceMatches(w, p.NamespaceSelector, holder.Namespace)
	})
}

func inBlock(cidr string, addr netip.Addr) bool { return netip.MustParsePrefix(cidr).Contains(addr) }

// holders are the pods that hold an address and can be selected; a nil one if there
// are none.
func holders(w *World, addr netip.Addr) (out []*policy.Pod) {
	for _, p := range w.Pods {
		if !p.HostNetwork && !p.Finished && slices.Contains(p.Addrs, addr) {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		out = append(out, nil)
	}
	return out
}

// portsMatch takes a named port for one of the target pod.
func portsMatch(p Packet, target *policy.Pod, ports []networkingv1.NetworkPolicyPort) bool {
	if len(ports) == 0 {
		return true
	}
	return slices.ContainsFunc(ports, func(n networkingv1.NetworkPolicyPort) bool {
		protocol := corev1.ProtocolTCP
		if n.Protocol != nil {
			protocol = *n.Protocol
		}
		if number(protocol) != p.Protocol {
			return false
		}
		switch {
		case n.Port == nil:
			return true
		case n.Port.Type == intstr.String:
			return target != nil && slices.Contains(target.Ports, policy.NamedPort{Name: n.Port.StrVal, Protocol: protocol, Number: p.Port})
		case n.EndPort != nil:
			return int32(p.Port) >= n.Port.IntVal && int32(p.Port) <= *n.EndPort
		}
		return int32(p.Port) == n.Port.IntVal
	})
}

func number(p corev1.Protocol) uint8 {
	return map[corev1.Protocol]uint8{corev1.ProtocolTCP: 6, corev1.ProtocolUDP: 17, corev1.ProtocolSCTP: 132}[p]
}

func matches(s *metav1.LabelSelector, l map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(l))
}

func namespaceMatches(w *World, s *metav1.LabelSelector, name string) bool {
	for _, n := range w.Namespaces {
		if n.Name == name {
			return matches(s, n.Labels)
		}
	}
	return false
}
