package controller

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/kube"
)

// poolPeriod is between two writes of the pools' statuses. Each goes to all agents.
const poolPeriod = 10 * time.Second

// pools writes who uses the AddressPools into their status.
type pools struct {
	world   *world
	api     *kube.Client
	log     *slog.Logger
	metrics *metrics
}

// Run works until ctx ends.
func (p *pools) Run(ctx context.Context) {
	changed := cell.Signal()
	p.world.has.Notify(changed)
	p.world.wants.Notify(changed)
	follow(ctx, changed, poolPeriod, func() time.Duration {
		again := time.Duration(-1)
		statuses := p.statuses()
		for _, ap := range p.world.pools.List() {
			status := statuses[ap.Name]
			if reflect.DeepEqual(status, ap.Status) {
				continue
			}
			if err := p.api.PatchPoolStatus(ctx, ap, status); err != nil && ctx.Err() == nil {
				p.log.Warn("cannot write the status of an AddressPool, will retry", "pool", ap.Name, "error", err)
				again = 0
			}
		}
		return again
	})
}

// user is somebody who has an address.
type user struct {
	addr netip.Addr
	use  v1alpha1.PoolUse
	by   string // namespace/name
}

// users are all who have addresses that pools may have granted.
func (w *world) users() (all []user) {
	for _, c := range w.claims.List() {
		addr, err := netip.ParseAddr(c.Spec.Address)
		if err != nil {
			continue
		}
		if c.Spec.PodUID != "" && c.Spec.QuarantinedUntil == nil {
			all = append(all, user{addr, v1alpha1.UseStatic, c.Spec.PodNamespace + "/" + c.Spec.PodName})
		}
		for _, s := range c.Spec.Services {
			all = append(all, user{addr, v1alpha1.UseService, s.Namespace + "/" + s.Name})
		}
	}
	for _, nc := range w.configs.List() {
		for _, a := range nc.Status.Anycast {
			if addr, err := netip.ParseAddr(a.Address); err == nil {
				all = append(all, user{addr, v1alpha1.UseAnycast, a.Pod})
			}
		}
	}
	slices.SortFunc(all, func(a, b user) int {
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.use, b.use), cmp.Compare(a.by, b.by))
	})
	return slices.Compact(all)
}

// statuses are the statuses of all pools.
func (p *pools) statuses() map[string]v1alpha1.AddressPoolStatus {
	valid := p.world.validPools()
	statuses, used := usage(valid, p.world.users())
	p.metrics.pools(valid, used)
	return statuses
}

// usage adds up who uses which pool: the first by name of those that decide about the address
// and allow the use. All of one address come together.
func usage(valid []config.Pool, users []user) (map[string]v1alpha1.AddressPoolStatus, map[poolFamilyUse]int) {
	const mostUsers, mostBy = 16, 4
	statuses := map[string]v1alpha1.AddressPoolStatus{}
	used := map[poolFamilyUse]int{}
	var last user // of the same address and use
	for _, u := range users {
		deciding := config.Deciding(valid, u.addr)
		i := slices.IndexFunc(deciding, func(p config.Pool) bool {
			return u.use == v1alpha1.UseStatic && p.Static || u.use == v1alpha1.UseAnycast && p.Anycast || u.use == v1alpha1.UseService && p.Service
		})
		if i < 0 {
			continue
		}
		name := deciding[i].Name
		status := statuses[name]
		if first := last.addr != u.addr || last.use != u.use; first {
			used[poolFamilyUse{name, family(u.addr), string(u.use)}]++
			switch u.use {
			case v1alpha1.UseStatic:
				status.Static++
			case v1alpha1.UseAnycast:
				status.Anycast++
			default:
				status.Service++
			}
			if len(status.Users) < mostUsers {
				status.Users = append(status.Users, v1alpha1.PoolUser{Address: u.addr.String(), Use: u.use, By: []string{u.by}})
			}
		} else if n := len(status.Users); n > 0 && status.Users[n-1].Address == u.addr.String() && status.Users[n-1].Use == u.use {
			if entry := &status.Users[n-1]; len(entry.By) < mostBy {
				entry.By = append(entry.By, u.by)
			} else {
				entry.More++
			}
		}
		last = u
		statuses[name] = status
	}
	return statuses, used
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
