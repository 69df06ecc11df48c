package rtnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Watch receives the kernel's notifications of the groups that it joined. What
// happens between Subscribe and Run is kept for Run.
type Watch struct{ socket *os.File }

// A Notification is one change in the kernel.
type Notification struct {
	// Type is RTM_NEWLINK, RTM_DELLINK, …; 0: notifications were lost, and the
	// tables must be read anew.
	Type uint16
	body []byte
}

// Link is the link that a notification of links is about.
func (n Notification) Link() (Link, error) { return parseLink(n.body) }

// Subscribe joins groups (RTNLGRP_LINK, …) in the calling thread's network
// namespace.
func Subscribe(groups ...int) (*Watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	w := &Watch{os.NewFile(uintptr(fd), "netlink notifications")}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		w.Close()
		return nil, fmt.Errorf("netlink bind: %w", err)
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
		n, err := w.socket.Read(in)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			f(Notification{})
			continue
		case err != nil:
			return fmt.Errorf("netlink notifications: %w", err)
		}
		err = messages(in[:n], func(h header, body []byte) error {
			f(Notification{h.typ, body})
			return nil
		})
		if err != nil {
			return fmt.Errorf("netlink notifications: %w", err)
		}
	}
}
