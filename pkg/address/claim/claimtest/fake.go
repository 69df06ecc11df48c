// Package claimtest stands in for the API server in tests of claims, and holds the
// stand-in to what the real one does: Contract is run against both.
package claimtest

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Fake keeps claims and pods in memory. It is safe for concurrent use.
type Fake struct {
	// Before is called with each request, as in "create NAME", and After when it
	// is done; an error of theirs is what the caller gets. With one from After
	// the request was done and its answer lost.
	Before, After func(ctx context.Context, request string) error
	// Old: the CRD does not know quarantines.
	Old bool

	mu     sync.Mutex // guards below
	claims map[string]*v1alpha1.AddressClaim
	pods   map[types.NamespacedName]*corev1.Pod
	made   int
}

// NewFake has neither claims nor pods.
func NewFake() *Fake {
	return &Fake{claims: map[string]*v1alpha1.AddressClaim{}, pods: map[types.NamespacedName]*corev1.Pod{}}
}

var (
	claimResource = schema.GroupResource{Group: v1alpha1.GroupVersion.Group, Resource: "addressclaims"}
	podResource   = schema.GroupResource{Resource: "pods"}
)

// CreateClaim implements claim.API.
func (f *Fake) CreateClaim(ctx context.Context, c *v1alpha1.AddressClaim) error {
	return f.do(ctx, "create "+c.Name, func() error {
		if f.claims[c.Name] != nil {
			return apierrors.NewAlreadyExists(claimResource, c.Name)
		}
		f.made++
		c = c.DeepCopy()
		c.UID, c.ResourceVersion = types.UID("claim-"+strconv.Itoa(f.made)), strconv.Itoa(f.made)
		f.claims[c.Name] = c
		return nil
	})
}

// GetClaim implements claim.API.
func (f *Fake) GetClaim(ctx context.Context, name string) (c *v1alpha1.AddressClaim, err error) {
	err = f.do(ctx, "get "+name, func() error {
		if c = f.claims[name].DeepCopy(); c == nil {
			return apierrors.NewNotFound(claimResource, name)
		}
		return nil
	})
	return c, err
}

// UpdateClaim implements claim.API.
func (f *Fake) UpdateClaim(ctx context.Context, c *v1alpha1.AddressClaim) (updated *v1alpha1.AddressClaim, err error) {
	err = f.do(ctx, "update "+c.Name, func() error {
		if err := f.is(c); err != nil {
			return err
		}
		updated = c.DeepCopy()
		if f.Old {
			updated.Spec.QuarantinedUntil = nil
		}
		if equality.Semantic.DeepEqual(updated, f.claims[c.Name]) {
			return nil
		}
		f.made++
		updated.ResourceVersion = strconv.Itoa(f.made)
		f.claims[c.Name] = updated.DeepCopy()
		return nil
	})
	return updated, err
}

// DropClaim implements claim.API.
func (f *Fake) DropClaim(ctx context.Context, c *v1alpha1.AddressClaim) error {
	return f.do(ctx, "delete "+c.Name, func() error {
		if err := f.is(c); err != nil {
			return err
		}
		delete(f.claims, c.Name)
		return nil
	})
}

// is says whether c is what there is.
func (f *Fake) is(c *v1alpha1.AddressClaim) error {
	switch there := f.claims[c.Name]; {
	case there == nil:
		return apierrors.NewNotFound(claimResource, c.Name)
	case there.UID != c.UID:
		return apierrors.NewConflict(claimResource, c.Name, fmt.Errorf("the UID is %s, not %s", there.UID, c.UID))
	case there.ResourceVersion != c.ResourceVersion:
		return apierrors.NewConflict(claimResource, c.Name, fmt.Errorf("the version is %s, not %s", there.ResourceVersion, c.ResourceVersion))
	}
	return nil
}

// ClaimsOf implements claim.API.
func (f *Fake) ClaimsOf(ctx context.Context, node string) (list []v1alpha1.AddressClaim, err error) {
	err = f.do(ctx, "list "+node, func() error {
		for _, c := range f.claims {
			if c.Spec.NodeName == node {
				list = append(list, *c.DeepCopy())
			}
		}
		return nil
	})
	return list, err
}

// CachedClaimsOf implements claim.API. It is never behind.
func (f *Fake) CachedClaimsOf(ctx context.Context, node string) ([]v1alpha1.AddressClaim, error) {
	return f.ClaimsOf(ctx, node)
}

// ClaimsIn implements claim.API.
func (f *Fake) ClaimsIn(ctx context.Context, namespace string) (list []v1alpha1.AddressClaim, err error) {
	err = f.do(ctx, "list in "+namespace, func() error {
		for _, c := range f.claims {
			if c.Spec.PodNamespace == namespace {
				list = append(list, *c.DeepCopy())
			}
		}
		return nil
	})
	return list, err
}

// All returns all claims.
func (f *Fake) All() (list []*v1alpha1.AddressClaim) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.claims {
		list = append(list, c.DeepCopy())
	}
	return list
}

// GetPod implements claim.API.
func (f *Fake) GetPod(ctx context.Context, namespace, name string) (p *corev1.Pod, err error) {
	err = f.do(ctx, "pod "+namespace+"/"+name, func() error {
		if p = f.pods[types.NamespacedName{Namespace: namespace, Name: name}].DeepCopy(); p == nil {
			return apierrors.NewNotFound(podResource, name)
		}
		return nil
	})
	return p, err
}

// SetPod has p be the pod of its name.
func (f *Fake) SetPod(p *corev1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = p.DeepCopy()
}

// RemovePod drops the pod of that name.
func (f *Fake) RemovePod(namespace, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pods, types.NamespacedName{Namespace: namespace, Name: name})
}

func (f *Fake) do(ctx context.Context, request string, act func() error) error {
	if f.Before != nil {
		if err := f.Before(ctx, request); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	err := act()
	f.mu.Unlock()
	if f.After != nil {
		if lost := f.After(ctx, request); lost != nil {
			return lost
		}
	}
	return err
}
