package rtnl

import (
	"fmt"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// Of linux/ip.h and linux/ipv6.h. IPv4's are numbered from 1.
const (
	ipv4Forwarding  = 1
	ipv4RPFilter    = 8
	ipv6Forwarding  = 0
	ipv6AcceptRA    = 3
	ipv6DisableIPv6 = 26

	rtextFilterSkipStats = 1 << 3
	iflaInet6Conf        = 2
	iflaInet6AddrGenMode = 8
)

// NewVeth creates both ends in place, both down; it fails with EEXIST if either
// name is taken.
func NewVeth(p VethPair) Message {
	m := newMessage(fmt.Sprintf("create link %s with peer %s", p.Name, p.PeerName),
		unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg))
	end := func(name string, mac [6]byte) {
		m.b.Str(unix.IFLA_IFNAME, name)
		m.b.Bytes(unix.IFLA_ADDRESS, mac[:])
		// A queue per possible CPU is the kernel's default. Each costs objects in
		// sysfs at creation and deletion, and a veth, which sends without locks
		// and receives by the CPU's backlog, gains nothing from them.
		m.b.U32(unix.IFLA_NUM_TX_QUEUES, 1)
		m.b.U32(unix.IFLA_NUM_RX_QUEUES, 1)
		if p.MTU != 0 {
			m.b.U32(unix.IFLA_MTU, uint32(p.MTU))
		}
	}
	end(p.Name, p.MAC)
	m.b.Nest(unix.IFLA_LINKINFO, func() {
		m.b.Str(unix.IFLA_INFO_KIND, "veth")
		m.b.Nest(unix.IFLA_INFO_DATA, func() {
			m.b.Nest(vethInfoPeer, func() {
				m.b = append(m.b, make([]byte, unix.SizeofIfInfomsg)...)
				end(p.PeerName, p.PeerMAC)
				m.b.U32(unix.IFLA_NET_NS_FD, uint32(p.PeerNetns.Fd()))
			})
		})
	})
	return m
}

// NewLink creates a link of a kind that needs nothing else ("dummy"), down; EEXIST if the
// name is taken, EOPNOTSUPP if the kernel has no such kind.
func NewLink(kind, name string) Message {
	m := newMessage(fmt.Sprintf("create %s link %s", kind, name), unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg))
	m.b.Str(unix.IFLA_IFNAME, name)
	m.b.Nest(unix.IFLA_LINKINFO, func() { m.b.Str(unix.IFLA_INFO_KIND, kind) })
	return m
}

const vethInfoPeer = 1 // VETH_INFO_PEER of linux/veth.h

// SetLink changes the link of an index. The kernel applies AddrGenMode and IPv4
// after Up: what must hold before the link comes up goes into a request before.
func SetLink(index int, c LinkChange) Message {
	header := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(header[4:], uint32(index))
	var flags, mask uint32
	set := func(on *bool, flag uint32) {
		if on == nil {
			return
		}
		if *on {
			flags |= flag
		}
		mask |= flag
	}
	set(c.Up, unix.IFF_UP)
	set(c.NoARP, unix.IFF_NOARP)
	native.PutUint32(header[8:], flags)
	native.PutUint32(header[12:], mask)
	m := newMessage(fmt.Sprintf("set link %d", index), unix.RTM_SETLINK, 0, header)
	if c.Name != nil {
		m.b.Str(unix.IFLA_IFNAME, *c.Name)
	}
	if c.MAC != nil {
		m.b.Bytes(unix.IFLA_ADDRESS, c.MAC[:])
	}
	if c.MTU != nil {
		m.b.U32(unix.IFLA_MTU, uint32(*c.MTU))
	}
	if c.Master != nil {
		m.b.U32(unix.IFLA_MASTER, uint32(*c.Master))
	}
	if c.Group != nil {
		m.b.U32(unix.IFLA_GROUP, *c.Group)
	}
	if c.Alias != nil {
		m.b.Bytes(unix.IFLA_IFALIAS, []byte(*c.Alias))
	}
	if c.AddrGenMode != nil || c.IPv4 != nil {
		m.b.Nest(unix.IFLA_AF_SPEC, func() {
			if c.IPv4 != nil {
				m.b.Nest(unix.AF_INET, func() {
					m.b.Nest(unix.IFLA_INET_CONF, func() {
						m.b.U32(ipv4Forwarding, c.IPv4.Forwarding)
						m.b.U32(ipv4RPFilter, c.IPv4.RPFilter)
					})
				})
			}
			if c.AddrGenMode != nil {
				m.b.Nest(unix.AF_INET6, func() { m.b.U8(iflaInet6AddrGenMode, *c.AddrGenMode) })
			}
		})
	}
	return m
}

// DelLink deletes the link of an index, and with it a veth's other end.
func DelLink(index int) Message {
	header := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(header[4:], uint32(index))
	return newMessage(fmt.Sprintf("delete link %d", index), unix.RTM_DELLINK, 0, header)
}

// DelLinkGroup deletes all links of a group (IFLA_GROUP) at once: the kernel
// waits for its readers once for all of them. ENODEV: the group has no members.
func DelLinkGroup(group uint32) Message {
	m := newMessage(fmt.Sprintf("delete links of group %#x", group), unix.RTM_DELLINK, 0, make([]byte, unix.SizeofIfInfomsg))
	m.b.U32(unix.IFLA_GROUP, group)
	return m
}

// LinkByName asks for one link; ENODEV if there is none.
func (c *Conn) LinkByName(name string) (Link, error) {
	m := getLink("link "+name, 0)
	m.b.Str(unix.IFLA_IFNAME, name)
	return c.link(m)
}

// LinkByIndex asks for one link; ENODEV if there is none.
func (c *Conn) LinkByIndex(index int) (Link, error) {
	return c.link(getLink(fmt.Sprintf("link %d", index), index))
}

func (c *Conn) link(m Message) (Link, error) {
	body, err := c.one(m)
	if err != nil {
		return Link{}, err
	}
	return parseLink(body)
}

// Links are all links of a kind; all of them for an empty kind.
func (c *Conn) Links(kind string) ([]Link, error) {
	m := getLink("list links", 0)
	if kind != "" {
		m.b.Nest(unix.IFLA_LINKINFO, func() { m.b.Str(unix.IFLA_INFO_KIND, kind) })
	}
	bodies, err := c.dump(m)
	if err != nil {
		return nil, err
	}
	var links []Link
	for _, b := range bodies {
		l, err := parseLink(b)
		if err != nil {
			return nil, err
		}
		// A kernel that has no device of the kind yet does not filter by it.
		if kind == "" || l.Kind == kind {
			links = append(links, l)
		}
	}
	return links, nil
}

func getLink(what string, index int) Message {
	header := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(header[4:], uint32(index))
	m := newMessage(what, unix.RTM_GETLINK, 0, header)
	m.b.U32(unix.IFLA_EXT_MASK, rtextFilterSkipStats)
	return m
}

func parseLink(b []byte) (Link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return Link{}, netlink.ErrShort
	}
	flags := native.Uint32(b[8:])
	l := Link{
		Index:    int(int32(native.Uint32(b[4:]))),
		Up:       flags&unix.IFF_UP != 0,
		Running:  flags&unix.IFF_RUNNING != 0,
		Loopback: flags&unix.IFF_LOOPBACK != 0,
		NoARP:    flags&unix.IFF_NOARP != 0,
	}
	err := netlink.Attributes(b[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(v)
		case unix.IFLA_IFALIAS:
			l.Alias = unix.ByteSliceToString(v)
		case unix.IFLA_ADDRESS:
			l.MAC = getMAC(v)
		case unix.IFLA_MTU:
			l.MTU = int(getU32(v))
		case unix.IFLA_GROUP:
			l.Group = getU32(v)
		case unix.IFLA_MASTER:
			l.Master = int(getU32(v))
		case unix.IFLA_XDP:
			return netlink.Attributes(v, func(typ uint16, v []byte) error {
				l.XDP = l.XDP || typ == unix.IFLA_XDP_ATTACHED && getU8(v) != 0
				return nil
			})
		case unix.IFLA_LINK:
			l.Peer = int(getU32(v))
		case unix.IFLA_LINKINFO:
			return netlink.Attributes(v, func(typ uint16, v []byte) error {
				if typ == unix.IFLA_INFO_KIND {
					l.Kind = unix.ByteSliceToString(v)
				}
				return nil
			})
		case unix.IFLA_AF_SPEC:
			return netlink.Attributes(v, l.parseFamily)
		}
		return nil
	})
	return l, err
}

func (l *Link) parseFamily(family uint16, b []byte) error {
	// Both arrays are of 32-bit values and grow with the kernel.
	at := func(v []byte, i int) uint32 { return getU32(v[min(4*i, len(v)):]) }
	return netlink.Attributes(b, func(typ uint16, v []byte) error {
		switch {
		case family == unix.AF_INET && typ == unix.IFLA_INET_CONF:
			l.IPv4 = IPv4Conf{Forwarding: at(v, ipv4Forwarding-1), RPFilter: at(v, ipv4RPFilter-1)}
		case family == unix.AF_INET6 && typ == iflaInet6Conf:
			l.HasIPv6 = true
			l.IPv6 = IPv6Conf{
				Forwarding:  int32(at(v, ipv6Forwarding)),
				AcceptRA:    int32(at(v, ipv6AcceptRA)),
				DisableIPv6: int32(at(v, ipv6DisableIPv6)),
			}
		case family == unix.AF_INET6 && typ == iflaInet6AddrGenMode:
			l.AddrGenMode = getU8(v)
		}
		return nil
	})
}
