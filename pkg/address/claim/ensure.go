package claim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

const (
	// patience is for one answer of the API server. It takes milliseconds; the
	// runtime waits for a minute or more.
	patience = 3 * time.Second
	// attempts are made while a claim changes hands at the very moment.
	attempts = 5
	// goneLook is between looks at a claim of another node's pod that is gone, which that
	// node or flock-controller is about to release, and goneWait for how long.
	goneLook, goneWait = 100 * time.Millisecond, 2 * time.Second
)

// ensure creates the claim if it is missing. It takes over a claim of a pod of this node
// that is gone, and waits a moment for one of another node.
func (k *Keeper) ensure(ctx context.Context, h *hold) error {
	deadline := time.Now().Add(goneWait)
	for {
		err := k.tryEnsure(ctx, h)
		var held *HeldError
		if !errors.As(err, &held) || !held.Gone || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(goneLook):
		}
	}
}

func (k *Keeper) tryEnsure(ctx context.Context, h *hold) error {
	name := v1alpha1.AddressClaimName(h.Addr)
	for range attempts {
		err := asked(ctx, func(ctx context.Context) error { return k.API.CreateClaim(ctx, k.object(h.Claim)) })
		if err == nil {
			k.setState(h, ours)
			return nil
		}
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("the API server does not know AddressClaims, without which no address of an AddressPool can be given: apply flock's CRDs (deploy/chart/base/crds): %w", err)
		}
		if !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("claim %s: %w", name, err)
		}
		current, err := k.current(ctx, name)
		if err != nil {
			return err
		}
		if current == nil {
			k.setState(h, unknown)
			continue // gone since
		}
		switch mine := current.Spec.PodUID == string(h.Pod.UID); {
		case mine && current.Spec.QuarantinedUntil != nil:
			if taken, err := k.inherit(ctx, h, current); taken || err != nil {
				return err
			}
			continue
		case mine && !k.is(h, deleting):
			k.setState(h, ours)
			return nil
		case mine && k.quarantine(h.Addr) > 0:
			// What may be on its way, to end the claim or to begin its quarantine, names this
			// version, not the next.
			if begun, err := k.setQuarantine(ctx, current); err != nil {
				return err
			} else if begun {
				continue
			}
		case mine:
			// The deletion that may be on its way names this object, not the next.
		default:
			k.setState(h, unknown)
			if err := heldByService(h.Addr, current); err != nil {
				return err
			}
			held := &HeldError{Addr: h.Addr, Pod: current.Spec.PodNamespace + "/" + current.Spec.PodName, Node: current.Spec.NodeName}
			if until := current.Spec.QuarantinedUntil; until != nil {
				if current.Spec.PodNamespace == h.Pod.Namespace && current.Spec.Workload == h.Workload && h.Workload != "" {
					if taken, err := k.inherit(ctx, h, current); taken || err != nil {
						return err
					}
					continue
				}
				if time.Now().Before(until.Time) {
					held.Until = until.Time
					return held
				}
				held.Gone = true
			} else if held.Gone, err = k.gone(ctx, current); err != nil {
				return err
			}
			if !held.Gone || held.Node != k.Node {
				return held
			}
			if current.Spec.QuarantinedUntil == nil && k.quarantine(h.Addr) > 0 {
				if begun, err := k.setQuarantine(ctx, current); err != nil {
					return err
				} else if begun {
					continue
				}
			}
			k.Log.Info("taking over the claim of a pod that is gone", "address", h.Addr,
				"pod", h.Pod, "from", current.Spec.PodNamespace+"/"+current.Spec.PodName, "node", current.Spec.NodeName)
		}
		if err := k.end(ctx, current); err != nil {
			return err
		}
		k.setState(h, unknown)
	}
	return fmt.Errorf("claim %s: other agents keep creating and deleting it: %w", name, ErrUnavailable)
}

// gone says whether the claim's pod does not need it any more; see the package's
// comment for the difference that its node makes.
func (k *Keeper) gone(ctx context.Context, c *v1alpha1.AddressClaim) (bool, error) {
	pod, err := podOf(ctx, k.API, c)
	if err != nil || pod == nil {
		return err == nil, err
	}
	going := pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	return going && k.detached(c), nil
}

// podOf returns the pod that the claim names as it is now; nil if it is gone, or another has
// its name.
func podOf(ctx context.Context, api podReader, c *v1alpha1.AddressClaim) (pod *corev1.Pod, err error) {
	err = asked(ctx, func(ctx context.Context) (err error) {
		pod, err = api.GetPod(ctx, c.Spec.PodNamespace, c.Spec.PodName)
		return err
	})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("claim %s: cannot look up pod %s/%s: %w", c.Name, c.Spec.PodNamespace, c.Spec.PodName, err)
	}
	if !IsOf(c, pod.UID, pod.Annotations) {
		return nil, nil
	}
	return pod, nil
}

type podReader interface {
	GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
}

// IsOf says whether a pod of the claim's name, with this UID and these annotations, is the
// one that has the claim. A static pod has the kubelet's UID, which its mirror names.
func IsOf(c *v1alpha1.AddressClaim, uid types.UID, annotations map[string]string) bool {
	return cmp.Or(annotations[corev1.MirrorPodAnnotationKey], string(uid)) == c.Spec.PodUID
}

// detached says whether this node, which alone can know, has no attachment of the pod.
func (k *Keeper) detached(c *v1alpha1.AddressClaim) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c.Spec.NodeName != k.Node {
		return false
	}
	for id, h := range k.holds {
		if (string(id.podUID) == c.Spec.PodUID || id.podUID == "") && v1alpha1.AddressClaimName(id.addr) == c.Name && len(h.users) > 0 {
			return false
		}
	}
	return true
}

// current returns the claim of that name, or nil.
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

// end deletes this very claim as it is. That it is gone, or is another, is no error.
func (k *Keeper) end(ctx context.Context, c *v1alpha1.AddressClaim) error {
	err := asked(ctx, func(ctx context.Context) error { return k.API.DropClaim(ctx, c) })
	if err == nil || changed(err) {
		return nil
	}
	return fmt.Errorf("claim %s: %w", c.Name, err)
}

// changed says that an object is not there any more, or not as it was.
func changed(err error) bool { return apierrors.IsNotFound(err) || apierrors.IsConflict(err) }

// setQuarantine begins the quarantine of the address whose claim this is; see quarantine. That the
// claim is gone, or is another, is no error.
func (k *Keeper) setQuarantine(ctx context.Context, c *v1alpha1.AddressClaim) (begun bool, err error) {
	addr, err := netip.ParseAddr(c.Spec.Address)
	if err != nil {
		return false, err
	}
	begun, err = quarantine(ctx, k.API, c, k.quarantine(addr))
	if changed(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("claim %s: %w", c.Name, err)
	}
	return begun, nil
}

// quarantine has a claim be in quarantine for so long from now on. begun is false if the API server
// has not kept that: its CRDs are of an earlier version, which knows no quarantine.
func quarantine(ctx context.Context, api interface {
	UpdateClaim(context.Context, *v1alpha1.AddressClaim) (*v1alpha1.AddressClaim, error)
}, c *v1alpha1.AddressClaim, rest time.Duration) (begun bool, err error) {
	c = c.DeepCopy()
	// Its seconds are whole: it would end early if they were cut off.
	c.Spec.QuarantinedUntil = &metav1.Time{Time: time.Now().Add(rest + time.Second - 1).Truncate(time.Second)}
	err = asked(ctx, func(ctx context.Context) error {
		c, err := api.UpdateClaim(ctx, c)
		begun = err == nil && c.Spec.QuarantinedUntil != nil
		return err
	})
	return begun, err
}

// inherit makes a claim in quarantine that of h; taken is false if it has changed meanwhile.
func (k *Keeper) inherit(ctx context.Context, h *hold, c *v1alpha1.AddressClaim) (taken bool, err error) {
	mine := k.object(h.Claim)
	mine.UID, mine.ResourceVersion = c.UID, c.ResourceVersion
	k.mu.Lock()
	h.inherited = true // before: it may be done without an answer
	k.mu.Unlock()
	err = asked(ctx, func(ctx context.Context) error { _, err := k.API.UpdateClaim(ctx, mine); return err })
	if changed(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("claim %s: %w", c.Name, err)
	}
	k.setState(h, ours)
	return true, nil
}

// quarantine of the address in this keeper's configuration.
func (k *Keeper) quarantine(addr netip.Addr) time.Duration {
	if k.Quarantine == nil {
		return 0
	}
	return k.Quarantine(addr)
}

func (k *Keeper) is(h *hold, state claimState) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return h.state == state
}

func (k *Keeper) setState(h *hold, state claimState) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h.state = state
}

func (k *Keeper) object(c Claim) *v1alpha1.AddressClaim {
	return &v1alpha1.AddressClaim{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AddressClaimName(c.Addr)},
		Spec: v1alpha1.AddressClaimSpec{
			Address:      c.Addr.String(),
			PodNamespace: c.Pod.Namespace,
			PodName:      c.Pod.Name,
			PodUID:       string(c.Pod.UID),
			NodeName:     k.Node,
			Workload:     c.Workload,
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
