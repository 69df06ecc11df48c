package rtnl

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Listener hears of every change of a link in the network namespace of the
// thread that made it.
type Listener struct {
	file *os.File
	raw  syscall.RawConn
	in   []byte
}

// LinkState is a link after a change.
type LinkState struct {
	Index int
	// Up: it is there, administratively up, and has a carrier.
	Up bool
}

// ErrLost says that there were more changes than could be heard: whoever keeps
// track has to look at all links. The Listener goes on.
var ErrLost = errors.New("notifications of links were lost")

// Listen begins to listen in the calling thread's network namespace.
func Listen() (*Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	// As root it may be larger than net.core.rmem_max; if not, losses are told.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_LINK - 1)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("netlink bind: %w", err)
	}
	l := &Listener{file: os.NewFile(uintptr(fd), "netlink"), in: make([]byte, 64<<10)}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, err
	}
	return l, nil
}

// Close ends a Read that waits, and the Listener.
func (l *Listener) Close() { l.file.Close() }

// Read waits for changes. After Close it fails.
func (l *Listener) Read() ([]LinkState, error) {
	var n int
	var from unix.Sockaddr
	var err error
	rawErr := l.raw.Read(func(fd uintptr) bool {
		n, from, err = unix.Recvfrom(int(fd), l.in, unix.MSG_TRUNC)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	switch {
	case rawErr != nil:
		return nil, rawErr
	case err == unix.ENOBUFS || err == nil && n > len(l.in):
		return nil, ErrLost
	case err != nil:
		return nil, fmt.Errorf("netlink read: %w", err)
	}
	if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 {
		return nil, nil // not from the kernel
	}
	var states []LinkState
	err = messages(l.in[:n], func(h header, body []byte) error {
		if h.typ != unix.RTM_NEWLINK && h.typ != unix.RTM_DELLINK || len(body) < unix.SizeofIfInfomsg {
			return nil
		}
		// Those of bridge ports are of another family, and tell of other things.
		if body[0] != unix.AF_UNSPEC {
			return nil
		}
		states = append(states, LinkState{
			Index: int(int32(native.Uint32(body[4:]))),
			Up:    h.typ == unix.RTM_NEWLINK && usable(native.Uint32(body[8:])),
		})
		return nil
	})
	return states, err
}

// usable is what the kernel asks of a nexthop's link.
func usable(flags uint32) bool {
	return flags&unix.IFF_UP != 0 && flags&(unix.IFF_RUNNING|unix.IFF_LOWER_UP) != 0
}

// LinksUp are the indexes of the links that are administratively up and have a
// carrier.
func (c *Conn) LinksUp() (map[int]bool, error) {
	m := newMessage("list links", unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg))
	m.u32(unix.IFLA_EXT_MASK, rtextFilterSkipStats)
	bodies, err := c.dump(m)
	if err != nil {
		return nil, err
	}
	up := make(map[int]bool, len(bodies))
	for _, b := range bodies {
		if len(b) < unix.SizeofIfInfomsg {
			return nil, errShort
		}
		if usable(native.Uint32(b[8:])) {
			up[int(int32(native.Uint32(b[4:])))] = true
		}
	}
	return up, nil
}

// LinkUp tells whether a link is administratively up and has a carrier.
func (c *Conn) LinkUp(index int) (bool, error) {
	body, err := c.one(getLink(fmt.Sprintf("link %d", index), index))
	switch {
	case errors.Is(err, unix.ENODEV):
		return false, nil
	case err != nil:
		return false, err
	case len(body) < unix.SizeofIfInfomsg:
		return false, errShort
	}
	return usable(native.Uint32(body[8:])), nil
}
