package claim

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// Limit is how many of a pool's addresses the pods of one namespace may claim together.
type Limit struct {
	Pool string
	Most int
	// Of says whether an address is of the pool.
	Of func(netip.Addr) bool
}

// LimitsOf returns the limits that claims come under.
func LimitsOf(claims []Claim, pools []config.Pool) (limits []Limit) {
	for _, p := range pools {
		of := func(addr netip.Addr) bool { return grant.PoolOf(addr, false, pools) == p.Name }
		if p.MaxPerNamespace > 0 && slices.ContainsFunc(claims, func(c Claim) bool { return of(c.Addr) }) {
			limits = append(limits, Limit{p.Name, p.MaxPerNamespace, of})
		}
	}
	return limits
}

// Quarantine is how long an address stays claimed after its pod, by the pool that grants it, or
// by default where none does any more.
func Quarantine(addr netip.Addr, pools []config.Pool) time.Duration {
	name := grant.PoolOf(addr, false, pools)
	for _, p := range pools {
		if p.Name == name {
			return p.Quarantine
		}
	}
	return config.DefaultQuarantine
}

// LimitError says that the pods of a namespace would hold too many addresses of a pool.
type LimitError struct {
	Limit
	Namespace string
	Claimed   int // with those that were asked for
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("the pods of namespace %s would hold %d addresses of AddressPool %s, and may hold %d together (spec.maxAddressesPerNamespace): wait until other pods have gone, or ask the cluster's operator to raise the limit",
		e.Namespace, e.Claimed, e.Pool, e.Most)
}

// within returns a *LimitError if the namespace of claims, which have been created, has
// too many. They are counted after they were created, so that pods that come at the same
// time on different nodes do not exceed a limit; it may refuse both.
func (k *Keeper) within(ctx context.Context, limits []Limit, claims []Claim) error {
	if len(limits) == 0 || len(claims) == 0 {
		return nil
	}
	namespace := claims[0].Pod.Namespace
	var list []v1alpha1.AddressClaim
	err := asked(ctx, func(ctx context.Context) (err error) {
		list, err = k.API.ClaimsIn(ctx, namespace)
		return err
	})
	if err != nil {
		return fmt.Errorf("count the AddressClaims of namespace %s: %w", namespace, err)
	}
	for _, l := range limits {
		claimed := 0
		for i := range list {
			if addr, err := netip.ParseAddr(list[i].Spec.Address); err == nil && l.Of(addr) && list[i].Spec.QuarantinedUntil == nil {
				claimed++
			}
		}
		if claimed > l.Most {
			return &LimitError{l, namespace, claimed}
		}
	}
	return nil
}

// isGranted says whether some attachment of the pod has been granted the claim, so that
// it has been counted before.
func (k *Keeper) isGranted(h *hold) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, granted := range h.users {
		if granted {
			return true
		}
	}
	return false
}
