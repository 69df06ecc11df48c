package wiring

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// TakeDown takes a container's link out of service at once: it is down, so that
// the kernel has dropped its routes, neighbours and addresses, and nothing flows
// in either direction. The link itself is left to [Reaper.Reap], to which the
// returned Link goes.
//
// ok is false if there is nothing to release: the link is gone, for example with
// the pod's namespace, or the name is another container's.
func (h *Host) TakeDown(containerID string) (l Link, ok bool, err error) {
	index := h.desired.drop(containerID)
	k, err := h.conn.LinkByName(HostIfName(containerID))
	if errors.Is(err, unix.ENODEV) { // another program may have renamed it
		k, err = h.findRenamed(index, HostIfName(containerID))
	}
	if errors.Is(err, unix.ENODEV) {
		return Link{}, false, nil
	} else if err != nil {
		return Link{}, false, err
	}
	l = listed(k)
	if !l.mayBeOf(containerID) {
		return Link{}, false, nil
	}
	if ok, err = h.release(l); err != nil {
		return Link{}, false, fmt.Errorf("host interface %s: %w", l.HostIf, err)
	}
	l.Released = ok
	return l, ok, nil
}

// release takes the link down and into the group of the released, in one
// request; false if it is gone.
func (h *Host) release(l Link) (bool, error) {
	errs := h.exec(h.conn, []rtnl.Message{rtnl.SetLink(l.IfIndex, rtnl.LinkChange{Up: ptr(false), Group: ptr(uint32(kernel.GroupReleased))})})
	if errs != nil {
		return false, ignoreNotFound(errs[0])
	}
	return true, nil
}

// DeleteReleased implements [LinkDeleter]: the links go into a group of their
// own, and the group is deleted, all in one write.
func (h *Host) DeleteReleased(links []Link) ([]Link, error) {
	ms := make([]rtnl.Message, 0, len(links)+1)
	for _, l := range links {
		ms = append(ms, rtnl.SetLink(l.IfIndex, rtnl.LinkChange{Group: ptr(uint32(kernel.GroupDeleted))}))
	}
	ms = append(ms, rtnl.DelLinkGroup(kernel.GroupDeleted))
	var errs []error
	for _, err := range h.exec(h.deletions, ms) {
		errs = append(errs, ignoreNotFound(err))
	}
	var absent []Link
	for _, l := range links {
		k, err := h.deletions.LinkByIndex(l.IfIndex)
		switch {
		// An index may have been given away again, but not to a link of that
		// name that is released.
		case errors.Is(err, unix.ENODEV) || err == nil && (k.Name != l.HostIf || !kernel.IsReleased(k.Group)):
			absent = append(absent, l)
		case err != nil:
			errs = append(errs, err)
		}
	}
	return absent, errors.Join(errs...)
}

// List is every host end in the kernel. It needs no memory of an earlier run.
func (h *Host) List() ([]Link, error) {
	all, err := h.conn.Links("veth")
	if err != nil {
		return nil, err
	}
	if _, _, err := h.restoreNames(all); err != nil {
		return nil, err
	}
	var links []Link
	for _, k := range all {
		if kernel.IsLink(k.Name) {
			links = append(links, listed(k))
		}
	}
	return links, nil
}

// Lookup is a container's link; the zero Link if it has none.
func (h *Host) Lookup(containerID string) (Link, error) {
	k, err := h.conn.LinkByName(HostIfName(containerID))
	if errors.Is(err, unix.ENODEV) {
		return Link{}, nil
	} else if err != nil {
		return Link{}, err
	}
	if l := listed(k); l.mayBeOf(containerID) {
		return l, nil
	}
	return Link{}, nil
}

func listed(k rtnl.Link) Link {
	id, alias := kernel.ParseAlias(k.Alias)
	if HostIfName(id) != k.Name { // it was overwritten
		id = ""
	}
	return Link{
		HostIf: k.Name, IfIndex: k.Index, ContainerID: id, Alias: alias,
		MTU: k.MTU, Released: kernel.IsReleased(k.Group),
	}
}

// ReleaseOthers releases the links of all containers but the known ones', and returns them for
// the reaper, with those that were released already. It is for the agent's start, before it
// serves.
func (h *Host) ReleaseOthers(known []Attachment) (released []Link, err error) {
	links, err := h.List()
	if err != nil {
		return nil, err
	}
	byHostIf := make(map[string]Attachment, len(known))
	for _, a := range known {
		byHostIf[a.HostIf] = a
	}
	var errs []error
	for _, l := range links {
		if a, ok := byHostIf[l.HostIf]; ok && l.IsOf(a) {
			continue
		}
		there, err := h.release(l)
		if err != nil {
			errs = append(errs, fmt.Errorf("host interface %s: %w", l.HostIf, err))
		}
		if there {
			l.Released = true
			released = append(released, l)
		}
	}
	return released, errors.Join(errs...)
}
