package claimtest

import (
	"context"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Contract is what claims rely on. It uses the addresses of 2001:db8:c0::/64 and of
// 203.0.113.128/25, as agent of node1, and expects a pod default/contract.
func Contract(t *testing.T, api claim.API) {
	ctx := context.Background()
	for _, addr := range []string{"2001:db8:c0::7", "203.0.113.131"} {
		name := v1alpha1.AddressClaimName(netip.MustParseAddr(addr))
		want := &v1alpha1.AddressClaim{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       v1alpha1.AddressClaimSpec{Address: addr, PodNamespace: "default", PodName: "contract", PodUID: "u", NodeName: "node1", Workload: "w"},
		}
		if _, err := api.GetClaim(ctx, name); !apierrors.IsNotFound(err) {
			t.Errorf("get what is not there: %v", err)
		}
		if err := api.CreateClaim(ctx, want); err != nil {
			t.Fatal(err)
		}
		first, err := api.GetClaim(ctx, name)
		if err != nil || !reflect.DeepEqual(first.Spec, want.Spec) || first.UID == "" {
			t.Fatalf("got %+v, %v", first, err)
		}
		if err := api.CreateClaim(ctx, want); !apierrors.IsAlreadyExists(err) {
			t.Errorf("create what is there: %v", err)
		}
		another := first.DeepCopy()
		another.UID = "another"
		if err := api.DropClaim(ctx, another); !apierrors.IsConflict(err) {
			t.Errorf("delete with another UID: %v", err)
		}
		cached(t, api, "node1", name, true)
		cached(t, api, "node2", name, false)
		if !lists(t, api, "node1", name) || lists(t, api, "node2", name) {
			t.Error("the claim is not in the list of node1 alone")
		}
		if !listsIn(t, api, "default", name) || listsIn(t, api, "shop", name) {
			t.Error("the claim is not in the list of namespace default alone")
		}
		resting := first.DeepCopy()
		resting.Spec.QuarantinedUntil = &metav1.Time{Time: time.Unix(2_000_000_000, 0)}
		updated, err := api.UpdateClaim(ctx, resting)
		if err != nil || updated.UID != first.UID || updated.ResourceVersion == first.ResourceVersion || !updated.Spec.QuarantinedUntil.Equal(resting.Spec.QuarantinedUntil) {
			t.Fatalf("in quarantine: %+v, %v", updated, err)
		}
		if _, err := api.UpdateClaim(ctx, resting); !apierrors.IsConflict(err) {
			t.Errorf("update the version before: %v", err)
		}
		if err := api.DropClaim(ctx, first); !apierrors.IsConflict(err) {
			t.Errorf("delete the version before: %v", err)
		}
		heir := updated.DeepCopy()
		heir.Spec = v1alpha1.AddressClaimSpec{Address: addr, PodNamespace: "default", PodName: "heir", PodUID: "h", NodeName: "node1", Workload: "w"}
		if updated, err = api.UpdateClaim(ctx, heir); err != nil || updated.Spec.PodUID != "h" || updated.Spec.QuarantinedUntil != nil {
			t.Fatalf("inherited: %+v, %v", updated, err)
		}
		if err := api.DropClaim(ctx, updated); err != nil {
			t.Error(err)
		}
		if err := api.DropClaim(ctx, updated); !apierrors.IsNotFound(err) {
			t.Errorf("delete what is not there: %v", err)
		}
		if _, err := api.UpdateClaim(ctx, updated); !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			t.Errorf("update what is not there: %v", err)
		}
		if err := api.CreateClaim(ctx, want); err != nil {
			t.Fatal(err)
		}
		if second, err := api.GetClaim(ctx, name); err != nil || second.UID == first.UID {
			t.Errorf("made again: %v, UID %s", err, second.UID)
		}
		if err := api.DropClaim(ctx, first); !apierrors.IsConflict(err) {
			t.Errorf("delete the one before: %v", err)
		}
	}
	if _, err := api.GetPod(ctx, "default", "none"); !apierrors.IsNotFound(err) {
		t.Errorf("get a pod that is not there: %v", err)
	}
	if p, err := api.GetPod(ctx, "default", "contract"); err != nil || p.UID == "" {
		t.Errorf("get a pod: %+v, %v", p, err)
	}
}

// cached waits until the cache lists the claim, or does not any more.
func cached(t *testing.T, api claim.API, node, name string, want bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		list, err := api.CachedClaimsOf(context.Background(), node)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(list, func(c v1alpha1.AddressClaim) bool { return c.Name == name }) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the cache lists claim %s of %s: %t, want %t", name, node, !want, want)
		}
	}
}

func lists(t *testing.T, api claim.API, node, name string) bool {
	t.Helper()
	list, err := api.ClaimsOf(context.Background(), node)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(list, func(c v1alpha1.AddressClaim) bool { return c.Name == name })
}

func listsIn(t *testing.T, api claim.API, namespace, name string) bool {
	t.Helper()
	list, err := api.ClaimsIn(context.Background(), namespace)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(list, func(c v1alpha1.AddressClaim) bool { return c.Name == name })
}
