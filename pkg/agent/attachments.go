//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/annotation"
	"flock.fritzlab.net/flock/pkg/anycast"
	"flock.fritzlab.net/flock/pkg/claim"
	"flock.fritzlab.net/flock/pkg/cni"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/ledger"
	"flock.fritzlab.net/flock/pkg/sourceguard"
	"flock.fritzlab.net/flock/pkg/store"
	"flock.fritzlab.net/flock/pkg/wiring"
)

// serving is what a pod's attachment takes from the node. It is replaced as a
// whole, so a call sees one configuration from beginning to end.
type serving struct {
	node      config.Node
	nodeAddrs []netip.Addr // of the node's own interfaces
	mtu       int          // bytes
}

// Add implements cni.Backend: plan, promise, wire, commit, answer.
func (a *Agent) Add(ctx context.Context, c *cni.Call) (_ *cni.Result, err error) {
	defer a.metrics.call(cni.CommandAdd, time.Now(), &err)
	if a.serving.Load() == nil {
		return nil, cni.TryAgainLater("%s", *a.waiting.Load())
	}
	if missing := *a.gate.missing.Load(); missing != "" {
		a.Log.Info("a pod waits until the node takes pods", "pod", c.Pod, "missing", missing)
	}
	if missing := a.gate.await(ctx); missing != "" {
		return nil, cni.TryAgainLater("pod %s: node %s takes no pods yet: %s", c.Pod, a.NodeName, missing)
	}
	s := a.serving.Load()
	record, err := a.promise(ctx, s, c)
	if err != nil {
		if later := (*cni.Error)(nil); !errors.As(err, &later) {
			a.events.Event(kube.PodRef(c.Pod), kube.Warning, "AddressRefused", "Attach", err.Error())
		}
		return nil, err
	}
	defer a.turns.take(c.ContainerID)()
	if now, ok := a.ledger.Lookup(record.ID); !ok || now.State == store.Released {
		return nil, cni.TryAgainLater("pod %s: the link of an earlier ADD for container %s went away just now", c.Pod, c.ContainerID)
	}
	// Before the link is there, so that the pod's first packet is its own.
	err = a.guard.Set(binding(record))
	var attached wiring.Attached
	if err == nil {
		attached, err = a.host.Attach(c.NetNS, attachment(record))
	}
	if err != nil {
		err = fmt.Errorf("pod %s: %w", c.Pod, err)
		if record.State == store.Pending {
			err = errors.Join(err, a.release(record.ID))
		}
		return nil, err
	}
	if err := a.ledger.Commit(record.ID); err != nil {
		return nil, fmt.Errorf("pod %s: %w", c.Pod, errors.Join(err, a.release(record.ID)))
	}
	if len(record.Anycast) > 0 {
		a.anycast.Tell(a.announcer(record, attached.HostIfIndex))
		a.anycastHeld.give()
	}
	a.Log.Info("pod attached", "pod", c.Pod, "hostIf", record.HostIf, "addresses", addrs(record))
	return result(record, attached), nil
}

// promise returns the attachment's record, a new one or that of an earlier ADD.
func (a *Agent) promise(ctx context.Context, s *serving, c *cni.Call) (store.Record, error) {
	if known, ok := a.ledger.Lookup(id(c.Attachment())); ok && known.State != store.Released {
		return known, nil
	}
	plan, w, err := a.plan(ctx, s, c)
	if err != nil {
		return store.Record{}, err
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := a.ledger.AwaitFree(wait, static(plan)); err != nil {
		return store.Record{}, cni.TryAgainLater("pod %s: an address it asks for is still held: %w", c.Pod, err)
	}
	attachment := id(c.Attachment())
	if err := a.claims.Acquire(ctx, attachment.String(), claims(plan, c.Pod)); errors.Is(err, claim.ErrUnavailable) {
		return store.Record{}, cni.TryAgainLater("pod %s: %w", c.Pod, err)
	} else if err != nil {
		return store.Record{}, fmt.Errorf("pod %s: annotation %s: %w", c.Pod, annotation.Addresses, err)
	}
	mtu := s.mtu
	if c.Config.MTU != 0 {
		mtu = c.Config.MTU
	}
	retired := a.ledger.Retired()
	record, _, err := a.ledger.Promise(store.Record{
		ID:           attachment,
		PodNamespace: c.Pod.Namespace,
		PodName:      c.Pod.Name,
		PodUID:       c.Pod.UID,
		HostIf:       wiring.HostIfName(c.ContainerID),
		MTU:          mtu,
	}, plan, w)
	a.routeRetired(retired)
	if err != nil {
		a.claims.Release(attachment.String())
	}
	if taken := (*ledger.HostIfError)(nil); errors.As(err, &taken) {
		if taken.Holder.ContainerID == c.ContainerID {
			return record, cni.InvalidEnvironment("CNI_IFNAME=%s: container %s of pod %s has interface %s of flock's: flock gives a pod one interface, so let its networks name flock once", c.IfName, c.ContainerID, c.Pod, taken.Holder.IfName)
		}
		return record, cni.TryAgainLater("pod %s: %w; the pod's next sandbox has another", c.Pod, err)
	}
	if errors.Is(err, ledger.ErrReleasing) {
		return record, cni.TryAgainLater("container %s: %w", c.ContainerID, err)
	}
	if err != nil {
		return record, fmt.Errorf("pod %s: %w", c.Pod, err)
	}
	return record, nil
}

// Del implements cni.Backend. It is done when the release is recorded and no
// packet reaches the pod any more; the link is deleted later.
func (a *Agent) Del(_ context.Context, c *cni.Call) (err error) {
	defer a.metrics.call(cni.CommandDel, time.Now(), &err)
	defer a.turns.take(c.ContainerID)()
	return a.release(id(c.Attachment()))
}

// Check implements cni.Backend.
func (a *Agent) Check(_ context.Context, c *cni.Call) error {
	record, ok := a.ledger.Lookup(id(c.Attachment()))
	if !ok || record.State != store.Committed {
		return cni.UnknownContainer("pod %s: container %s has no attachment %s on this node: delete the pod, its successor gets one", c.Pod, c.ContainerID, c.IfName)
	}
	if err := a.host.Check(c.NetNS, attachment(record)); err != nil {
		return fmt.Errorf("pod %s: %w", c.Pod, err)
	}
	return c.ComparePrevResult(result(record, wiring.Attached{HostMAC: wiring.HostMAC, PodMAC: wiring.PodMAC(record.ContainerID)}))
}

// GC implements cni.Backend.
func (a *Agent) GC(_ context.Context, _ *cni.Call, valid []cni.AttachmentID) error {
	keep := make(map[store.ID]bool, len(valid))
	for _, v := range valid {
		keep[id(v)] = true
	}
	var errs []error
	for _, r := range a.ledger.Records() {
		if !keep[r.ID] && r.State == store.Committed {
			a.Log.Info("attachment is not the runtime's any more", "pod", r.Pod(), "container", r.ContainerID)
			leave := a.turns.take(r.ContainerID)
			errs = append(errs, a.release(r.ID))
			leave()
		}
	}
	return errors.Join(errs...)
}

// Status implements cni.Backend.
func (a *Agent) Status(context.Context) error {
	if a.serving.Load() == nil {
		return cni.NotAvailable("%s", *a.waiting.Load())
	}
	return nil
}

// release gives an attachment up: recorded first, so that a crash finishes it;
// then nothing flows; then the link goes, and with it the hold on the addresses. The
// caller has the container's turn.
func (a *Agent) release(id store.ID) error {
	_, ok, err := a.ledger.Release(id)
	if err != nil || !ok {
		return err
	}
	a.anycast.Tell(anycast.Detached{ContainerID: id.ContainerID})
	link, there, err := a.host.Unroute(id.ContainerID)
	if err != nil {
		return err
	}
	if !there {
		return a.free(id.ContainerID)
	}
	a.reaper.Reap(link)
	return nil
}

// free is called when a container's link is gone, in the container's turn. Its
// addresses may be another pod's after their quarantine.
func (a *Agent) free(containerID string) error {
	for _, r := range a.ledger.Records() {
		// A pending one's link was undone; who does that decides what follows.
		if r.ContainerID != containerID || r.State == store.Pending {
			continue
		}
		retired := a.ledger.Retired()
		// First the claim, or the release might meet that of the next pod, which waits
		// for the ledger.
		a.claims.Release(r.ID.String())
		if err := a.ledger.Free(r.ID); err != nil {
			return err
		}
		a.anycastHeld.give()
		if err := a.guard.Remove(r.HostIf); err != nil {
			a.Log.Error("what a pod might send from stays allowed until the agent's next start", "hostIf", r.HostIf, "error", err)
		}
		a.Log.Info("pod detached", "pod", r.Pod(), "hostIf", r.HostIf, "addresses", addrs(r))
		a.routeRetired(retired)
	}
	return nil
}

// routeRetired has the node's summaries looked at again if the CIDRs that are out of
// the configuration but not out of use are others than before. A static address may
// be promised in the instant in which its CIDR is taken away.
func (a *Agent) routeRetired(before []netip.Prefix) {
	if !slices.Equal(a.ledger.Retired(), before) {
		a.cidrsChanged.give()
	}
}

func id(a cni.AttachmentID) store.ID {
	return store.ID{ContainerID: a.ContainerID, IfName: a.IfName}
}

// addrs are the pod's own addresses, at most one of each family.
func addrs(r store.Record) []netip.Addr {
	as := make([]netip.Addr, len(r.Addrs))
	for i, a := range r.Addrs {
		as[i] = a.Addr
	}
	return as
}

func attachment(r store.Record) wiring.Attachment {
	w := wiring.Attachment{
		ContainerID: r.ContainerID,
		HostIf:      r.HostIf,
		PodIf:       r.IfName,
		Alias:       r.Pod(),
		MTU:         r.MTU,
	}
	for _, a := range r.Held() {
		w.Addrs = append(w.Addrs, a.Addr)
		if a.CIDR.IsValid() {
			w.Routed = append(w.Routed, a.Addr)
		} else {
			w.Announced = append(w.Announced, a.Addr)
		}
	}
	for _, a := range r.Anycast {
		w.Addrs = append(w.Addrs, a.Addr)
	}
	return w
}

// binding is what r's pod may send from.
func binding(r store.Record) sourceguard.Binding {
	return sourceguard.Binding{
		HostIf:    r.HostIf,
		LinkLocal: wiring.LinkLocal(wiring.PodMAC(r.ContainerID)),
		Sources:   attachment(r).Addrs,
	}
}

// result is the same for every call about r: a retried ADD must not differ.
func result(r store.Record, attached wiring.Attached) *cni.Result {
	out := &cni.Result{
		HostIf: cni.Interface{Name: r.HostIf, MAC: attached.HostMAC[:]},
		PodIf:  cni.Interface{Name: r.IfName, MAC: attached.PodMAC[:]},
		MTU:    r.MTU,
	}
	for _, addr := range addrs(r) {
		gateway := wiring.Gateway6
		if addr.Is4() {
			gateway = wiring.Gateway4
		}
		out.Addresses = append(out.Addresses, cni.Address{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Gateway: gateway})
		out.Routes = append(out.Routes, cni.Route{Dst: netip.PrefixFrom(unspecified(addr), 0), Gateway: gateway})
	}
	return out
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
