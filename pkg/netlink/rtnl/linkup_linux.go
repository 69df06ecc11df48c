package rtnl

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// usable is what the kernel asks of a nexthop's link.
func usable(flags uint32) bool {
	return flags&unix.IFF_UP != 0 && flags&(unix.IFF_RUNNING|unix.IFF_LOWER_UP) != 0
}

// LinksUp are the indexes of the links that are administratively up and have a
// carrier.
func (c *Conn) LinksUp() (map[int]bool, error) {
	m := newMessage("list links", unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg))
	m.b.U32(unix.IFLA_EXT_MASK, rtextFilterSkipStats)
	bodies, err := c.dump(m)
	if err != nil {
		return nil, err
	}
	up := make(map[int]bool, len(bodies))
	for _, b := range bodies {
		if len(b) < unix.SizeofIfInfomsg {
			return nil, netlink.ErrShort
		}
		if usable(native.Uint32(b[8:])) {
			up[int(int32(native.Uint32(b[4:])))] = true
		}
	}
	return up, nil
}

// LinkUp reports whether a link is administratively up and has a carrier.
func (c *Conn) LinkUp(index int) (bool, error) {
	body, err := c.one(getLink(fmt.Sprintf("link %d", index), index))
	switch {
	case errors.Is(err, unix.ENODEV):
		return false, nil
	case err != nil:
		return false, err
	case len(body) < unix.SizeofIfInfomsg:
		return false, netlink.ErrShort
	}
	return usable(native.Uint32(body[8:])), nil
}
