package wiring

import (
	"errors"
	"fmt"
	"os"
)

// Attach wires a sandbox to the node. Over what an earlier call left, whole or
// cut short, it ends in the same state; what it finds right it does not touch.
// If it fails it undoes what it did: a link that it made is gone, routes that it
// added to a link which was there before are.
//
// A name or a routed address that is another container's is a [CollisionError].
func (h *Host) Attach(netns *os.File, a Attachment) (Attached, error) {
	if err := a.Validate(); err != nil {
		return Attached{}, err
	}
	h.slots <- struct{}{}
	defer func() { <-h.slots }()
	pod, err := h.dial(netns)
	if err != nil {
		return Attached{}, err
	}
	defer pod.Close()

	w := wire{h: h, a: a, netns: netns, pod: pod}
	if err := w.link(); err != nil {
		return Attached{}, errors.Join(err, w.undo())
	}
	have := w.fresh()
	if !w.made {
		if have, err = w.actual(); err != nil {
			return Attached{}, err
		}
	}
	err = w.apply(plan(desired(a), have))
	if err == nil {
		err = w.awaitReady()
	}
	if err != nil {
		return Attached{}, errors.Join(err, w.undo())
	}
	return Attached{HostIfIndex: w.hostEnd.Index, HostMAC: HostMAC, PodMAC: PodMAC(a.ContainerID)}, nil
}

// Restore puts the host's side of an attachment right that was wired before; the
// pod's namespace is not needed for that. It returns what was not as it should be.
func (h *Host) Restore(a Attachment) (mended []string, err error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	w := wire{h: h, a: a}
	if w.hostEnd, err = h.conn.LinkByName(a.HostIf); err != nil {
		return nil, fmt.Errorf("host interface %s of pod %s: %w", a.HostIf, a.Alias, err)
	}
	if owner, alias := parseLinkAlias(w.hostEnd.Alias); owner != a.ContainerID {
		return nil, &CollisionError{HostIf: a.HostIf, Owner: owner, Alias: alias}
	}
	have := w.end(w.hostEnd)
	if err := w.read(h.conn, w.hostEnd.Index, &have, onHost); err != nil {
		return nil, err
	}
	changes := planEnd(onHost, desired(a).host, have)
	for _, c := range changes {
		mended = append(mended, c.what)
	}
	return mended, w.apply(changes)
}

// Check says what of the attachment's wiring is not as [Host.Attach] would leave
// it, all of it at once; nil if nothing (CNI 1.1, CHECK). Addresses and routes
// that others added to the pod are none of its business.
func (h *Host) Check(netns *os.File, a Attachment) error {
	if err := a.Validate(); err != nil {
		return err
	}
	pod, err := h.dial(netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	w := wire{h: h, a: a, netns: netns, pod: pod}
	if w.hostEnd, err = h.conn.LinkByName(a.HostIf); err != nil {
		return fmt.Errorf("host interface %s of pod %s: %w", a.HostIf, a.Alias, err)
	}
	if owner, alias := parseLinkAlias(w.hostEnd.Alias); owner != a.ContainerID {
		return &CollisionError{HostIf: a.HostIf, Owner: owner, Alias: alias}
	}
	if found, err := w.findPodEnd(); err != nil {
		return err
	} else if !found {
		return fmt.Errorf("interface %s: the other end of %s is not in network namespace %s under that name", a.PodIf, a.HostIf, netns.Name())
	}
	have, err := w.actual()
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range plan(desired(a), have) {
		name := a.HostIf
		if c.where == inPod {
			name = "pod's " + a.PodIf
		}
		errs = append(errs, fmt.Errorf("%s: %s", name, c.what))
	}
	return errors.Join(errs...)
}
