package claim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

const (
	// patience is for one answer of the API server. It takes milliseconds; the
	// runtime waits for a minute or more.
	patience = 3 * time.Second
	// attempts are made while a claim changes hands at the very moment.
	attempts = 5
)

// secure makes the claim, or finds it made. What nobody holds any more is taken.
func (k *Keeper) secure(ctx context.Context, h *hold) error {
	name := v1alpha1.AddressClaimName(h.Addr)
	for range attempts {
		err := asked(ctx, func(ctx context.Context) error { return k.API.CreateClaim(ctx, k.object(h.Claim)) })
		if err == nil {
			k.learn(h, ours)
			return nil
		}
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("the API server does not know AddressClaims, without which no address of an AddressPool can be given: apply flock's deploy/crds: %w", err)
		}
		if !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("claim %s: %w", name, err)
		}
		current, err := k.current(ctx, name)
		if err != nil {
			return err
		}
		if current == nil {
			k.learn(h, unknown)
			continue // gone since
		}
		switch mine := current.Spec.PodUID == h.PodUID; {
		case mine && !k.is(h, doubtful):
			k.learn(h, ours)
			return nil
		case mine:
			// The deletion that may be on its way names this object, not the next.
		default:
			k.learn(h, unknown)
			gone, err := k.gone(ctx, current)
			if err != nil {
				return err
			}
			if !gone {
				return &HeldError{Addr: h.Addr, Pod: current.Spec.PodNamespace + "/" + current.Spec.PodName, Node: current.Spec.NodeName}
			}
			k.Log.Info("taking over the claim of a pod that is gone", "address", h.Addr,
				"pod", h.PodNamespace+"/"+h.PodName, "from", current.Spec.PodNamespace+"/"+current.Spec.PodName, "node", current.Spec.NodeName)
		}
		if err := k.end(ctx, current); err != nil {
			return err
		}
		k.learn(h, unknown)
	}
	return fmt.Errorf("claim %s: others make and delete it: %w", name, ErrUnavailable)
}

// gone tells whether the claim's pod has no use for it any more; see the package's
// comment for the difference that its node makes.
func (k *Keeper) gone(ctx context.Context, c *v1alpha1.AddressClaim) (bool, error) {
	var pod *corev1.Pod
	err := asked(ctx, func(ctx context.Context) (err error) {
		pod, err = k.API.GetPod(ctx, c.Spec.PodNamespace, c.Spec.PodName)
		return err
	})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("claim %s: does pod %s/%s still live? %w", c.Name, c.Spec.PodNamespace, c.Spec.PodName, err)
	}
	// A static pod has the kubelet's UID, which its mirror names.
	if cmp.Or(pod.Annotations[corev1.MirrorPodAnnotationKey], string(pod.UID)) != c.Spec.PodUID {
		return true, nil
	}
	going := pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	return going && k.detached(c), nil
}

// detached tells whether it is this node's to say that the pod is attached, and it is
// not.
func (k *Keeper) detached(c *v1alpha1.AddressClaim) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c.Spec.NodeName != k.Node {
		return false
	}
	for id, h := range k.holds {
		if id.podUID == c.Spec.PodUID && v1alpha1.AddressClaimName(id.addr) == c.Name && len(h.users) > 0 {
			return false
		}
	}
	return true
}

// current is the claim of that name, nil if there is none.
func (k *Keeper) current(ctx context.Context, name string) (c *v1alpha1.AddressClaim, err error) {
	err = asked(ctx, func(ctx context.Context) error {
		c, err = k.API.GetClaim(ctx, name)
		return err
	})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", name, err)
	}
	return c, nil
}

// end deletes this very claim. That it is gone, or another is there, is no error.
func (k *Keeper) end(ctx context.Context, c *v1alpha1.AddressClaim) error {
	err := asked(ctx, func(ctx context.Context) error { return k.API.DeleteClaim(ctx, c.Name, c.UID) })
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("claim %s: %w", c.Name, err)
}

func (k *Keeper) is(h *hold, what knowledge) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return h.known == what
}

func (k *Keeper) learn(h *hold, what knowledge) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h.known = what
}

func (k *Keeper) object(c Claim) *v1alpha1.AddressClaim {
	return &v1alpha1.AddressClaim{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AddressClaimName(c.Addr)},
		Spec: v1alpha1.AddressClaimSpec{
			Address:      c.Addr.String(),
			PodNamespace: c.PodNamespace,
			PodName:      c.PodName,
			PodUID:       c.PodUID,
			NodeName:     k.Node,
		},
	}
}

// asked has f ask the API server, for so long, and marks an error that is no answer
// with ErrUnavailable.
func asked(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := f(ctx)
	if err == nil {
		return nil
	}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		if code := status.Status().Code; code < http.StatusInternalServerError && code != http.StatusTooManyRequests {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
