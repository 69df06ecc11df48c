//go:build apiserver

package kube

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// quarantine: with an agent's rights a claim outlives its pod, and a pod of the same workload on
// another node takes it over. Nobody else's claim can be written that way.
func quarantine(t *testing.T, s *server) {
	const rest = 3 * time.Second
	node1, _ := s.resting(t, "node1", rest)
	node2, _ := s.resting(t, "node2", rest)
	asks := func(workload, name, uid string, addrs ...netip.Addr) []claim.Claim {
		claims := of(name, uid, addrs...)
		for i := range claims {
			claims[i].Workload = workload
		}
		return claims
	}
	get := func(a netip.Addr) *v1alpha1.AddressClaim {
		t.Helper()
		c, err := s.claims(t, "node1").GetClaim(t.Context(), v1alpha1.AddressClaimName(a))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first, second := address(0x700), address(0x701)
	if err := node1.Acquire(t.Context(), "a", asks("web", "web-0", s.run(t, "web-0", "node1"), first, second)); err != nil {
		t.Fatal(err)
	}

	// While the pod has it.
	other := s.claims(t, "node2")
	mark, take := get(first), get(first)
	mark.Spec.QuarantinedUntil = &metav1.Time{Time: time.Now()}
	take.Spec.PodName, take.Spec.PodUID, take.Spec.NodeName = "thief", "thief", "node2"
	for what, c := range map[string]*v1alpha1.AddressClaim{"ends another's": mark, "takes another's": take} {
		if _, err := other.UpdateClaim(t.Context(), c); !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	stolen := mark.DeepCopy()
	stolen.Spec.NodeName = "node2"
	if _, err := other.UpdateClaim(t.Context(), stolen); !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
		t.Errorf("begins a quarantine as another node: %v", err)
	}

	s.remove(t, "web-0", 0)
	went := time.Now()
	node1.Release("a")
	for deadline := time.Now().Add(20 * time.Second); get(first).Spec.QuarantinedUntil == nil || get(second).Spec.QuarantinedUntil == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the claims are not in quarantine")
		}
	}
	for what, change := range map[string]func(*v1alpha1.AddressClaimSpec){
		"another workload":  func(s *v1alpha1.AddressClaimSpec) { s.Workload = "thief" },
		"no workload":       func(s *v1alpha1.AddressClaimSpec) { s.Workload = "" },
		"another namespace": func(s *v1alpha1.AddressClaimSpec) { s.PodNamespace = "evil" },
		"a longer one":      func(s *v1alpha1.AddressClaimSpec) { s.QuarantinedUntil = &metav1.Time{Time: time.Now().Add(time.Hour)} },
		"as another node":   func(s *v1alpha1.AddressClaimSpec) { s.NodeName = "node3" },
	} {
		c := get(first)
		c.Spec.PodName, c.Spec.PodUID, c.Spec.NodeName, c.Spec.QuarantinedUntil = "thief", "thief", "node2", nil
		change(&c.Spec)
		if _, err := other.UpdateClaim(t.Context(), c); !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
			t.Errorf("takes it over as %s: %v", what, err)
		}
	}
	if err := node2.Acquire(t.Context(), "b", asks("web", "web-1", s.run(t, "web-1", "node2"), first)); err != nil {
		t.Errorf("the same workload: %v", err)
	} else {
		t.Logf("a pod of the same workload has the address on another node %s after the first", time.Since(went).Round(time.Millisecond))
	}
	late := s.run(t, "late", "node2")
	err := node2.Acquire(t.Context(), "c", asks("other", "late", late, second))
	if held := (*claim.HeldError)(nil); !errors.As(err, &held) || held.Until.IsZero() || !strings.Contains(err.Error(), "is in quarantine until") {
		t.Errorf("another workload: %v", err)
	}
	for err != nil && time.Since(went) < 30*time.Second {
		time.Sleep(50 * time.Millisecond)
		err = node2.Acquire(t.Context(), "c", asks("other", "late", late, second))
	}
	if took := time.Since(went); err != nil || took < rest {
		t.Errorf("another workload after %s: %v, want it after %s", took, err, rest)
	} else {
		t.Logf("another workload has it after %s", took.Round(time.Millisecond))
	}
	if c := get(first); c.Spec.PodName != "web-1" || c.Spec.QuarantinedUntil != nil || c.Spec.NodeName != "node2" {
		t.Errorf("the claim that was taken over: %+v", c.Spec)
	}
	s.remove(t, "web-1", 0)
	s.remove(t, "late", 0)
	node2.Release("b")
	node2.Release("c")
	s.becomes(t, first, "")
	s.becomes(t, second, "")
}
