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
	p := h.desired.enter(a.ContainerID)
	defer h.desired.leave(a.ContainerID, p)
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
	err = w.apply(plan(wiringOf(a), have))
	if err == nil {
		err = w.awaitReady()
	}
	if err != nil {
		return Attached{}, errors.Join(err, w.undo())
	}
	h.desired.set(p, a, w.hostEnd.Index)
	return Attached{HostIfIndex: w.hostEnd.Index, HostMAC: HostMAC, PodMAC: PodMAC(a.ContainerID)}, nil
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
	if is := listed(w.hostEnd); !is.mayBeOf(a.ContainerID) {
		return &CollisionError{HostIf: a.HostIf, Owner: is.ContainerID, Alias: is.Alias}
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
	for _, c := range plan(wiringOf(a), have) {
		if have.hasEarlierLinkLocal(c) {
			continue
		}
		name := a.HostIf
		if c.where == inPod {
			name = "pod's " + a.PodIf
		}
		errs = append(errs, fmt.Errorf("%s: %s", name, c.what))
	}
	return errors.Join(errs...)
}
