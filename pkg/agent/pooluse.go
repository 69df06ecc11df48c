//go:build linux

package agent

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// poolUse reports which AddressPools the node's pods use. It is in the status of the
// NodeConfig, which has one writer: one in the AddressPool's would go to every agent with
// each pod of a pool on any node.
type poolUse struct {
	ledger  *ledger.Ledger
	granted *cell.Topic // of ledger
	pools   cell.Reader[poolSet]
}

// Notify implements Follower.
func (u poolUse) Notify(ch chan<- struct{}) {
	u.granted.Notify(ch)
	u.pools.Notify(ch)
}

// Report implements Reporter.
func (u poolUse) Report(_ context.Context, status *v1alpha1.NodeConfigStatus) {
	retained := map[string][]netip.Prefix{} // those of Services are not the pods' use
	for _, r := range u.pools.Get().retained {
		retained[r.Name] = slices.Clone(r.CIDRs)
	}
	status.Pools = usedPools(u.ledger.Records(), retained)
}

// usedPools are the pools that records have addresses of. Pools that would not grant any more
// what they have, which is retained, come first. It uses retained up.
func usedPools(records []ledger.Record, retained map[string][]netip.Prefix) (used []v1alpha1.PoolStatus) {
	const mostPools, mostPods = 64, 8
	use := map[string]*v1alpha1.PoolStatus{}
	type counting struct {
		pool string
		addr netip.Addr
	}
	counted := map[counting]bool{}
	for _, r := range records {
		for _, g := range slices.Concat(r.Primary, r.Secondary, r.Anycast) {
			if !g.FromPool() || g.Pool == "" {
				continue
			}
			p := use[g.Pool]
			if p == nil {
				p = &v1alpha1.PoolStatus{Name: g.Pool}
				use[g.Pool] = p
			}
			// An anycast address is counted once, however many of the node's pods have it.
			if one := (counting{g.Pool, g.Addr}); !counted[one] {
				counted[one] = true
				p.Addresses++
			}
			if i := slices.Index(retained[g.Pool], netip.PrefixFrom(g.Addr, g.Addr.BitLen())); i >= 0 {
				retained[g.Pool] = slices.Delete(retained[g.Pool], i, i+1)
				p.Retained++
			}
			if pod := r.Pod.String(); !slices.Contains(p.Pods, pod) {
				p.Pods = append(p.Pods, pod)
			}
		}
	}
	for _, p := range use {
		slices.Sort(p.Pods)
		p.Pods = p.Pods[:min(len(p.Pods), mostPods)]
		used = append(used, *p)
	}
	slices.SortFunc(used, func(a, b v1alpha1.PoolStatus) int {
		return cmp.Or(cmp.Compare(min(b.Retained, 1), min(a.Retained, 1)), cmp.Compare(a.Name, b.Name))
	})
	return used[:min(len(used), mostPools)]
}
