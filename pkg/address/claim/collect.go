package claim

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Collector ends claims whose pods are gone, on nodes of which nothing is heard: their
// agents cannot. A node that is heard of keeps its claims until its own agent releases them,
// as only that agent knows what still has the address. Where a quarantine is over, and nobody
// has ended the claim for overdue more, there is no such agent any more.
type Collector struct {
	API interface {
		podReader
		UpdateClaim(context.Context, *v1alpha1.AddressClaim) (*v1alpha1.AddressClaim, error)
		DropClaim(context.Context, *v1alpha1.AddressClaim) error
	}
	Log *slog.Logger
	// Lives says whether the claim's pod is known to be there. If not, the API server is
	// asked.
	Lives func(*v1alpha1.AddressClaim) bool
	// Heard says whether a node exists and its kubelet reports.
	Heard func(node string) bool
	// Quarantine is how long an address stays claimed after its pod; nil: not at all.
	Quarantine func(netip.Addr) time.Duration
}

// overdue is how long the agent of a node that is heard of has for a claim whose quarantine is over.
const overdue = 15 * time.Minute

// Collect ends those of claims that are to end. It goes on after an error. It says how many it
// has ended, and after what time a quarantine ends that is not over; negative: there is none.
func (c *Collector) Collect(ctx context.Context, claims []*v1alpha1.AddressClaim) (ended int, again time.Duration, err error) {
	again = -1
	var errs []error
	for _, claim := range claims {
		if claim.Spec.PodUID == "" {
			continue
		}
		quarantined, wait, err := c.due(ctx, claim)
		switch {
		case err != nil:
			errs = append(errs, err)
			continue
		case wait != 0:
			if wait > 0 && (again < 0 || wait < again) {
				again = wait
			}
			continue
		case !quarantined:
			if addr, err := netip.ParseAddr(claim.Spec.Address); err == nil && c.Quarantine != nil && c.Quarantine(addr) > 0 {
				begun, err := quarantine(ctx, c.API, claim, c.Quarantine(addr))
				if err != nil && !changed(err) {
					errs = append(errs, err)
				}
				if begun || err != nil {
					continue // its change is what comes next
				}
			}
		}
		err = asked(ctx, func(ctx context.Context) error { return c.API.DropClaim(ctx, claim) })
		switch {
		case err == nil:
			ended++
			c.Log.Info("ended the AddressClaim of a pod that is gone, as its node is", "address", claim.Spec.Address,
				"pod", claim.Spec.PodNamespace+"/"+claim.Spec.PodName, "node", claim.Spec.NodeName)
		case !changed(err):
			errs = append(errs, err)
		}
	}
	return ended, again, errors.Join(errs...)
}

// due says whether a claim is in quarantine, and how long it is to stay as it is; negative: as
// long as nothing else changes.
func (c *Collector) due(ctx context.Context, claim *v1alpha1.AddressClaim) (quarantined bool, wait time.Duration, err error) {
	heard := c.Heard(claim.Spec.NodeName)
	if until := claim.Spec.QuarantinedUntil; until != nil {
		wait := time.Until(until.Time)
		if wait > longest { // by a wrong clock
			return true, 0, nil
		}
		if heard {
			wait += overdue
		}
		return true, max(0, wait), nil
	}
	if heard || c.Lives(claim) {
		return false, -1, nil
	}
	pod, err := podOf(ctx, c.API, claim)
	if err != nil || pod != nil {
		return false, -1, err
	}
	return false, 0, nil
}
