package claim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
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
	// longest is the longest quarantine that a pool can ask for.
	longest = 24 * time.Hour
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
		done, wait, err := k.release(during, h)
		cancelled := during.Err() != nil && ctx.Err() == nil
		k.finish(h, done, wait)
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

// finish ends what begin began. The next try is after wait, or after a pause that grows.
func (k *Keeper) finish(h *hold, done bool, wait time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if done {
		delete(k.holds, key{h.Addr, h.Pod.UID})
	}
	if wait > 0 {
		h.due = time.Now().Add(wait)
	} else {
		h.due = time.Now().Add(h.pause)
		h.pause = min(2*h.pause, lastPause)
	}
	h.cancelRelease()
	close(h.busy)
	h.busy, h.cancelRelease = nil, nil
}

// release begins the quarantine of the address if its pod goes, and deletes the claim when
// that is over. done says that it did, or that there was nothing to delete; wait is until the end
// of the quarantine.
func (k *Keeper) release(ctx context.Context, h *hold) (done bool, wait time.Duration, err error) {
	unwanted, inherited := k.unwanted(h)
	if !unwanted {
		gone, err := k.gone(ctx, k.object(h.Claim))
		if err != nil || !gone {
			return false, 0, err
		}
	}
	current, err := k.current(ctx, v1alpha1.AddressClaimName(h.Addr))
	if err != nil {
		return false, 0, err
	}
	if current == nil || current.Spec.PodUID != string(h.Pod.UID) {
		return true, 0, nil
	}
	k.setState(h, deleting)
	rest := k.quarantine(h.Addr)
	switch until := current.Spec.QuarantinedUntil; {
	case unwanted && !inherited: // nobody has used it
	case until != nil:
		if wait := time.Until(until.Time); wait > 0 {
			return false, min(wait, longest), nil
		}
	case rest > 0:
		if begun, err := k.setQuarantine(ctx, current); err != nil {
			return false, 0, err
		} else if begun {
			k.Log.Info("AddressClaim is in quarantine", "address", h.Addr, "pod", h.Pod, "for", rest)
			return false, rest, nil
		}
	}
	if err := k.end(ctx, current); err != nil {
		return false, 0, err
	}
	k.Log.Info("AddressClaim released", "address", h.Addr, "pod", h.Pod)
	return true, 0, nil
}

func (k *Keeper) unwanted(h *hold) (unwanted, inherited bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return h.unwanted, h.inherited
}

// compare holds the API server's claims of this node against the attachments'. Most often they
// agree, and its cache says so: for a list of its own the API server may have to read the claims
// of all nodes.
func (k *Keeper) compare(ctx context.Context) error {
	cached, err := k.list(ctx, k.API.CachedClaimsOf)
	if err != nil || k.agrees(cached) {
		return err
	}
	granted := k.granted()
	list, err := k.list(ctx, k.API.ClaimsOf)
	if err != nil {
		return err
	}
	there := map[key]bool{}
	for i := range list {
		spec := &list[i].Spec
		addr, err := netip.ParseAddr(spec.Address)
		if err != nil {
			k.Log.Error("ignoring invalid AddressClaim", "claim", list[i].Name, "error", err)
			continue
		}
		there[key{addr, pod.UID(spec.PodUID)}] = spec.QuarantinedUntil == nil
		k.mu.Lock()
		k.holdOf(Claim{addr, pod.Ref{Namespace: spec.PodNamespace, Name: spec.PodName, UID: pod.UID(spec.PodUID)}, spec.Workload})
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

func (k *Keeper) list(ctx context.Context, of func(ctx context.Context, node string) ([]v1alpha1.AddressClaim, error)) (list []v1alpha1.AddressClaim, err error) {
	err = asked(ctx, func(ctx context.Context) (err error) {
		list, err = of(ctx, k.Node)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the AddressClaims of node %s: %w", k.Node, err)
	}
	return list, nil
}

// agrees says whether the list has what attachments have been given, and nothing that is unknown
// here.
func (k *Keeper) agrees(list []v1alpha1.AddressClaim) bool {
	there := map[key]bool{}
	for i := range list {
		spec := &list[i].Spec
		addr, err := netip.ParseAddr(spec.Address)
		if err != nil {
			return false
		}
		id := key{addr, pod.UID(spec.PodUID)}
		there[id] = spec.QuarantinedUntil == nil
		k.mu.Lock()
		_, known := k.holds[id]
		k.mu.Unlock()
		if !known {
			return false
		}
	}
	return !slices.ContainsFunc(k.granted(), func(h *hold) bool { return !there[key{h.Addr, h.Pod.UID}] })
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
