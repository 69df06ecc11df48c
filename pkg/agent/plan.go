//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/cni"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/pod/source"
)

// plan finds out what a pod is and asks for, and what of it it may have.
func (a *attacher) plan(ctx context.Context, in *inForce, c *cni.Call) (grant.Plan, *source.Pod, error) {
	pod := &source.Pod{} // of a runtime that is not Kubernetes': it asks for nothing
	if c.Pod.Name != "" {
		var err error
		pod, err = a.pods.Get(ctx, c.Pod)
		if errors.Is(err, source.ErrNotFound) {
			return grant.Plan{}, nil, fmt.Errorf("pod %s: neither the kubelet nor the API server knows it (any more)", c.Pod)
		}
		if err != nil {
			return grant.Plan{}, nil, cni.TryAgainLater("pod %s: its annotations are not known yet: %w", c.Pod, err)
		}
	}
	request, warnings, err := annotation.Parse(pod.Annotations, in.node.Defaults)
	for _, w := range warnings {
		a.log.WarnContext(ctx, "ignoring an annotation", "pod", c.Pod, "warning", string(w))
		a.events.Event(c.Pod, kube.Warning, "AnnotationIgnored", "Attach", string(w))
	}
	if err != nil {
		return grant.Plan{}, nil, fmt.Errorf("pod %s: %w", c.Pod, err)
	}
	input := grant.Input{
		Request: request, Namespace: c.Pod.Namespace,
		NodeName: a.node, Node: in.node, NodeAddrs: in.addrs,
		Holder:      a.ledger.HolderFor(id(c), c.Pod.UID),
		InNamespace: func() []address.Granted { return a.ledger.InNamespace(id(c), c.Pod) },
	}
	needs := grant.NeedsOf(request, in.node)
	if needs.Pools {
		if input.Pools, err = a.poolsNow(); err != nil {
			return grant.Plan{}, nil, cni.TryAgainLater("pod %s: %w", c.Pod, err)
		}
	}
	if needs.NamespaceLabels {
		if input.NamespaceLabels, err = a.namespaces.Labels(ctx, c.Pod.Namespace); err != nil {
			return grant.Plan{}, nil, cni.TryAgainLater("pod %s: %w", c.Pod, err)
		}
	}
	plan, err := grant.Decide(input)
	if err != nil {
		return grant.Plan{}, nil, fmt.Errorf("pod %s: %w", c.Pod, err)
	}
	if err := a.notServices(ctx, plan, input.Pools); errors.Is(err, claim.ErrUnavailable) {
		return grant.Plan{}, nil, cni.TryAgainLater("pod %s: %w", c.Pod, err)
	} else if err != nil {
		return grant.Plan{}, nil, fmt.Errorf("pod %s: annotation %s: %w", c.Pod, annotation.Anycast, err)
	}
	return plan, pod, nil
}

// notServices returns an error if a Service has one of the plan's anycast addresses. Pods do
// not claim those, so that other pods with them start while the API server is away: it is
// asked only where a pool is for Services too.
func (a *attacher) notServices(ctx context.Context, plan grant.Plan, pools []config.Pool) error {
	for _, g := range plan.Anycast {
		if !slices.ContainsFunc(config.Deciding(pools, g.Addr), func(p config.Pool) bool { return p.Service }) {
			continue
		}
		if err := a.claims.OfService(ctx, g.Addr); err != nil {
			return err
		}
	}
	return nil
}

// poolsNow returns all valid pools.
func (a *attacher) poolsNow() ([]config.Pool, error) {
	pools := a.pools.Get()
	if !pools.synced {
		return nil, errors.New("its annotations ask for addresses of an AddressPool, and the API server has not sent the AddressPools yet")
	}
	return pools.pools, nil
}

func workload(p *source.Pod) embed.Workload {
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
