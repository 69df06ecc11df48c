package claim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

const (
	// A pod that lives on after its sandbox has gone is looked at again after
	// these; most often it has just not been asked to go yet.
	firstPause, lastPause = time.Second, time.Minute
	// An API server that does not answer is asked again after these.
	firstRetry, lastRetry = 500 * time.Millisecond, 15 * time.Second
	// comparePeriod is between two comparisons with what the API server has; up
	// to a tenth more, so that nodes spread.
	comparePeriod = 10 * time.Minute
)

// Run gives up claims until ctx ends, however long the API server is away. At its
// start and every ten minutes it holds what the API server has against what
// attachments have: a claim that no attachment has is to be released, as after a crash
// between Acquire and the record; one that is missing is made again.
func (k *Keeper) Run(ctx context.Context) {
	compare := time.Now()
	retry := firstRetry
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
				compare = now.Add(comparePeriod + rand.N(comparePeriod/10))
			}
			return k.releaseDue(ctx)
		}()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			k.Log.Warn("claims wait to be given up", "error", err, "retry", retry)
			away = now.Add(retry)
			retry = min(2*retry, lastRetry)
			timer.Reset(time.Until(away))
			continue
		}
		retry = firstRetry
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
		cut := during.Err() != nil && ctx.Err() == nil
		k.finish(h, done)
		if err != nil && !cut {
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
			ctx, h.cut = context.WithCancel(ctx)
			return h, ctx
		}
	}
	return nil, nil
}

func (k *Keeper) finish(h *hold, done bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if done {
		delete(k.holds, key{h.Addr, h.PodUID})
	}
	h.due = time.Now().Add(h.pause)
	h.pause = min(2*h.pause, lastPause)
	h.cut()
	close(h.busy)
	h.busy, h.cut = nil, nil
}

// release gives the claim up if its pod goes; done tells that it did, or that there is
// nothing to give up.
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
	if current == nil || current.Spec.PodUID != h.PodUID {
		return true, nil
	}
	k.learn(h, doubtful)
	if err := k.end(ctx, current); err != nil {
		return false, err
	}
	k.Log.Info("claim given up", "address", h.Addr, "pod", h.PodNamespace+"/"+h.PodName)
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
			k.Log.Error("an AddressClaim is passed over", "claim", list[i].Name, "error", err)
			continue
		}
		there[key{addr, spec.PodUID}] = true
		k.mu.Lock()
		k.holdOf(Claim{addr, spec.PodNamespace, spec.PodName, spec.PodUID})
		k.mu.Unlock()
	}
	for _, h := range granted {
		if there[key{h.Addr, h.PodUID}] {
			continue
		}
		var held *HeldError
		switch err := k.secure(ctx, h); {
		case errors.As(err, &held):
			k.Log.Error("an address that a pod of this node has is claimed by another", "pod", h.PodNamespace+"/"+h.PodName, "error", err)
		case err != nil:
			return err
		default:
			k.Log.Warn("a claim was missing and is made again", "address", h.Addr, "pod", h.PodNamespace+"/"+h.PodName)
		}
	}
	return nil
}

// granted are the holds that some attachment has been given.
func (k *Keeper) granted() []*hold {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*hold
	for _, h := range k.holds {
		for _, granted := range h.users {
			if granted {
				out = append(out, h)
				break
			}
		}
	}
	return out
}
