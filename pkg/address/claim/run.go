package claim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/pod"
)

const (
	// A pod that lives on after its sandbox has gone is looked at again after
	// these; most often it has just not been asked to go yet.
	firstPause, lastPause = time.Second, time.Minute
	// An API server that does not answer is asked again after these.
	firstRetry, lastRetry = 500 * time.Millisecond, 15 * time.Second
	// Between two comparisons with what the API server has there are compareLeast and up
	// to compareSpread more, so that agents that start together soon ask apart.
	compareLeast, compareSpread = 5 * time.Minute, 6 * time.Minute
)

// Run releases claims until ctx ends, however long the API server is away. At its
// start and every five to eleven minutes it holds what the API server has against what
// attachments have: a claim that no attachment has is to be released, as after a crash
// between Acquire and the record; one that is missing is made again.
func (k *Keeper) Run(ctx context.Context) {
	compare := time.Now()
	retry := backoff.Backoff{First: firstRetry, Last: lastRetry}
	var away time.Time // until when the API server is not asked
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-timer.C:
		}
		now := time.Now()
		if now.Before(away) {
			timer.Reset(away.Sub(now))
			continue
		}
		err := func() error {
			if !now.Before(compare) {
				if err := k.compare(ctx); err != nil {
					return err
				}
				compare = now.Add(compareLeast + rand.N(compareSpread))
			}
			return k.releaseDue(ctx)
		}()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			delay := retry.Next()
			k.Log.Warn("cannot release AddressClaims, will retry", "error", err, "retry", delay)
			away = now.Add(delay)
			timer.Reset(time.Until(away))
			continue
		}
		retry.Reset()
		timer.Reset(time.Until(k.next(compare)))
	}
}

// next is when a release is due, at the latest at t.
func (k *Keeper) next(t time.Time) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.holds {
		if len(h.users) == 0 && h.due.Before(t) {
			t = h.due
		}
	}
	return t
}

// releaseDue tries each release that is due. The first error that may be any claim's
// ends it.
func (k *Keeper) releaseDue(ctx context.Context) error {
	for {
		h, during := k.begin(ctx)
		if h == nil {
			return nil
		}
		done, err := k.release(during, h)
		cancelled := during.Err() != nil && ctx.Err() == nil
		k.finish(h, done)
		if err != nil && !cancelled {
			return err
		}
	}
}

// begin picks a release that is due. No Acquire takes the claim before finish.
func (k *Keeper) begin(ctx context.Context) (*hold, context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	for _, h := range k.holds {
		if len(h.users) == 0 && !h.due.After(now) {
			h.busy = make(chan struct{})
			ctx, h.cancelRelease = context.WithCancel(ctx)
			return h, ctx
		}
	}
	return nil, nil
}

func (k *Keeper) finish(h *hold, done bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if done {
		delete(k.holds, key{h.Addr, h.Pod.UID})
	}
	h.due = time.Now().Add(h.pause)
	h.pause = min(2*h.pause, lastPause)
	h.cancelRelease()
	close(h.busy)
	h.busy, h.cancelRelease = nil, nil
}

// release deletes the claim if its pod goes. done says that it did, or that there was
// nothing to delete.
func (k *Keeper) release(ctx context.Context, h *hold) (done bool, err error) {
	if !k.unwanted(h) {
		gone, err := k.gone(ctx, k.object(h.Claim))
		if err != nil || !gone {
			return false, err
		}
	}
	current, err := k.current(ctx, v1alpha1.AddressClaimName(h.Addr))
	if err != nil {
		return false, err
	}
	if current == nil || current.Spec.PodUID != string(h.Pod.UID) {
		return true, nil
	}
	k.setState(h, deleting)
	if err := k.end(ctx, current); err != nil {
		return false, err
	}
	k.Log.Info("AddressClaim released", "address", h.Addr, "pod", h.Pod)
	return true, nil
}

func (k *Keeper) unwanted(h *hold) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return h.unwanted
}

// compare holds the API server's claims of this node against the attachments'.
func (k *Keeper) compare(ctx context.Context) error {
	granted := k.granted()
	var list []v1alpha1.AddressClaim
	err := asked(ctx, func(ctx context.Context) (err error) {
		list, err = k.API.ClaimsOf(ctx, k.Node)
		return err
	})
	if err != nil {
		return fmt.Errorf("list the AddressClaims of node %s: %w", k.Node, err)
	}
	there := map[key]bool{}
	for i := range list {
		spec := &list[i].Spec
		addr, err := netip.ParseAddr(spec.Address)
		if err != nil {
			k.Log.Error("ignoring invalid AddressClaim", "claim", list[i].Name, "error", err)
			continue
		}
		there[key{addr, pod.UID(spec.PodUID)}] = true
		k.mu.Lock()
		k.holdOf(Claim{addr, pod.Ref{Namespace: spec.PodNamespace, Name: spec.PodName, UID: pod.UID(spec.PodUID)}})
		k.mu.Unlock()
	}
	for _, h := range granted {
		if there[key{h.Addr, h.Pod.UID}] {
			continue
		}
		var held *HeldError
		switch err := k.ensure(ctx, h); {
		case errors.As(err, &held):
			k.Log.Error("address of a pod on this node is claimed by another pod", "pod", h.Pod, "error", err)
		case err != nil:
			return err
		default:
			k.Log.Warn("AddressClaim was missing, restored", "address", h.Addr, "pod", h.Pod)
		}
	}
	return nil
}

// granted are the holds that some attachment has been given.
func (k *Keeper) granted() []*hold {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*hold
	for id, h := range k.holds {
		if id.podUID == "" {
			continue // there is no pod to claim it for
		}
		for _, granted := range h.users {
			if granted {
				out = append(out, h)
				break
			}
		}
	}
	return out
}
