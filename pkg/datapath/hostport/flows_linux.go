package hostport

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/netlink"
)

// Of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGet, ctDelete               = 1, 2 // IPCTNL_MSG_CT_…
	ctaTupleOrig, ctaFilter       = 1, 25
	ctaTupleIP, ctaTupleProto     = 1, 2
	ctaIPv4Dst, ctaIPv6Dst        = 2, 4
	ctaProtoNum, ctaProtoDstPort  = 1, 3
	ctaFilterOrigFlags            = 1
	filterProtoNum, filterDstPort = 1 << 3, 1 << 5
)

// forgetFlows makes the kernel decide again for UDP flows to ports of the node: it
// translates a flow like its first packet, as long as the flow is not idle. A client
// that goes on sending would be translated to a pod that is gone, or not at all.
// Connections of TCP and SCTP end by themselves.
func (p *Ports) forgetFlows(bindings ...Binding) error {
	ports := map[uint16]bool{}
	for _, b := range bindings {
		for _, port := range b.Ports {
			if port.Protocol == "udp" {
				ports[port.HostPort] = true
			}
		}
	}
	if len(ports) == 0 {
		return nil
	}
	return netns.Do(p.netns, func() error {
		local, err := localAddrs()
		if err != nil {
			return err
		}
		fd, err := netlink.Open(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		conn := netlink.NewConn(fd)
		defer conn.Close()
		var errs []error
		for port := range ports {
			for _, family := range []byte{unix.AF_INET6, unix.AF_INET} {
				errs = append(errs, forget(conn, family, port, local))
			}
		}
		return errors.Join(errs...)
	})
}

// localAddrs are the addresses of the calling thread's network namespace.
func localAddrs() (map[netip.Addr]bool, error) {
	addrs, err := sys.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	local := map[netip.Addr]bool{}
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			local[prefix.Addr().Unmap()] = true
		}
	}
	return local, nil
}

// forget deletes conntrack's entries of UDP flows to a port of local addresses.
func forget(conn *netlink.Conn, family byte, port uint16, local map[netip.Addr]bool) error {
	begin := func(typ, flags uint16) (r netlink.Request) {
		r.Begin(unix.NFNL_SUBSYS_CTNETLINK<<8|typ, flags, family, unix.NFNETLINK_V0, 0, 0)
		return r
	}
	r := begin(ctGet, unix.NLM_F_DUMP)
	r.Nest(ctaTupleOrig, func() {
		r.Nest(ctaTupleProto, func() {
			r.U8(ctaProtoNum, unix.IPPROTO_UDP)
			r.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, port))
		})
	})
	r.Nest(ctaFilter, func() { r.U32(ctaFilterOrigFlags, filterProtoNum|filterDstPort) })
	r.End(0)
	var tuples [][]byte
	_, err := conn.Ask(r, func(m netlink.Message) error {
		if len(m.Body) < 4 {
			return netlink.ErrShort
		}
		return netlink.Attributes(m.Body[4:], func(typ uint16, v []byte) error {
			if typ != ctaTupleOrig {
				return nil
			}
			// A kernel before 5.8 passes over the filter.
			dst, proto, dport, err := parseTuple(v)
			if err == nil && proto == unix.IPPROTO_UDP && dport == port && local[dst] {
				tuples = append(tuples, append([]byte(nil), v...))
			}
			return err
		})
	})
	errs := []error{err}
	for _, tuple := range tuples {
		r := begin(ctDelete, unix.NLM_F_ACK)
		r.Nest(ctaTupleOrig, func() { r = append(r, tuple...) })
		r.End(0)
		if _, err := conn.Ask(r, func(netlink.Message) error { return nil }); !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// parseTuple reads where a flow's first packet went.
func parseTuple(tuple []byte) (dst netip.Addr, proto byte, port uint16, err error) {
	err = netlink.Attributes(tuple, func(outer uint16, v []byte) error {
		return netlink.Attributes(v, func(inner uint16, v []byte) error {
			switch {
			case outer == ctaTupleIP && (inner == ctaIPv4Dst || inner == ctaIPv6Dst):
				dst, _ = netip.AddrFromSlice(v)
			case outer == ctaTupleProto && inner == ctaProtoNum && len(v) == 1:
				proto = v[0]
			case outer == ctaTupleProto && inner == ctaProtoDstPort && len(v) == 2:
				port = binary.BigEndian.Uint16(v)
			}
			return nil
		})
	})
	return dst, proto, port, err
}
