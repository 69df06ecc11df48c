//go:build linux

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/datapath/hostport"
	"flock.fritzlab.net/flock/pkg/datapath/sourceguard"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
	"flock.fritzlab.net/flock/pkg/kube"
)

// reconcile compares the records with the kernel before the first call is served. It
// undoes what was half done, frees what is gone, removes what no record knows, and
// restores the host's side of the rest.
func (a *attacher) reconcile(ctx context.Context) error {
	links, err := a.rebuild()
	if err != nil {
		return err
	}
	there := map[string]wiring.Link{} // by HostIf
	for _, l := range links {
		there[l.HostIf] = l.Link
	}
	var keep, unknown []wiring.Attachment
	var bindings []sourceguard.Binding
	var ports []hostport.Binding
	for _, r := range a.ledger.Records() {
		a.claims.Restore(r.ID.String(), claim.Of(r.Pod, r.App, r.Held()))
		if b := binding(r); b.Validate() == nil { // a link that cannot be named has no traffic either
			bindings = append(bindings, b)
		}
		switch k := attachment(r); {
		case r.State == ledger.Unknown:
			unknown, ports = append(unknown, k), append(ports, hostPorts(r))
		case r.State == ledger.Committed && there[r.HostIf].IsOf(k):
			keep, ports = append(keep, k), append(ports, hostPorts(r))
		default:
			a.ledger.Release(r.ID)
		}
	}
	// Records are in no order of time; the kernel numbers links as they come.
	slices.SortStableFunc(ports, func(a, b hostport.Binding) int { return cmp.Compare(there[a.HostIf].IfIndex, there[b.HostIf].IfIndex) })
	if err := errors.Join(a.guard.Resync(bindings), a.ports.Reset(ports)); err != nil {
		return err
	}
	released, err := a.host.ReleaseOthers(slices.Concat(keep, unknown))
	if err != nil {
		return err
	}
	going := map[string]bool{}
	for _, l := range released {
		a.log.Info("removing orphaned link", "hostIf", l.HostIf, "container", l.ContainerID, "pod", l.Alias)
		going[l.ContainerID] = true
	}
	a.reaper.Reap(released...)
	for _, r := range a.ledger.Records() {
		if r.State == ledger.Released && !going[r.ContainerID] {
			if err := a.free(ctx, r.ContainerID); err != nil {
				a.log.Error("cannot free the addresses of a pod that is gone, will retry", "pod", r.Pod, "error", err)
				a.lookAgain()
			}
		}
	}
	// One pod's trouble must not keep the others from being served.
	if err := a.host.Adopt(keep...); err != nil {
		a.log.Error("cannot restore the host side of a pod; delete the pod, its successor gets a new one", "error", err)
	}
	repairs, err := a.host.Sync(ctx)
	if err != nil {
		a.log.Error("cannot restore the host side of all pods; delete a pod, and its successor gets a new one", "error", err)
	}
	if len(repairs) > 0 {
		a.log.Warn("restored the host side of pods, which another program had changed", "found", repairs)
	}
	return nil
}

// rebuild has the ledger record the pods' links that it does not know: records may be
// lost, pods may not. It returns the links of all pods.
func (a *attacher) rebuild() ([]wiring.Observed, error) {
	links, summaries, err := a.host.Observe()
	if err != nil {
		return nil, err
	}
	ports, err := a.ports.Observed()
	if err != nil {
		return nil, err
	}
	var observed []ledger.Observed
	for _, l := range links {
		if l.ContainerID == "" && len(l.Addrs) == 0 {
			continue // its making was cut short
		}
		if l.ContainerID == "" { // another program overwrote its alias
			l.Alias = ""
		}
		o := ledger.Observed{
			ContainerID: l.ContainerID, HostIf: l.HostIf, Pod: l.Alias, MTU: l.MTU,
			Addrs: l.Addrs, Routed: l.Routed, Announced: l.Announced,
		}
		for _, addr := range l.Addrs {
			o.HostPorts = append(o.HostPorts, ports[addr]...)
		}
		observed = append(observed, o)
	}
	for _, r := range a.ledger.Rebuild(observed, summaries) {
		a.log.Warn("attachment record was missing, rebuilt from the pod's link", "pod", r.Pod, "container", r.ContainerID, "hostIf", r.HostIf, "addresses", r.All())
	}
	return links, nil
}

// followLinks frees the addresses of links that have left the kernel, also where
// there was no DEL: the link disappears with the pod's namespace.
func (a *attacher) followLinks(ctx context.Context) error {
	lost := func() {
		links, err := a.host.List()
		if err != nil {
			a.log.Error("cannot list links, will retry", "error", err)
			a.lookAgain()
			return
		}
		there := map[string]bool{}
		for _, l := range links {
			there[l.HostIf] = true
		}
		for _, r := range a.ledger.Records() {
			if !there[r.HostIf] && r.State != ledger.Unknown {
				a.linkGone(r.HostIf)
			}
		}
	}
	return together(ctx,
		func(ctx context.Context) error {
			return a.host.WatchGone(ctx, func(l wiring.Link) { a.linkGone(l.HostIf) }, lost)
		},
		func(ctx context.Context) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-a.again:
					lost()
				}
			}
		})
}

// lookAgain has followLinks compare all records with the links in a moment.
func (a *attacher) lookAgain() {
	time.AfterFunc(time.Second, func() {
		select {
		case a.again <- struct{}{}:
		default:
		}
	})
}

// linkGone frees what the link held, unless the container has a new link meanwhile: a
// runtime that repeats an ADD may get one before the kernel reports the old one's
// end. The records say whose the link was: its alias may have been overwritten.
func (a *attacher) linkGone(hostIf string) {
	for _, r := range a.ledger.Records() {
		if r.HostIf == hostIf {
			a.containerGone(r.ContainerID)
		}
	}
}

// reportLost says that a pod's link has gone before the runtime has ended the pod. It cannot be
// repaired: the pod's end of it went too.
func (a *attacher) reportLost(containerID string) {
	for _, r := range a.ledger.Records() {
		if r.ContainerID != containerID || r.State != ledger.Committed {
			continue
		}
		a.log.Warn("a pod's link was deleted or moved away before the end of the pod; if the pod still runs it has no network, so delete it", "pod", r.Pod, "hostIf", r.HostIf)
		if r.Pod.Name != "" {
			a.events.Event(r.Pod, kube.Warning, "LinkLost", "Detach", fmt.Sprintf("host interface %s was deleted or moved to another network namespace before the end of the pod: the pod has no network; delete it, and its successor gets a new link", r.HostIf))
		}
	}
}

func (a *attacher) containerGone(containerID string) {
	defer a.lock(containerID)()
	now, err := a.host.Lookup(containerID)
	if err == nil && now.IfIndex != 0 && !now.Released {
		return
	}
	if err == nil {
		a.reportLost(containerID)
		a.announcer.detached(containerID)
		err = a.free(context.Background(), containerID)
	}
	if err != nil {
		a.log.Error("cannot free the addresses of a deleted link, will retry", "container", containerID, "error", err)
		a.lookAgain()
	}
}
