// Package fabric wires the members of a lab together: a top-of-rack router with a
// bridge that nodes and control plane are plugged into, a host behind it that is
// no part of the cluster, and the router's BIRD. All links run directly between
// namespaces of the lab; the machine's own never sees one.
package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/state"
)

// uplink is the interface by which a member is reached, bridge the one of the
// router that makes its ports one LAN.
const (
	uplink = "eth0"
	bridge = "lan"
)

// routerMAC is the bridge's own. Left to itself, a bridge takes the lowest of its
// ports', another one when a port comes or goes, and its neighbours lose it.
var routerMAC = net.HardwareAddr{0x02, 0x66, 0x6c, 0x00, 0x00, 0x01}

// Links has the links, addresses and default routes of the lab as planned, with
// this MTU. It may be called again and changes what differs.
func Links(dir state.Dir, nodes []plan.Node, mtu int) error {
	tor := member.Of(dir, plan.Tor)
	if err := router(tor, mtu); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	outside := cable{plan.Outside, plan.OutsideHost, plan.TorOutside, mtu, false}
	if err := outside.plug(tor, member.Of(dir, plan.Outside)); err != nil {
		return err
	}
	if err := address(tor, plan.Outside, plan.TorOutside); err != nil {
		return err
	}
	cables := []cable{{plan.ControlPlane, plan.ControlPlaneLAN, plan.TorLAN, mtu, true}}
	for _, n := range nodes {
		cables = append(cables, cable{n.Name(), n.LAN(), plan.TorLAN, mtu, true})
	}
	for _, c := range cables {
		if err := c.plug(tor, member.Of(dir, c.to)); err != nil {
			return err
		}
	}
	return nil
}

// router has the bridge and forwards.
func router(tor member.Member, mtu int) error {
	for _, s := range []struct{ path, value string }{
		{"ipv4/ip_forward", "1"},
		{"ipv6/conf/all/forwarding", "1"},
		// Node to node traffic through the router leaves where it came in;
		// the nodes are not to learn a way around it.
		{"ipv4/conf/all/send_redirects", "0"},
		{"ipv4/conf/default/send_redirects", "0"},
	} {
		if err := tor.Sysctl(s.path, s.value); err != nil {
			return err
		}
	}
	err := in(tor, func(h *netlink.Handle) error {
		if err := up(h, "lo"); err != nil {
			return err
		}
		no := false
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge, MTU: mtu, HardwareAddr: routerMAC}, MulticastSnooping: &no}
		if err := h.LinkAdd(br); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add bridge %s: %w", bridge, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := noDAD(tor, bridge); err != nil {
		return err
	}
	err = in(tor, func(h *netlink.Handle) error {
		return configure(h, bridge, mtu)
	})
	if err != nil {
		return err
	}
	if err := address(tor, bridge, plan.TorLAN); err != nil {
		return err
	}
	return acknowledgeAtOnce(tor, bridge, plan.TorLAN)
}

// acknowledgeAtOnce has the router's TCP not hold acknowledgements back for what
// comes from the link's subnets, as a router should for BGP: BIRD on the other side
// sends a second update only when the first is acknowledged, and Linux may take
// 40 ms for that on a session on which it has just spoken itself.
func acknowledgeAtOnce(m member.Member, link string, addrs plan.Addresses) error {
	return in(m, func(h *netlink.Handle) error {
		l, err := h.LinkByName(link)
		if err != nil {
			return err
		}
		for _, p := range addrs.All() {
			// The kernel's own route to the subnet, which it takes for the same.
			r := &netlink.Route{
				LinkIndex: l.Attrs().Index, Dst: ipNet(p.Masked()), Protocol: unix.RTPROT_KERNEL, QuickACK: 1,
			}
			if p.Addr().Is6() {
				r.Priority = 256
			} else {
				r.Scope, r.Src = netlink.SCOPE_LINK, p.Addr().AsSlice()
			}
			if err := h.RouteReplace(r); err != nil {
				return fmt.Errorf("%s: route to %s by %s: %w", m.Name(), p.Masked(), link, err)
			}
		}
		return nil
	})
}

// cable is a veth pair from the router to a member, called by the member's name at
// the router.
type cable struct {
	to      string
	address plan.Addresses
	gateway plan.Addresses
	mtu     int
	onLAN   bool
}

func (c cable) plug(tor, to member.Member) error {
	if err := c.add(tor, to); err != nil {
		return fmt.Errorf("link from %s to %s: %w", plan.Tor, c.to, err)
	}
	if err := noDAD(tor, c.to); err != nil {
		return err
	}
	err := in(tor, func(h *netlink.Handle) error {
		if err := configure(h, c.to, c.mtu); err != nil || !c.onLAN {
			return err
		}
		port, err := h.LinkByName(c.to)
		if err != nil {
			return err
		}
		br, err := h.LinkByName(bridge)
		if err != nil {
			return err
		}
		return h.LinkSetMaster(port, br)
	})
	if err != nil {
		return fmt.Errorf("port %s of %s: %w", c.to, plan.Tor, err)
	}
	if err := noDAD(to, uplink); err != nil {
		return err
	}
	err = in(to, func(h *netlink.Handle) error {
		if err := up(h, "lo"); err != nil {
			return err
		}
		return configure(h, uplink, c.mtu)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", c.to, err)
	}
	if err := address(to, uplink, c.address); err != nil {
		return err
	}
	return defaultRoutes(to, c.gateway)
}

// add creates the pair unless both ends exist. One end without the other is left when
// a member was replaced.
func (c cable) add(tor, to member.Member) error {
	here, err := has(tor, c.to)
	if err != nil {
		return err
	}
	there, err := has(to, uplink)
	if err != nil {
		return err
	}
	if here && there {
		return nil
	}
	if here {
		if err := remove(tor, c.to); err != nil {
			return err
		}
	}
	if there {
		if err := remove(to, uplink); err != nil {
			return err
		}
	}
	ns, err := unix.Open(to.NetNS(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	return in(tor, func(h *netlink.Handle) error {
		return h.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: c.to, MTU: c.mtu},
			PeerName:      uplink,
			PeerNamespace: netlink.NsFd(ns),
		})
	})
}

// Unplug takes the router's port of a member away that is no more.
func Unplug(dir state.Dir, name string) error {
	tor := member.Of(dir, plan.Tor)
	if there, err := has(tor, name); err != nil || !there {
		return err
	}
	return remove(tor, name)
}

func has(m member.Member, link string) (bool, error) {
	err := in(m, func(h *netlink.Handle) error {
		_, err := h.LinkByName(link)
		return err
	})
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return false, nil
	}
	return err == nil, err
}

func remove(m member.Member, link string) error {
	return in(m, func(h *netlink.Handle) error {
		l, err := h.LinkByName(link)
		if err != nil {
			return err
		}
		return h.LinkDel(l)
	})
}

// noDAD makes the link's own address usable at once: no other host can have it.
func noDAD(m member.Member, link string) error {
	return m.Sysctl("ipv6/conf/"+link+"/accept_dad", "0")
}

func configure(h *netlink.Handle, link string, mtu int) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return err
	}
	if l.Attrs().MTU != mtu {
		if err := h.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", link, mtu, err)
		}
	}
	return h.LinkSetUp(l)
}

func up(h *netlink.Handle, link string) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return err
	}
	return h.LinkSetUp(l)
}

func address(m member.Member, link string, addrs plan.Addresses) error {
	return in(m, func(h *netlink.Handle) error {
		l, err := h.LinkByName(link)
		if err != nil {
			return err
		}
		for _, p := range addrs.All() {
			a := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD | unix.IFA_F_PERMANENT}
			if err := h.AddrReplace(l, a); err != nil {
				return fmt.Errorf("%s: add %s to %s: %w", m.Name(), p, link, err)
			}
		}
		return nil
	})
}

func defaultRoutes(m member.Member, gateway plan.Addresses) error {
	return in(m, func(h *netlink.Handle) error {
		l, err := h.LinkByName(uplink)
		if err != nil {
			return err
		}
		for _, p := range gateway.All() {
			zero := netip.IPv6Unspecified()
			if p.Addr().Is4() {
				zero = netip.IPv4Unspecified()
			}
			r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.PrefixFrom(zero, 0)), Gw: p.Addr().AsSlice(), Protocol: unix.RTPROT_STATIC}
			if err := h.RouteReplace(r); err != nil {
				return fmt.Errorf("%s: default route via %s: %w", m.Name(), p.Addr(), err)
			}
		}
		return nil
	})
}

// in gives f a netlink handle into the member's network namespace.
func in(m member.Member, f func(*netlink.Handle) error) error {
	return m.InNet(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
