package wiring

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// A host end's name is what the source guard, policies and records know it by. A link that
// another program has renamed gets its name back before anybody takes it for gone: it is
// known by its index while the agent runs, and by its MAC and its alias when it starts.

// restoreNames renames such links, and corrects them in the list. unnamed are the indexes of
// those that it could not rename.
func (h *Host) restoreNames(links []rtnl.Link) (repairs []datapath.Repair, unnamed []int, err error) {
	byIndex := h.desired.names()
	var errs []error
	for i, l := range links {
		name := properName(l, byIndex)
		if name == "" || name == l.Name {
			continue
		}
		if _, err := h.nameAgain(l.Index, name); err != nil {
			unnamed, errs = append(unnamed, l.Index), append(errs, err)
			continue
		}
		links[i].Name = name
		repairs = append(repairs, datapath.Repair{Kind: kernel.Link, Object: "name dev " + name, Found: l.Name})
	}
	return repairs, unnamed, errors.Join(errs...)
}

// properName is the name that a host end should have; empty if the link is not one.
func properName(l rtnl.Link, byIndex map[int]string) string {
	if l.Kind != "veth" || kernel.IsReleased(l.Group) {
		return ""
	}
	if name := byIndex[l.Index]; name != "" { // the kernel counts on: no later link has it
		return name
	}
	if id, _ := kernel.ParseAlias(l.Alias); id != "" && MAC(l.MAC) == HostMAC && !kernel.IsLink(l.Name) {
		return HostIfName(id)
	}
	return ""
}

// findRenamed is the host end that should have a name and has another, after it got its name
// back; ENODEV if there is none. index is 0 if it is not known.
func (h *Host) findRenamed(index int, name string) (rtnl.Link, error) {
	if index != 0 {
		return h.nameAgain(index, name)
	}
	links, err := h.conn.Links("veth")
	if err != nil {
		return rtnl.Link{}, err
	}
	if _, _, err := h.restoreNames(links); err != nil {
		return rtnl.Link{}, err
	}
	return h.conn.LinkByName(name)
}

// nameAgain renames a host end; ENODEV if there is none of that index.
func (h *Host) nameAgain(index int, name string) (rtnl.Link, error) {
	l, err := h.conn.LinkByIndex(index)
	if err != nil {
		return l, err
	}
	if l.Kind != "veth" {
		return rtnl.Link{}, fmt.Errorf("link %d is not flock's: %w", index, unix.ENODEV)
	}
	for _, err := range h.exec(h.conn, []rtnl.Message{rtnl.SetLink(index, rtnl.LinkChange{Name: &name})}) {
		if err != nil {
			return l, fmt.Errorf("another program renamed host interface %s to %s, and it cannot get its name back; run: ip link set %s down; ip link set %s name %s: %w", name, l.Name, l.Name, l.Name, name, err)
		}
	}
	l.Name = name
	return l, nil
}

// names are those of the wired pods' links, by index.
func (d *desired) names() map[int]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := make(map[int]string, len(d.pods))
	for _, p := range d.pods {
		if p.wired && p.index != 0 {
			names[p.index] = p.attachment.HostIf
		}
	}
	return names
}
