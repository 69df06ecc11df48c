//go:build linux

package agent

import (
	"context"
	"net/netip"
	"slices"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/kube"
)

// peers says which addresses pods of other nodes hold beside those in their status:
// network policies allow peers by all their addresses. What a pod's annotations ask for
// counts only as far as it is granted: a static address by its AddressClaim, an anycast
// address by an AddressPool that admits the namespace.
type peers struct {
	namespaces *kube.Namespaces
	pools      cell.Reader[poolSet]
	claims     *kube.Cache[*v1alpha1.AddressClaim]

	needed      atomic.Bool // claims are to be followed
	wake        chan struct{}
	grants      *cell.Topic // the objects that grants depend on may have changed
	onRegranted func()
}

// peerAnnotations are those by which a pod asks for addresses.
var peerAnnotations = []string{annotation.Addresses, annotation.Anycast}

// Run follows what grants depend on. The claims of the cluster are followed only once
// a pod could have one that policies need.
func (p *peers) Run(ctx context.Context) error {
	changed := cell.Signal()
	p.grants.Notify(changed)
	p.pools.Notify(changed)
	return together(ctx,
		func(ctx context.Context) error {
			select {
			case <-ctx.Done():
			case <-p.wake:
				p.claims.Run(ctx)
			}
			return nil
		},
		func(ctx context.Context) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-changed:
					p.onRegranted()
				}
			}
		})
}

// addrs returns the addresses that a pod of another node holds beside those in its
// status; before are those of the last time. What cannot be decided stays as it was.
func (p *peers) addrs(pod *corev1.Pod, before []netip.Addr) (held []netip.Addr) {
	static, anycast := annotation.Lists(pod.Annotations)
	for _, a := range static {
		if slices.ContainsFunc(pod.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == a.String() }) {
			continue
		}
		if p.needed.CompareAndSwap(false, true) {
			cell.Wake(p.wake)
		}
		is := slices.Contains(before, a)
		if p.claims.Synced() {
			claim, ok := p.claims.Get(v1alpha1.AddressClaimName(a))
			is = ok && claim.Spec.QuarantinedUntil == nil && claim.Spec.PodNamespace == pod.Namespace && claim.Spec.PodName == pod.Name
		}
		if is {
			held = append(held, a)
		}
	}
	for _, a := range anycast {
		// One that was granted is so until the pod ends, whatever becomes of the pool.
		if slices.Contains(before, a) || p.admits(pod.Namespace, a) {
			held = append(held, a)
		}
	}
	return held
}

func (p *peers) admits(namespace string, anycast netip.Addr) bool {
	labels, ok := p.namespaces.Known(namespace)
	return ok && grant.Admits(anycast, v1alpha1.UseAnycast, labels, p.pools.Get().pools)
}
