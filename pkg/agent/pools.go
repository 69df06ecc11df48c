//go:build linux

package agent

import (
	"cmp"
	"path/filepath"
	"reflect"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/routing"
)

// poolRoutes is what goes with the routes of granted addresses, by the pools that
// the API server tells of. Until it has told, it is by those that were kept: the
// start of an agent changes no announcement.
func (a *Agent) poolRoutes() []routing.PoolRoutes {
	path := filepath.Join(a.StateDir, "addresspools.json")
	if a.keptPools == nil {
		kept, err := kube.Load[[]*v1alpha1.AddressPool](path)
		if err != nil {
			a.Log.Warn("the copy of the AddressPools on this node is of no use", "error", err)
		}
		if kept == nil {
			kept = &[]*v1alpha1.AddressPool{}
		}
		a.keptPools = *kept
	}
	if !a.addressPools.Synced() {
		return routing.PoolsOf(a.validPools(a.keptPools))
	}
	now := []*v1alpha1.AddressPool{}
	for _, ap := range a.addressPools.List() {
		now = append(now, &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: ap.Name}, Spec: ap.Spec})
	}
	slices.SortFunc(now, func(p, q *v1alpha1.AddressPool) int { return cmp.Compare(p.Name, q.Name) })
	if !reflect.DeepEqual(now, a.keptPools) {
		if err := kube.Save(path, now); err != nil {
			a.Log.Warn("the AddressPools are not kept for a start without the API server", "error", err)
		} else {
			a.keptPools = now
		}
	}
	return routing.PoolsOf(a.validPools(now))
}

// validPools are those of all that say what can be had.
func (a *Agent) validPools(all []*v1alpha1.AddressPool) []config.Pool {
	var valid []config.Pool
	for _, ap := range all {
		pool, err := config.ParsePool(ap)
		if err != nil {
			a.Log.Error("an AddressPool is passed over", "error", err)
			continue
		}
		valid = append(valid, pool)
	}
	return valid
}
