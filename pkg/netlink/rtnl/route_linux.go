package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// kernelTypes are the kernel's numbers (RTN_…).
var kernelTypes = [...]uint8{Unicast: unix.RTN_UNICAST, Unreachable: unix.RTN_UNREACHABLE, Blackhole: unix.RTN_BLACKHOLE, Prohibit: unix.RTN_PROHIBIT}

// NewRoute adds a route; EEXIST if the table has one of that destination and
// metric, whatever its link.
func NewRoute(r Route) Message {
	return routeMessage("add", unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, r)
}

// DelRoute deletes the route that is like r in all that r says; ESRCH if there
// is none.
func DelRoute(r Route) Message { return routeMessage("delete", unix.RTM_DELROUTE, 0, r) }

func routeMessage(verb string, typ, flags uint16, r Route) Message {
	fam := family(r.Dst.Addr())
	header := make([]byte, unix.SizeofRtMsg)
	header[0] = fam
	header[1] = uint8(r.Dst.Bits())
	header[4] = unix.RT_TABLE_MAIN
	header[5] = r.Proto
	header[7] = unix.RTN_UNICAST
	switch {
	case typ == unix.RTM_DELROUTE:
		header[6] = unix.RT_SCOPE_NOWHERE // whatever its scope
		header[7] = kernelTypes[r.Type]
	case r.Type != Unicast:
		header[7] = kernelTypes[r.Type]
	case fam == unix.AF_INET && !r.Gateway.IsValid() && r.Nexthop == 0:
		header[6] = unix.RT_SCOPE_LINK
	}
	m := newMessage(fmt.Sprintf("%s route %v", verb, r), typ, flags, header)
	if r.Dst.Bits() > 0 {
		m.addr(unix.RTA_DST, r.Dst.Addr())
	}
	if r.Link != 0 {
		m.b.U32(unix.RTA_OIF, uint32(r.Link))
	}
	if r.Nexthop != 0 {
		m.b.U32(rtaNexthop, r.Nexthop)
	}
	if r.Gateway.IsValid() {
		m.addr(unix.RTA_GATEWAY, r.Gateway)
	}
	if r.Src.IsValid() {
		m.addr(unix.RTA_PREFSRC, r.Src)
	}
	if r.Metric != 0 {
		m.b.U32(unix.RTA_PRIORITY, r.Metric)
	}
	return m
}

// Routes are the routes of the main table that the filter lets through, IPv6 first.
func (c *Conn) Routes(f RouteFilter) ([]Route, error) {
	var routes []Route
	for _, fam := range []uint8{unix.AF_INET6, unix.AF_INET} {
		if f.Family != 0 && f.Family != fam {
			continue
		}
		header := make([]byte, unix.SizeofRtMsg)
		header[0] = fam
		header[4] = unix.RT_TABLE_MAIN
		header[5] = f.Proto
		if f.Type != Unicast {
			header[7] = kernelTypes[f.Type]
		}
		m := newMessage("list routes", unix.RTM_GETROUTE, 0, header)
		m.b.U32(unix.RTA_TABLE, unix.RT_TABLE_MAIN)
		if f.Link != 0 {
			m.b.U32(unix.RTA_OIF, uint32(f.Link))
		}
		bodies, err := c.dump(m)
		if errors.Is(err, unix.ENOENT) {
			continue // the kernel makes IPv4's main table with the first route in it
		}
		if err != nil {
			return nil, err
		}
		for _, b := range bodies {
			r, ok, err := parseRoute(b)
			if err != nil {
				return nil, err
			}
			if ok && (f.Proto == 0 || r.Proto == f.Proto) && (f.Link == 0 || r.Link == f.Link) && (f.Type == Unicast || r.Type == f.Type) {
				routes = append(routes, r)
			}
		}
	}
	return routes, nil
}

// Lookup is the route that the kernel takes to an address, as it stands in the main table; false
// if it is of another table. Where that is not a unicast route, the error says so.
func (c *Conn) Lookup(a netip.Addr) (r Route, ok bool, err error) { return c.lookup(a, 0) }

// LookupTable is the table that the kernel finds a route to an address in, as a packet of the
// node's own.
func (c *Conn) LookupTable(a netip.Addr) (table uint32, err error) {
	body, err := c.one(lookUp(a, 0))
	if err != nil {
		return 0, err
	}
	if len(body) < unix.SizeofRtMsg {
		return 0, netlink.ErrShort
	}
	table = uint32(body[4])
	return table, netlink.Attributes(body[unix.SizeofRtMsg:], func(typ uint16, v []byte) error {
		if typ == unix.RTA_TABLE {
			table = getU32(v)
		}
		return nil
	})
}

// lookup considers only routes to a link, unless it is 0.
func (c *Conn) lookup(a netip.Addr, link int) (r Route, ok bool, err error) {
	body, err := c.one(lookUp(a, link))
	if err != nil {
		return Route{}, false, err
	}
	return parseRoute(body)
}

func lookUp(a netip.Addr, link int) Message {
	const fibMatch = 0x2000 // RTM_F_FIB_MATCH of linux/rtnetlink.h
	header := make([]byte, unix.SizeofRtMsg)
	header[0] = family(a)
	header[1] = uint8(a.BitLen())
	native.PutUint32(header[8:], fibMatch)
	m := newMessage(fmt.Sprintf("look up route to %v", a), unix.RTM_GETROUTE, 0, header)
	m.addr(unix.RTA_DST, a)
	if link != 0 {
		m.b.U32(unix.RTA_OIF, uint32(link))
	}
	return m
}

// reserved are addresses that no more specific route than a default one leads to (RFC 6890).
var reserved = []netip.Addr{netip.MustParseAddr("192.0.0.170"), netip.MustParseAddr("100:0:0:1::1")}

// IsUplink says whether a default route leads to a link.
func (c *Conn) IsUplink(link int) (bool, error) {
	for _, a := range reserved {
		r, ok, err := c.lookup(a, link)
		refusal := (*netlink.Error)(nil)
		switch {
		case errors.As(err, &refusal): // there is no route
		case err != nil:
			return false, err
		case ok && r.Type == Unicast && r.Dst.Bits() == 0 && (r.Link == link || slices.Contains(r.Links, link)):
			return true, nil
		}
	}
	return false, nil
}

// Local says whether a packet to each of the addresses would be delivered in this
// namespace.
func (c *Conn) Local(addrs []netip.Addr) (bool, error) {
	if len(addrs) == 0 {
		return true, nil
	}
	ms := make([]Message, len(addrs))
	for i, a := range addrs {
		header := make([]byte, unix.SizeofRtMsg)
		header[0] = family(a)
		header[1] = uint8(a.BitLen())
		ms[i] = newMessage(fmt.Sprintf("look up route to %v", a), unix.RTM_GETROUTE, 0, header)
		ms[i].addr(unix.RTA_DST, a)
	}
	local := 0
	errs := c.do(ms, func(_ int, b []byte) {
		if len(b) >= unix.SizeofRtMsg && b[7] == unix.RTN_LOCAL {
			local++
		}
	})
	for _, err := range errs {
		// Without any route there is none to the namespace itself either.
		if err != nil && !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
			return false, err
		}
	}
	return local == len(addrs), nil
}

// parseRoute reads one route; ok is false for those of other tables and kinds
// (local, broadcast, multicast, cached).
func parseRoute(b []byte) (r Route, ok bool, err error) {
	if len(b) < unix.SizeofRtMsg {
		return Route{}, false, netlink.ErrShort
	}
	fam, table := b[0], uint32(b[4])
	typ := slices.Index(kernelTypes[:], b[7])
	if typ < 0 {
		return Route{}, false, nil
	}
	dst := anyOf(fam)
	r = Route{Proto: b[5], Type: RouteType(typ)}
	err = netlink.Attributes(b[unix.SizeofRtMsg:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.RTA_DST:
			dst = getAddr(v)
		case unix.RTA_OIF:
			r.Link = int(getU32(v))
		case unix.RTA_GATEWAY:
			r.Gateway = getAddr(v)
		case unix.RTA_VIA: // struct rtvia, of the other family
			if len(v) > 2 {
				r.Gateway = getAddr(v[2:])
			}
		case unix.RTA_PREFSRC:
			r.Src = getAddr(v)
		case unix.RTA_PRIORITY:
			r.Metric = getU32(v)
		case unix.RTA_TABLE:
			table = getU32(v)
		case rtaNexthop:
			r.Nexthop = getU32(v)
		case unix.RTA_METRICS, unix.RTA_FLOW, unix.RTA_ENCAP_TYPE:
			r.Extra = true
		case unix.RTA_MULTIPATH:
			return r.parseMultipath(v)
		}
		return nil
	})
	r.Dst = netip.PrefixFrom(dst, int(b[1]))
	if r.Type != Unicast {
		r.Link = 0 // IPv6 says lo
	}
	cached := native.Uint32(b[8:])&unix.RTM_F_CLONED != 0
	return r, table == unix.RT_TABLE_MAIN && !cached, err
}

// parseMultipath reads the links of a chain of struct rtnexthop.
func (r *Route) parseMultipath(b []byte) error {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(native.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			return netlink.ErrShort
		}
		r.Links = append(r.Links, int(native.Uint32(b[4:])))
		b = b[min(netlink.Align(n), len(b)):]
	}
	return nil
}
