package wiring

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/sysctl"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// ApplyNode makes the node what want says, keeps it so at each Sync, and returns what it took;
// nothing the second time. Of the node's own sysctls it changes only those that keep pods from
// being reached.
func (h *Host) ApplyNode(want NodeState) ([]NodeChange, error) {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	h.desired.mu.Lock()
	h.desired.node = &want
	h.desired.mu.Unlock()
	have, err := h.look()
	if err != nil {
		return nil, err
	}
	return h.applyNode(want, have.node)
}

func (h *Host) applyNode(want NodeState, have NodeActual) ([]NodeChange, error) {
	changes := PlanNode(want, have)
	for i, c := range changes {
		if err := h.changeNode(c); err != nil {
			return changes[:i], err
		}
	}
	return changes, nil
}

func (h *Host) changeNode(c NodeChange) error {
	if c.Sysctl != "" {
		return h.in(h.netns, func() error { return sysctl.Write(c.Sysctl, c.Value) })
	}
	m := rtnl.NewRoute(c.Route)
	if c.Remove {
		m = rtnl.DelRoute(c.Route)
	}
	for _, err := range h.exec(h.conn, []rtnl.Message{m}) {
		switch {
		case c.Remove:
			err = ignoreNotFound(err)
		case errors.Is(err, unix.EEXIST):
			err = fmt.Errorf("summary %v: a route of another program with metric %d is in the way (ip route show %v); delete it: %w", c.Route.Dst, c.Route.Metric, c.Route.Dst, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// advertisedLinks are the links that have a route or an address from a router advertisement.
func advertisedLinks(links []rtnl.Link, addrs []rtnl.Addr, routes []rtnl.Route) (found []AdvertisedLink) {
	advertised := map[int]bool{}
	for _, r := range routes {
		for _, link := range append(r.Links, r.Link) {
			advertised[link] = true
		}
	}
	// The default route may be gone already, dropped when another program turned forwarding
	// on; the address that came with it lasts longer.
	for _, a := range addrs {
		if a.Proto == rtnl.ProtoRouterAdvertisement {
			advertised[a.Link] = true
		}
	}
	for _, l := range links {
		if advertised[l.Index] && l.HasIPv6 && !kernel.IsLink(l.Name) {
			found = append(found, AdvertisedLink{Name: l.Name, AcceptRA: int(l.IPv6.AcceptRA)})
		}
	}
	return found
}

func (h *Host) readNodeSysctls(have *NodeActual) error {
	return h.in(h.netns, func() (err error) {
		if have.Forwarding4, _, err = readSwitch(kernel.Forward4); err != nil {
			return err
		}
		have.Forwarding6, have.HasIPv6, err = readSwitch(kernel.Forward6)
		return err
	})
}

// readSwitch reads a sysctl that is 0 or not; there is false if the kernel has none of that
// name.
func readSwitch(name string) (on, there bool, err error) {
	value, err := sysctl.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	return value != "0", err == nil, err
}

// RPFilterEnabled reports whether net.ipv4.conf.all.rp_filter is not 0. Then the kernel
// drops, on all links and independently of their own rp_filter, IPv4 packets with a
// source that has no route back to the link. On links without an IPv4 address, such as
// pods', loose (2) has the same effect as strict (1).
func (h *Host) RPFilterEnabled() (wanted bool, err error) {
	err = h.in(h.netns, func() error {
		wanted, _, err = readSwitch("ipv4/conf/all/rp_filter")
		return err
	})
	return wanted, err
}

// Addrs are the addresses of the node's own interfaces, without link-local ones
// and the loopback's.
func (h *Host) Addrs() ([]netip.Addr, error) {
	all, err := h.conn.Addrs(0)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, a := range all {
		if addr := a.Prefix.Addr(); addr.IsGlobalUnicast() {
			addrs = append(addrs, addr)
		}
	}
	return addrs, nil
}

// OnLink are the destinations of the routes to links on which neighbors are resolved: a packet to
// any address there makes an entry in the neighbor table. Also a router's advertisement makes such
// routes (RFC 4861 section 6.3.4), and whoever sets "ip route add 169.254.0.0/16 dev eth0". Flock's
// links, host routes and default routes are left out, and so are multipath routes.
func (h *Host) OnLink() ([]netip.Prefix, error) {
	links, err := h.looks.Links("")
	if err != nil {
		return nil, err
	}
	resolves := map[int]bool{}
	for _, l := range links {
		resolves[l.Index] = !l.Loopback && !l.NoARP && !kernel.IsLink(l.Name) && l.Name != kernel.ServiceLink
	}
	routes, err := h.looks.Routes(rtnl.RouteFilter{})
	if err != nil {
		return nil, err
	}
	var all []netip.Prefix
	for _, r := range routes {
		if r.Type == rtnl.Unicast && !r.Gateway.IsValid() && resolves[r.Link] &&
			r.Dst.Bits() > 0 && !r.Dst.IsSingleIP() && !r.Dst.Addr().IsMulticast() && !(r.Dst.Addr().Is6() && r.Dst.Addr().IsLinkLocalUnicast()) {
			all = append(all, r.Dst)
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all), nil
}

// UplinkMTU is the MTU, in bytes, that a pod's packet fits through whatever way
// it takes: the smallest of the links that default routes lead to; without a
// default route, of all links that are up, except the loopback and flock's own.
func (h *Host) UplinkMTU() (int, error) {
	links, err := h.conn.Links("")
	if err != nil {
		return 0, err
	}
	byDefault, byUp := 0, 0
	for _, l := range links {
		if l.Loopback || kernel.IsLink(l.Name) || l.Name == kernel.ServiceLink || !l.Up {
			continue
		}
		if byUp == 0 || l.MTU < byUp {
			byUp = l.MTU
		}
		uplink, err := h.conn.IsUplink(l.Index)
		if err != nil {
			return 0, err
		}
		if uplink && (byDefault == 0 || l.MTU < byDefault) {
			byDefault = l.MTU
		}
	}
	switch {
	case byDefault > 0:
		return byDefault, nil
	case byUp > 0:
		return byUp, nil
	}
	return 0, errors.New("uplink mtu: no link but the loopback is up; set spec.mtu in the NodeConfig or bring the uplink up")
}
