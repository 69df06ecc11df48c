package wiring

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/wiring/rtnl"
)

// ApplyNode makes the node what want says and returns what that took; nothing
// the second time. It changes sysctls only from off to on, and of routes only
// flock's own summaries.
func (h *Host) ApplyNode(want NodeState) ([]NodeChange, error) {
	have, err := h.nodeActual()
	if err != nil {
		return nil, err
	}
	changes := PlanNode(want, have)
	for i, c := range changes {
		if err := h.applyNode(c); err != nil {
			return changes[:i], err
		}
	}
	return changes, nil
}

func (h *Host) applyNode(c NodeChange) error {
	if c.Sysctl != "" {
		return h.in(h.netns, func() error { return writeSysctl(c.Sysctl, c.Value) })
	}
	r := rtnl.Route{Dst: c.Summary, Metric: MetricAnnounced, Proto: RouteProtocol, Unreachable: true}
	m := rtnl.NewRoute(r)
	if c.Remove {
		m = rtnl.DelRoute(r)
	}
	for _, err := range h.exec(h.conn, []rtnl.Message{m}) {
		switch {
		case c.Remove:
			err = gone(err)
		case errors.Is(err, unix.EEXIST):
			err = fmt.Errorf("summary %v: someone else's route with metric %d is in the way (ip route show %v); remove it: %w", c.Summary, MetricAnnounced, c.Summary, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) nodeActual() (NodeActual, error) {
	var have NodeActual
	routes, err := h.conn.Routes(rtnl.RouteFilter{})
	if err != nil {
		return have, err
	}
	addrs, err := h.conn.Addrs(0)
	if err != nil {
		return have, err
	}
	advertised := map[int]bool{}
	for _, r := range routes {
		switch {
		case r.Proto == RouteProtocol && r.Metric == MetricAnnounced && r.Unreachable:
			have.Summaries = append(have.Summaries, r.Dst)
		case r.Proto == unix.RTPROT_RA:
			for _, link := range append(r.Links, r.Link) {
				advertised[link] = true
			}
		}
	}
	// The default route may be gone already, dropped when another program turned
	// forwarding on; the address that came with it lasts longer.
	for _, a := range addrs {
		if a.Proto == rtnl.ProtoRouterAdvertisement {
			advertised[a.Link] = true
		}
	}
	links, err := h.conn.Links("")
	if err != nil {
		return have, err
	}
	for _, l := range links {
		if advertised[l.Index] && l.HasIPv6 && !isHostIf(l.Name) {
			have.Advertised = append(have.Advertised, AdvertisedLink{Name: l.Name, AcceptRA: int(l.IPv6.AcceptRA)})
		}
	}

	err = h.in(h.netns, func() error {
		if have.Forwarding4, _, err = readSwitch(sysctlForward4); err != nil {
			return err
		}
		have.Forwarding6, have.HasIPv6, err = readSwitch(sysctlForward6)
		return err
	})
	return have, err
}

// readSwitch reads a sysctl that is 0 or not; there is false if the kernel has
// none of that name.
func readSwitch(name string) (on, there bool, err error) {
	b, err := os.ReadFile(filepath.Join(SysctlDir(), name))
	if errors.Is(err, os.ErrNotExist) {
		return false, false, nil
	} else if err != nil {
		return false, false, fmt.Errorf("sysctl net/%s: %w", name, err)
	}
	return strings.TrimSpace(string(b)) != "0", true, nil
}

// SourceRoutesWanted tells whether the kernel drops, on all links and whatever their
// own rp_filter says, IPv4 packets whose source has no route back to where they come
// from: then net.ipv4.conf.all.rp_filter is not 0. Loose (2) is as good as strict (1)
// on links without an IPv4 address, as pods' are.
func (h *Host) SourceRoutesWanted() (wanted bool, err error) {
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

// UplinkMTU is the MTU, in bytes, that a pod's packet fits through whatever way
// it takes: the smallest of the links that default routes lead to; without a
// default route, of all links that are up, except the loopback and flock's own.
func (h *Host) UplinkMTU() (int, error) {
	links, err := h.conn.Links("")
	if err != nil {
		return 0, err
	}
	routes, err := h.conn.Routes(rtnl.RouteFilter{})
	if err != nil {
		return 0, err
	}
	uplink := map[int]bool{}
	for _, r := range routes {
		if r.Dst.Bits() == 0 && !r.Unreachable {
			for _, link := range append(r.Links, r.Link) {
				uplink[link] = true
			}
		}
	}
	byDefault, byUp := 0, 0
	for _, l := range links {
		if l.Loopback || isHostIf(l.Name) || !l.Up {
			continue
		}
		if byUp == 0 || l.MTU < byUp {
			byUp = l.MTU
		}
		if uplink[l.Index] && (byDefault == 0 || l.MTU < byDefault) {
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
