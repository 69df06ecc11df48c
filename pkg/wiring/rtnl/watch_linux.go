package rtnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// A Watch receives the kernel's notifications of the groups that it joined. What
// happens between Subscribe and Run is kept for Run.
type Watch struct {
	socket *os.File
	raw    syscall.RawConn
}

// watchBuffer is what a Watch can fall behind, in bytes as the kernel counts them:
// some thousand notifications.
const watchBuffer = 4 << 20

// A Notification is one change in the kernel.
type Notification struct {
	// Type is RTM_NEWLINK, RTM_DELLINK, …; 0: notifications were lost, and the
	// tables must be read anew.
	Type uint16
	body []byte
}

// IsAddress tells whether it is about an address that can be routed to: no
// link-local one, nor one of the host's alone.
func (n Notification) IsAddress() bool {
	if n.Type != unix.RTM_NEWADDR && n.Type != unix.RTM_DELADDR || len(n.body) < unix.SizeofIfAddrmsg {
		return false
	}
	scope := n.body[3] // struct ifaddrmsg, rtnetlink(7)
	return scope != unix.RT_SCOPE_LINK && scope != unix.RT_SCOPE_HOST
}

// Link is the link that a notification of links is about.
func (n Notification) Link() (Link, error) { return parseLink(n.body) }

// LinkState is a link after a change.
type LinkState struct {
	Index int
	// Up: it is there, administratively up, and has a carrier.
	Up bool
}

// LinkState is what became of a link; false if the notification is of something
// else. It costs less than Link.
func (n Notification) LinkState() (LinkState, bool) {
	if n.Type != unix.RTM_NEWLINK && n.Type != unix.RTM_DELLINK || len(n.body) < unix.SizeofIfInfomsg {
		return LinkState{}, false
	}
	// Those of bridge ports are of another family, and tell of other things.
	if n.body[0] != unix.AF_UNSPEC {
		return LinkState{}, false
	}
	return LinkState{
		Index: int(int32(native.Uint32(n.body[4:]))),
		Up:    n.Type == unix.RTM_NEWLINK && usable(native.Uint32(n.body[8:])),
	}, true
}

// Subscribe joins groups (RTNLGRP_LINK, …) in the calling thread's network
// namespace.
func Subscribe(groups ...int) (*Watch, error) {
	fd, err := netlink.Open(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	w := &Watch{socket: os.NewFile(uintptr(fd), "netlink notifications")}
	// As root it may be larger than net.core.rmem_max; if not, losses are told.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchBuffer)
	}
	if w.raw, err = w.socket.SyscallConn(); err != nil {
		w.Close()
		return nil, err
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			w.Close()
			return nil, fmt.Errorf("netlink group %d: %w", g, err)
		}
	}
	return w, nil
}

// Close gives the socket up.
func (w *Watch) Close() { w.socket.Close() }

// Run calls f with each notification until ctx ends, which is no error. f must
// not keep the notification.
func (w *Watch) Run(ctx context.Context, f func(Notification)) error {
	defer context.AfterFunc(ctx, func() { w.socket.SetReadDeadline(time.Unix(0, 1)) })()
	in := make([]byte, 64<<10)
	for {
		n, err := w.read(in)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS) || err == nil && n > len(in):
			f(Notification{})
			continue
		case err != nil:
			return fmt.Errorf("netlink notifications: %w", err)
		}
		err = netlink.Messages(in[:n], func(m netlink.Message) error {
			f(Notification{m.Type, m.Body})
			return nil
		})
		if err != nil {
			return fmt.Errorf("netlink notifications: %w", err)
		}
	}
}

// read returns the size of the next datagram of the kernel's, which may be more
// than fits into buf.
func (w *Watch) read(buf []byte) (n int, err error) {
	var from unix.Sockaddr
	rawErr := w.raw.Read(func(fd uintptr) bool {
		n, from, err = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if rawErr != nil {
		return 0, rawErr
	}
	if kernel, ok := from.(*unix.SockaddrNetlink); err == nil && (!ok || kernel.Pid != 0) {
		return 0, nil // somebody else's, who is not to be believed
	}
	return n, err
}
