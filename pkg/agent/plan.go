//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/annotation"
	"flock.fritzlab.net/flock/pkg/claim"
	"flock.fritzlab.net/flock/pkg/cni"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/embed"
	"flock.fritzlab.net/flock/pkg/grant"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/pods"
	"flock.fritzlab.net/flock/pkg/store"
)

// plan finds out what a pod asks for and what of it it may have.
func (a *Agent) plan(ctx context.Context, s *serving, c *cni.Call) (grant.Plan, embed.Workload, error) {
	pod := &pods.Pod{} // of a runtime that is not Kubernetes': it asks for nothing
	if c.Pod.Name != "" {
		var err error
		pod, err = a.pods.Get(ctx, pods.Ref(c.Pod))
		if errors.Is(err, pods.ErrNotFound) {
			return grant.Plan{}, embed.Workload{}, fmt.Errorf("pod %s: neither the kubelet nor the API server knows it (any more)", c.Pod)
		}
		if err != nil {
			return grant.Plan{}, embed.Workload{}, cni.TryAgainLater("pod %s: its annotations are not known yet: %w", c.Pod, err)
		}
	}
	request, warnings, err := annotation.Parse(pod.Annotations, s.node.Defaults)
	for _, w := range warnings {
		a.Log.Warn("annotation is passed over", "pod", c.Pod, "warning", string(w))
		a.events.Event(kube.PodRef(c.Pod), kube.Warning, "AnnotationIgnored", "Attach", string(w))
	}
	if err != nil {
		return grant.Plan{}, embed.Workload{}, fmt.Errorf("pod %s: %w", c.Pod, err)
	}
	in := grant.Input{
		Request: request, Namespace: c.Pod.Namespace,
		NodeName: a.NodeName, Node: s.node, NodeAddrs: s.nodeAddrs,
		Holder: a.ledger.HolderFor(id(c.Attachment())),
	}
	if needsPool(request, s.node) {
		if in.NamespaceLabels, in.Pools, err = a.pools(c.Pod.Namespace); err != nil {
			return grant.Plan{}, embed.Workload{}, cni.TryAgainLater("pod %s: %w", c.Pod, err)
		}
	}
	plan, err := grant.Decide(in)
	if err != nil {
		return grant.Plan{}, embed.Workload{}, fmt.Errorf("pod %s: %w", c.Pod, err)
	}
	return plan, workload(pod), nil
}

// static lists the addresses that p grants by name to one pod alone.
func static(p grant.Plan) []netip.Addr {
	var addrs []netip.Addr
	for _, from := range []*grant.Source{p.IPv6, p.IPv4} {
		if from != nil && from.Static != nil {
			addrs = append(addrs, from.Static.Addr)
		}
	}
	for _, a := range p.Further {
		addrs = append(addrs, a.Addr)
	}
	return addrs
}

// claims are of what pools grant to one pod alone: other nodes could give it too.
func claims(p grant.Plan, pod cni.PodRef) []claim.Claim {
	var cs []claim.Claim
	add := func(a *grant.Address) {
		if a != nil && a.Pool != "" {
			cs = append(cs, claim.Claim{Addr: a.Addr, PodNamespace: pod.Namespace, PodName: pod.Name, PodUID: pod.UID})
		}
	}
	for _, from := range []*grant.Source{p.IPv6, p.IPv4} {
		if from != nil {
			add(from.Static)
		}
	}
	for i := range p.Further {
		add(&p.Further[i])
	}
	return cs
}

// claimsOf are the claims that a recorded attachment has.
func claimsOf(r store.Record) []claim.Claim {
	var cs []claim.Claim
	for _, a := range r.Held() {
		if !a.CIDR.IsValid() {
			cs = append(cs, claim.Claim{Addr: a.Addr, PodNamespace: r.PodNamespace, PodName: r.PodName, PodUID: r.PodUID})
		}
	}
	return cs
}

// needsPool tells whether r asks for what only an AddressPool can grant. Other
// pods must not wait for the API server.
func needsPool(r annotation.Request, n config.Node) bool {
	if len(r.Anycast) > 0 {
		return true
	}
	for _, addr := range r.Static {
		within := false
		for _, cidr := range n.Summaries() {
			within = within || cidr.Contains(addr)
		}
		if !within {
			return true
		}
	}
	return false
}

// pools are what a pool's decision depends on: the namespace's labels and all
// valid pools.
func (a *Agent) pools(namespace string) (map[string]string, []config.Pool, error) {
	if !a.namespaces.Synced() || !a.addressPools.Synced() {
		return nil, nil, errors.New("its annotations ask for addresses of an AddressPool, and the API server has not told of those yet")
	}
	ns, ok := a.namespaces.Get(namespace)
	if !ok {
		return nil, nil, fmt.Errorf("the API server has not told of namespace %s yet", namespace)
	}
	return ns.Labels, a.validPools(a.addressPools.List()), nil
}

func workload(p *pods.Pod) embed.Workload {
	owners := make([]metav1.OwnerReference, len(p.Owners))
	for i, o := range p.Owners {
		owners[i] = metav1.OwnerReference{APIVersion: o.APIVersion, Kind: o.Kind, Name: o.Name, Controller: &p.Owners[i].Controller}
	}
	w := embed.Workload{Namespace: p.Namespace, App: embed.AppOf(p.Name, p.Labels, owners)}
	for _, c := range p.Containers {
		if !c.Init {
			w.Image = c.Image
			break
		}
	}
	return w
}
