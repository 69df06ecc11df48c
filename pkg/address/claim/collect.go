package claim

import (
	"context"
	"errors"
	"log/slog"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Collector ends claims whose pods are gone, on nodes of which nothing is heard: their
// agents cannot. A node that is heard of keeps its claims until its own agent releases them,
// as only that agent knows what still has the address.
type Collector struct {
	API interface {
		podReader
		DeleteClaim(ctx context.Context, name string, uid types.UID) error
	}
	Log *slog.Logger
	// Lives says whether the claim's pod is known to be there. If not, the API server is
	// asked.
	Lives func(*v1alpha1.AddressClaim) bool
	// Heard says whether a node exists and its kubelet reports.
	Heard func(node string) bool
}

// Collect ends those of claims that are to end. It goes on after an error, and says how many
// it has ended.
func (c *Collector) Collect(ctx context.Context, claims []*v1alpha1.AddressClaim) (ended int, err error) {
	var errs []error
	for _, claim := range claims {
		if claim.Spec.PodUID == "" || c.Heard(claim.Spec.NodeName) || c.Lives(claim) {
			continue
		}
		pod, err := podOf(ctx, c.API, claim)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if pod != nil {
			continue
		}
		err = asked(ctx, func(ctx context.Context) error { return c.API.DeleteClaim(ctx, claim.Name, claim.UID) })
		switch {
		case err == nil:
			ended++
			c.Log.Info("released the AddressClaim of a pod that is gone, on a node that is gone or unreachable", "address", claim.Spec.Address,
				"pod", claim.Spec.PodNamespace+"/"+claim.Spec.PodName, "node", claim.Spec.NodeName)
		case !apierrors.IsNotFound(err) && !apierrors.IsConflict(err):
			errs = append(errs, err)
		}
	}
	return ended, errors.Join(errs...)
}
