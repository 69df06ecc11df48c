package rtnl

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// Of linux/fib_rules.h.
const (
	fibRuleInvert = 0x2
	sizeofRuleHdr = 12

	fraDst, fraSrc, fraIifName, fraPriority, fraTable, fraOifName = 1, 2, 3, 6, 15, 17
	fraSuppressPrefixLen                                          = 14
	fraSuppressGroup                                              = 13
)

// selectors are those attributes of a rule that narrow it and are not read: marks, flows, users,
// protocols and ports.
var selectors = map[uint16]bool{10: true, 11: true, 16: true, 20: true, 22: true, 23: true, 24: true, 25: true, 27: true}

// Rules are the rules of both families, in order of priority, IPv6 first.
func (c *Conn) Rules() (rules []Rule, err error) {
	for _, fam := range []uint8{unix.AF_INET6, unix.AF_INET} {
		header := make([]byte, sizeofRuleHdr)
		header[0] = fam
		bodies, err := c.dump(newMessage("list rules", unix.RTM_GETRULE, 0, header))
		if err != nil {
			return nil, err
		}
		for _, b := range bodies {
			r, err := parseRule(b)
			if err != nil {
				return nil, err
			}
			rules = append(rules, r)
		}
	}
	return rules, nil
}

func parseRule(b []byte) (Rule, error) {
	if len(b) < sizeofRuleHdr {
		return Rule{}, netlink.ErrShort
	}
	r := Rule{IPv6: b[0] == unix.AF_INET6, Table: uint32(b[4]), Action: b[7]}
	r.Selective = b[3] != 0 || native.Uint32(b[8:])&fibRuleInvert != 0 // of a type of service
	prefix := func(v []byte, bits byte) netip.Prefix { return netip.PrefixFrom(getAddr(v), int(bits)) }
	suppress := func(v []byte) bool { return getU32(v) != ^uint32(0) }
	err := netlink.Attributes(b[sizeofRuleHdr:], func(typ uint16, v []byte) error {
		switch typ {
		case fraDst:
			r.Dst = prefix(v, b[1])
		case fraSrc:
			r.Src = prefix(v, b[2])
		case fraIifName:
			r.In = unix.ByteSliceToString(v)
		case fraOifName:
			r.Out = unix.ByteSliceToString(v)
		case fraPriority:
			r.Priority = getU32(v)
		case fraTable:
			r.Table = getU32(v)
		case fraSuppressPrefixLen, fraSuppressGroup:
			r.Selective = r.Selective || suppress(v)
		default:
			r.Selective = r.Selective || selectors[typ]
		}
		return nil
	})
	return r, err
}

// Qdiscs are those of all links.
func (c *Conn) Qdiscs() (all []Qdisc, err error) {
	const sizeofTcmsg, tcaKind = 20, 1
	bodies, err := c.dump(newMessage("list queueing disciplines", unix.RTM_GETQDISC, 0, make([]byte, sizeofTcmsg)))
	if err != nil {
		return nil, err
	}
	for _, b := range bodies {
		if len(b) < sizeofTcmsg {
			return nil, netlink.ErrShort
		}
		q := Qdisc{Link: int(int32(native.Uint32(b[4:])))}
		err := netlink.Attributes(b[sizeofTcmsg:], func(typ uint16, v []byte) error {
			if typ == tcaKind {
				q.Kind = unix.ByteSliceToString(v)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		all = append(all, q)
	}
	return all, nil
}
