package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/policy/policytest"
)

// changeBench measures a change and its undoing with 10,000 policies in force, from
// the event to when it is in force.
func changeBench(b *testing.B, own bool, do, undo func(x *policy.Index, i int)) {
	l := policytest.NewLoad(100, own)
	table := openTable(b, nettest.New(b))
	x := policy.NewIndex()
	l.Into(x)
	apply := func() {
		if err := table.Apply(x.Ruleset(), x.Flush()); err != nil {
			b.Fatal(err)
		}
	}
	apply()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		began := time.Now()
		do(x, i)
		apply()
		took = append(took, time.Since(began))
		b.StopTimer()
		undo(x, i)
		apply()
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkNewPodOfManyGroups is a pod that a hundred policies select in words of
// their own, which no pod of this node has been selected by.
func BenchmarkNewPodOfManyGroups(b *testing.B) {
	pod := func(i int) policy.Pod {
		return policy.Pod{
			Namespace: fmt.Sprint("ns", i%policytest.LoadNamespaces), Name: "new", UID: "new", Labels: map[string]string{"app": "app7", "tier": "new"},
			Addrs: []netip.Addr{policytest.LoadAddr(i%policytest.LoadNamespaces, 501)}, Links: []string{"flock0000ffff"},
		}
	}
	changeBench(b, true,
		func(x *policy.Index, i int) { x.SetPod(pod(i)) },
		func(x *policy.Index, i int) { p := pod(i); x.DeletePod(p.Namespace, p.Name, p.UID) })
}

// BenchmarkNewPolicyOfManyPods is a policy that comes into a group of a hundred others,
// which selects a hundred different pods of this node.
func BenchmarkNewPolicyOfManyPods(b *testing.B) {
	l := policytest.NewLoad(100, false)
	x := policy.NewIndex()
	for i := range 100 {
		x.SetPod(policy.Pod{Namespace: "ns0", Name: fmt.Sprint("local", i), Labels: map[string]string{"app": "web", "i": fmt.Sprint(i)}, Links: []string{fmt.Sprintf("flock%08x", 0xb000+i)}})
	}
	for _, np := range l.Policies[:100] {
		x.SetNetworkPolicy(np)
	}
	x.Flush()
	np := l.Policies[0].DeepCopy()
	np.Name = "new"
	port := intstr.FromInt32(9999)
	np.Spec.Ingress[0].Ports[0].Port = &port
	for b.Loop() {
		x.SetNetworkPolicy(np)
		x.Flush()
		x.DeletePolicy(policy.PolicyRef{Namespace: "ns0", Name: "new"})
		x.Flush()
	}
}

// BenchmarkBlocks changes one of so many blocks of addresses in a policy.
func BenchmarkBlocks(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			policyOf := func(i int) *networkingv1.NetworkPolicy {
				np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns0", Name: "blocks"}}
				var rule networkingv1.NetworkPolicyIngressRule
				for j := range n {
					cidr := fmt.Sprintf("fd00:bb:%x::/64", j)
					if j == 0 {
						cidr = fmt.Sprintf("fd00:cc:%x::/64", i%2)
					}
					rule.From = append(rule.From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr}})
				}
				np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{rule}
				return np
			}
			table := openTable(b, nettest.New(b))
			x := policy.NewIndex()
			x.SetPod(policy.Pod{Namespace: "ns0", Name: "web", Links: []string{"flock0000ffff"}})
			x.SetNetworkPolicy(policyOf(0))
			for i := 0; b.Loop(); i++ {
				x.SetNetworkPolicy(policyOf(i))
				if err := table.Apply(x.Ruleset(), x.Flush()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
