// Package conntrack deletes flows that the kernel tracks.
//
// The kernel translates a flow like its first packet, as long as the flow is not idle. TCP and
// SCTP connections end by themselves when their peer is gone. A client of UDP that goes on
// sending from one port is translated to where nobody answers any more.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// Of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGet, ctDelete                         = 1, 2 // IPCTNL_MSG_CT_…
	ctaTupleOrig, ctaTupleReply             = 1, 2
	ctaFilter                               = 25
	ctaTupleIP, ctaTupleProto               = 1, 2
	ctaIPv4Src, ctaIPv6Src                  = 1, 3
	ctaIPv4Dst, ctaIPv6Dst                  = 2, 4
	ctaProtoNum                             = 1
	ctaProtoSrcPort, ctaProtoDstPort        = 2, 3
	ctaFilterOrigFlags                      = 1
	filterProtoNum, filterDstPort    uint32 = 1 << 3, 1 << 5
)

// Flow is a flow of UDP.
type Flow struct {
	// From is the client, and To is where it sends its packets.
	From, To netip.AddrPort
	// Server is who gets them, after translation.
	Server netip.AddrPort
}

// ForgetUDP deletes the flows of UDP to some ports, of any address in the calling thread's network
// namespace, that forget chooses. CAP_NET_ADMIN is needed. For each dump the kernel walks through
// its whole table, which takes milliseconds even if it is empty: ask for many ports at once.
func ForgetUDP(ports map[uint16]bool, forget func(Flow) bool) error {
	if len(ports) == 0 {
		return nil
	}
	fd, err := netlink.Open(unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	conn := netlink.NewConn(fd)
	defer conn.Close()
	var errs []error
	for _, family := range []byte{unix.AF_INET6, unix.AF_INET} {
		if err := forgetUDP(conn, family, ports, forget); err != nil {
			errs = append(errs, fmt.Errorf("conntrack: forget flows of UDP to %d ports: %w", len(ports), err))
		}
	}
	return errors.Join(errs...)
}

func forgetUDP(conn *netlink.Conn, family byte, ports map[uint16]bool, forget func(Flow) bool) error {
	begin := func(typ, flags uint16) (r netlink.Request) {
		r.Begin(unix.NFNL_SUBSYS_CTNETLINK<<8|typ, flags, family, unix.NFNETLINK_V0, 0, 0)
		return r
	}
	r := begin(ctGet, unix.NLM_F_DUMP)
	filter := filterProtoNum
	r.Nest(ctaTupleOrig, func() {
		r.Nest(ctaTupleProto, func() {
			r.U8(ctaProtoNum, unix.IPPROTO_UDP)
			if len(ports) > 1 {
				return // the kernel filters by one
			}
			for port := range ports {
				filter |= filterDstPort
				r.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, port))
			}
		})
	})
	r.Nest(ctaFilter, func() { r.U32(ctaFilterOrigFlags, filter) })
	r.End(0)
	var chosen [][]byte
	_, err := conn.Ask(r, func(m netlink.Message) error {
		tuple, flow, udp, err := parse(m.Body)
		// A kernel before 5.8 passes over the filter.
		if err == nil && udp && ports[flow.To.Port()] && forget(flow) {
			chosen = append(chosen, tuple)
		}
		return err
	})
	errs := []error{err}
	for _, tuple := range chosen {
		r := begin(ctDelete, unix.NLM_F_ACK)
		r.Nest(ctaTupleOrig, func() { r = append(r, tuple...) })
		r.End(0)
		if _, err := conn.Ask(r, func(netlink.Message) error { return nil }); !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// parse reads a flow out of a message of a dump. Tuple is the attribute that names it.
func parse(body []byte) (tuple []byte, flow Flow, udp bool, err error) {
	const header = 4 // struct nfgenmsg
	if len(body) < header {
		return nil, flow, false, netlink.ErrShort
	}
	err = netlink.Attributes(body[header:], func(typ uint16, v []byte) (err error) {
		switch typ {
		case ctaTupleOrig:
			tuple = append([]byte(nil), v...)
			flow.From, flow.To, udp, err = parseTuple(v)
		case ctaTupleReply:
			flow.Server, _, _, err = parseTuple(v)
		}
		return err
	})
	return tuple, flow, udp, err
}

// parseTuple reads the ends of one direction of a flow.
func parseTuple(tuple []byte) (src, dst netip.AddrPort, udp bool, err error) {
	var from, to netip.Addr
	var fromPort, toPort uint16
	err = netlink.Attributes(tuple, func(outer uint16, v []byte) error {
		return netlink.Attributes(v, func(inner uint16, v []byte) error {
			switch {
			case outer == ctaTupleIP && (inner == ctaIPv4Src || inner == ctaIPv6Src):
				from, _ = netip.AddrFromSlice(v)
			case outer == ctaTupleIP && (inner == ctaIPv4Dst || inner == ctaIPv6Dst):
				to, _ = netip.AddrFromSlice(v)
			case outer == ctaTupleProto && inner == ctaProtoNum && len(v) == 1:
				udp = v[0] == unix.IPPROTO_UDP
			case outer == ctaTupleProto && inner == ctaProtoSrcPort && len(v) == 2:
				fromPort = binary.BigEndian.Uint16(v)
			case outer == ctaTupleProto && inner == ctaProtoDstPort && len(v) == 2:
				toPort = binary.BigEndian.Uint16(v)
			}
			return nil
		})
	})
	return netip.AddrPortFrom(from, fromPort), netip.AddrPortFrom(to, toPort), udp, err
}
