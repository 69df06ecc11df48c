package policytest

import (
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// A Load is a cluster of 10,000 pods in 100 namespaces, of which one each is of this
// node, and policies that allow ten pods each to reach those.
type Load struct {
	Pods     []policy.Pod
	Policies []*networkingv1.NetworkPolicy
}

const (
	// LoadNamespaces is how many a Load has, and LoadPods how many pods each of them.
	LoadNamespaces = 100
	LoadPods       = 100
	// LoadPort is the port of a namespace's first policy; the next has the next one.
	LoadPort = 1000
)

// LoadAddr is the address of a pod of a Load's namespace.
func LoadAddr(namespace, pod int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:aa::%x:%x", namespace, pod))
}

// NewLoad makes so many policies in each namespace. own says that each selects its pods
// in words of its own: they are as many groups, all of which select the same pod.
func NewLoad(policies int, own bool) (l Load) {
	for ns := range LoadNamespaces {
		namespace := fmt.Sprint("ns", ns)
		for i := range LoadPods {
			p := policy.Pod{
				Namespace: namespace, Name: fmt.Sprint("pod", i), UID: fmt.Sprint(ns, "-", i),
				Labels: map[string]string{"app": "peer", "group": fmt.Sprint(i % 10)}, Addrs: []netip.Addr{LoadAddr(ns, i)},
			}
			if i == 0 {
				p.Labels, p.Links = map[string]string{"app": "web"}, []string{fmt.Sprintf("flock%08x", 0xa000+ns)}
			}
			l.Pods = append(l.Pods, p)
		}
		for j := range policies {
			np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprint("policy", j)}}
			np.Spec.PodSelector.MatchLabels = map[string]string{"app": "web"}
			if own {
				np.Spec.PodSelector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
					{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"web", fmt.Sprint("app", j)}},
				}}
			}
			port := intstr.FromInt32(int32(LoadPort + j))
			np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"group": fmt.Sprint(j % 10)}}}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}}
			l.Policies = append(l.Policies, np)
		}
	}
	return l
}

// Into takes the Load into an Index.
func (l Load) Into(x *policy.Index) {
	for ns := range LoadNamespaces {
		x.SetNamespace(policy.Namespace{Name: fmt.Sprint("ns", ns)})
	}
	for _, p := range l.Pods {
		x.SetPod(p)
	}
	for _, np := range l.Policies {
		x.SetNetworkPolicy(np)
	}
}

// Peer is the i-th pod that may come to a Load: ten policies of a namespace allow it.
func (l Load) Peer(i int) policy.Pod {
	ns := i % LoadNamespaces
	return policy.Pod{
		Namespace: fmt.Sprint("ns", ns), Name: "peer", UID: "peer",
		Labels: map[string]string{"app": "peer", "group": "1"}, Addrs: []netip.Addr{LoadAddr(ns, 500)},
	}
}
