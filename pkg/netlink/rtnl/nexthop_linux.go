package rtnl

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// Of linux/nexthop.h and, the first, linux/rtnetlink.h.
const (
	rtaNexthop            = 30
	nhaResGroup           = 12
	nhaResGroupBuckets    = 1
	nhaResGroupIdle       = 2
	nhaResGroupUnbalanced = 3
	groupTypeResilient    = 1
	groupTypeMultipath    = 0
)

// clockTick is the unit of times in nexthop groups (USER_HZ).
const clockTick = time.Second / 100

// NewNexthop adds a nexthop; EEXIST if the ID is taken.
func NewNexthop(n Nexthop) Message {
	return nexthopMessage("add", unix.NLM_F_CREATE|unix.NLM_F_EXCL, n)
}

// SetNexthop changes the nexthop of that ID, at once for all routes on it; ENOENT
// if there is none.
func SetNexthop(n Nexthop) Message { return nexthopMessage("change", unix.NLM_F_REPLACE, n) }

func nexthopMessage(verb string, flags uint16, n Nexthop) Message {
	header := make([]byte, unix.SizeofNhmsg)
	header[2] = n.Proto
	if n.Group == nil {
		header[0] = unix.AF_INET
		if n.IPv6 {
			header[0] = unix.AF_INET6
		}
	}
	m := newMessage(fmt.Sprintf("%s nexthop %d", verb, n.ID), unix.RTM_NEWNEXTHOP, flags, header)
	m.b.U32(unix.NHA_ID, n.ID)
	switch {
	case n.Blackhole:
		m.b.Bytes(unix.NHA_BLACKHOLE, nil)
		return m
	case n.Group == nil:
		m.b.U32(unix.NHA_OIF, uint32(n.Link))
		return m
	}
	group := make([]byte, 0, len(n.Group)*unix.SizeofNexthopGrp)
	for _, member := range n.Group {
		group = native.AppendUint32(group, member.ID)
		group = append(group, uint8(member.Weight-1), 0, 0, 0)
	}
	m.b.Bytes(unix.NHA_GROUP, group)
	r := n.Resilient
	if r == nil {
		m.b.U16(unix.NHA_GROUP_TYPE, groupTypeMultipath)
		return m
	}
	m.b.U16(unix.NHA_GROUP_TYPE, groupTypeResilient)
	m.b.Nest(nhaResGroup, func() {
		if r.Buckets != 0 {
			m.b.U16(nhaResGroupBuckets, r.Buckets)
		}
		m.b.U32(nhaResGroupIdle, uint32(r.Idle/clockTick))
		m.b.U32(nhaResGroupUnbalanced, uint32(r.Unbalanced/clockTick))
	})
	return m
}

// DelNexthop deletes a nexthop, the routes on it, and it from groups; ENOENT if it
// is not there.
func DelNexthop(id uint32) Message {
	m := newMessage(fmt.Sprintf("delete nexthop %d", id), unix.RTM_DELNEXTHOP, 0, make([]byte, unix.SizeofNhmsg))
	m.b.U32(unix.NHA_ID, id)
	return m
}

// Nexthops are all nexthops that are links or groups, whoever made them. EOPNOTSUPP
// is the answer of a kernel that has no such objects.
func (c *Conn) Nexthops() ([]Nexthop, error) {
	bodies, err := c.dump(newMessage("list nexthops", unix.RTM_GETNEXTHOP, 0, make([]byte, unix.SizeofNhmsg)))
	if err != nil {
		return nil, err
	}
	nexthops := make([]Nexthop, 0, len(bodies))
	for _, b := range bodies {
		n, err := parseNexthop(b)
		if err != nil {
			return nil, err
		}
		nexthops = append(nexthops, n)
	}
	return nexthops, nil
}

func parseNexthop(b []byte) (Nexthop, error) {
	if len(b) < unix.SizeofNhmsg {
		return Nexthop{}, netlink.ErrShort
	}
	n := Nexthop{Proto: b[2], IPv6: b[0] == unix.AF_INET6}
	err := netlink.Attributes(b[unix.SizeofNhmsg:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.NHA_ID:
			n.ID = getU32(v)
		case unix.NHA_OIF:
			n.Link = int(getU32(v))
		case unix.NHA_GATEWAY:
			n.Via = true
		case unix.NHA_BLACKHOLE:
			n.Blackhole = true
		case unix.NHA_GROUP:
			for ; len(v) >= unix.SizeofNexthopGrp; v = v[unix.SizeofNexthopGrp:] {
				n.Group = append(n.Group, NexthopMember{ID: getU32(v), Weight: int(v[4]) + 1})
			}
		case nhaResGroup:
			n.Resilient = &Resilient{}
			return netlink.Attributes(v, func(typ uint16, v []byte) error {
				switch typ {
				case nhaResGroupBuckets:
					if len(v) == 2 {
						n.Resilient.Buckets = native.Uint16(v)
					}
				case nhaResGroupIdle:
					n.Resilient.Idle = time.Duration(getU32(v)) * clockTick
				case nhaResGroupUnbalanced:
					n.Resilient.Unbalanced = time.Duration(getU32(v)) * clockTick
				}
				return nil
			})
		}
		return nil
	})
	return n, err
}
