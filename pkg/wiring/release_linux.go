package wiring

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/wiring/rtnl"
)

// Unroute takes a container's link out of service at once: it is down, so that
// the kernel has dropped its routes, neighbours and addresses, and nothing flows
// in either direction. The link itself is left to [Reaper.Reap], to which the
// returned Link goes.
//
// ok is false if there is nothing to release: the link is gone, for example with
// the pod's namespace, or the name is another container's.
func (h *Host) Unroute(containerID string) (l Link, ok bool, err error) {
	k, err := h.conn.LinkByName(HostIfName(containerID))
	if errors.Is(err, unix.ENODEV) {
		return Link{}, false, nil
	} else if err != nil {
		return Link{}, false, err
	}
	l = listed(k)
	if l.ContainerID != containerID && l.ContainerID != "" {
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
	errs := h.exec(h.conn, []rtnl.Message{rtnl.SetLink(l.IfIndex, rtnl.LinkChange{Up: ptr(false), Group: ptr(uint32(releasedGroup))})})
	if errs != nil {
		return false, gone(errs[0])
	}
	return true, nil
}

// isReleased says that the link waits for its deletion.
func isReleased(k rtnl.Link) bool { return k.Group == releasedGroup || k.Group == deletedGroup }

// DeleteReleased implements [LinkDeleter]: the links go into a group of their
// own, and the group is deleted, all in one write.
func (h *Host) DeleteReleased(links []Link) ([]Link, error) {
	ms := make([]rtnl.Message, 0, len(links)+1)
	for _, l := range links {
		ms = append(ms, rtnl.SetLink(l.IfIndex, rtnl.LinkChange{Group: ptr(uint32(deletedGroup))}))
	}
	ms = append(ms, rtnl.DelLinkGroup(deletedGroup))
	var errs []error
	for _, err := range h.exec(h.deletions, ms) {
		errs = append(errs, gone(err))
	}
	var absent []Link
	for _, l := range links {
		k, err := h.deletions.LinkByIndex(l.IfIndex)
		switch {
		// An index may have been given away again, but not to a link of that
		// name that is released.
		case errors.Is(err, unix.ENODEV) || err == nil && (k.Name != l.HostIf || !isReleased(k)):
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
	var links []Link
	for _, k := range all {
		if isHostIf(k.Name) {
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
	if l := listed(k); l.ContainerID == containerID {
		return l, nil
	}
	return Link{}, nil
}

func listed(k rtnl.Link) Link {
	id, alias := parseLinkAlias(k.Alias)
	return Link{
		HostIf: k.Name, IfIndex: k.Index, ContainerID: id, Alias: alias,
		MTU: k.MTU, Released: isReleased(k),
	}
}

// Prune makes the kernel hold no more than what is known: links of other
// containers are released and returned, with those that were released already,
// for the reaper; routes of metric MetricLocal that no known attachment asks for
// are deleted and returned. It is for the agent's start, before it serves.
func (h *Host) Prune(known []Attachment) (released []Link, unrouted []netip.Prefix, err error) {
	links, err := h.List()
	if err != nil {
		return nil, nil, err
	}
	byID := make(map[string]Attachment, len(known))
	for _, a := range known {
		byID[a.ContainerID] = a
	}
	type hop struct {
		dst  netip.Prefix
		link int
	}
	wanted := map[hop]bool{}
	var errs []error
	for _, l := range links {
		a, ok := byID[l.ContainerID]
		if ok && !l.Released {
			for _, addr := range a.Routed {
				wanted[hop{hostPrefix(addr), l.IfIndex}] = true
			}
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

	routes, err := h.conn.Routes(rtnl.RouteFilter{Proto: RouteProtocol})
	if err != nil {
		return released, nil, errors.Join(append(errs, err)...)
	}
	var deletions []rtnl.Message
	for _, r := range routes {
		if r.Metric == MetricLocal && r.Nexthop == 0 && !wanted[hop{r.Dst, r.Link}] {
			deletions = append(deletions, rtnl.DelRoute(r))
			unrouted = append(unrouted, r.Dst)
		}
	}
	for _, err := range h.exec(h.conn, deletions) {
		errs = append(errs, gone(err))
	}
	return released, unrouted, errors.Join(errs...)
}
