package controller

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/service"
)

// forbidding lets nobody delete a claim.
type forbidding struct {
	*model
	tries atomic.Int32
}

func (f *forbidding) DropClaim(_ context.Context, c *v1alpha1.AddressClaim) error {
	f.tries.Add(1)
	return apierrors.NewForbidden(claimResource, c.Name, errors.New("no rights"))
}

// A claim that cannot be released is tried again ever less often.
func TestReleaseBacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := &model{t: t, rnd: rand.New(rand.NewPCG(1, 1)), services: map[service.Key][]version[*corev1.Service]{}, claims: map[string][]version[*v1alpha1.AddressClaim]{}}
		c := &v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: "2001:db8::1", Services: []v1alpha1.ServiceClaim{{Namespace: "shop", Name: "gone", UID: "u", Ports: []string{"80/TCP"}}}}}
		c.Name, c.UID = v1alpha1.AddressClaimName(netip.MustParseAddr(c.Spec.Address)), "claim"
		m.putClaim(c.Name, c)
		api, v := &forbidding{model: m}, &view{model: m}
		v.forward(true)
		s := &services{world: v, api: api, events: v, log: slog.New(slog.DiscardHandler), metrics: newMetrics()}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s.Run(ctx)
		if n := api.tries.Load(); n < 5 || n > 20 {
			t.Errorf("%d tries in a minute", n)
		}
	})
}
