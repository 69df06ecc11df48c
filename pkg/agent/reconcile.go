//go:build linux

package agent

import (
	"context"

	"flock.fritzlab.net/flock/pkg/anycast"
	"flock.fritzlab.net/flock/pkg/store"
	"flock.fritzlab.net/flock/pkg/wiring"
)

// reconcile holds the records against the kernel before the first call is
// served: what was half done is undone, what has gone is freed, what nobody
// knows is removed, and the host's side of the rest is put right.
func (a *Agent) reconcile() error {
	links, err := a.host.List()
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, l := range links {
		there[l.ContainerID] = there[l.ContainerID] || !l.Released
	}
	var keep []wiring.Attachment
	for _, r := range a.ledger.Records() {
		if r.State == store.Committed && there[r.ContainerID] {
			keep = append(keep, attachment(r))
		} else if _, _, err := a.ledger.Release(r.ID); err != nil {
			return err
		}
	}
	released, unrouted, err := a.host.Prune(keep)
	if err != nil {
		return err
	}
	if len(unrouted) > 0 {
		a.Log.Info("routes of no pod are removed", "routes", unrouted)
	}
	going := map[string]bool{}
	for _, l := range released {
		a.Log.Info("link of no pod is removed", "hostIf", l.HostIf, "container", l.ContainerID, "pod", l.Alias)
		going[l.ContainerID] = true
	}
	a.reaper.Reap(released...)
	for _, r := range a.ledger.Records() {
		if r.State == store.Released && !going[r.ContainerID] {
			if err := a.free(r.ContainerID); err != nil {
				return err
			}
		}
	}
	for _, k := range keep {
		mended, err := a.host.Restore(k)
		if err != nil { // one pod's trouble, if its link is not just on its way out: the others are to be served
			a.Log.Error("the host's side of a pod is not as it should be, and could not be put right; deleting the pod gets it a new one", "pod", k.Alias, "hostIf", k.HostIf, "found", mended, "error", err)
			continue
		}
		if len(mended) > 0 {
			a.Log.Warn("the host's side of a pod was changed by somebody, and is put right", "pod", k.Alias, "hostIf", k.HostIf, "found", mended)
		}
	}
	return nil
}

// followLinks frees the addresses of links that have left the kernel, also where
// nobody called DEL: the link goes with the pod's namespace.
func (a *Agent) followLinks(ctx context.Context) error {
	return a.host.WatchGone(ctx, a.linkGone, func() {
		links, err := a.host.List()
		if err != nil {
			a.Log.Error("links that are gone may hold addresses until the agent's next start", "error", err)
			return
		}
		there := map[string]bool{}
		for _, l := range links {
			there[l.ContainerID] = true
		}
		for _, r := range a.ledger.Records() {
			if !there[r.ContainerID] {
				a.linkGone(wiring.Link{HostIf: r.HostIf, ContainerID: r.ContainerID})
			}
		}
	})
}

// linkGone frees what l held, unless the container has a new link meanwhile: a
// runtime that repeats an ADD may get one before the old one's end is told.
func (a *Agent) linkGone(l wiring.Link) {
	defer a.turns.take(l.ContainerID)()
	now, err := a.host.Lookup(l.ContainerID)
	if err == nil && now.IfIndex != 0 && !now.Released {
		return
	}
	if err == nil {
		a.anycast.Tell(anycast.Detached{ContainerID: l.ContainerID})
		err = a.free(l.ContainerID)
	}
	if err != nil {
		a.Log.Error("addresses stay held until the agent's next start", "container", l.ContainerID, "error", err)
	}
}
