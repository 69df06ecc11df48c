package wiring

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// Host is the node's side of all wiring: its sockets in the node's network
// namespace. Its methods may be called from several goroutines.
type Host struct {
	netns *os.File
	conn  *rtnl.Conn
	// deletions have a socket of their own: they take milliseconds, and
	// other requests should not wait for them.
	deletions *rtnl.Conn
	// looks has one for whole tables, which take milliseconds too.
	looks *rtnl.Conn
	// slots bounds the Attaches that are under way. The kernel has one lock for
	// most of it, and spinning for it is dearer than waiting in turn: with 30 at
	// once the last is ready no later for it, the average one a quarter sooner.
	slots chan struct{}
	// readyTimeout is a few rounds of the kernel's link watch, of a second each.
	readyTimeout time.Duration
	// missed has a value when a Sync has not found a pod's link.
	missed chan struct{}
	// links reports new and deleted links.
	links *rtnl.Watch
	// uplinks reports changes of the node's other links and of their addresses.
	uplinks *rtnl.Watch
	// exec carries requests out. Tests cut in here.
	exec func(c *rtnl.Conn, ms []rtnl.Message) []error

	desired desired
	syncing sync.Mutex // held by Sync and ApplyNode
}

const attachSlots = 3

// Open takes the calling thread's network namespace for the node's.
func Open() (*Host, error) {
	own, err := sys.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("node's network namespace: %w", err)
	}
	h := &Host{netns: own, slots: make(chan struct{}, attachSlots), missed: make(chan struct{}, 1), readyTimeout: 5 * time.Second, exec: func(c *rtnl.Conn, ms []rtnl.Message) []error { return c.Do(ms...) }}
	for _, c := range []**rtnl.Conn{&h.conn, &h.deletions, &h.looks} {
		if *c, err = rtnl.Dial(); err != nil {
			h.Close()
			return nil, err
		}
	}
	if h.links, err = rtnl.Subscribe(unix.RTNLGRP_LINK); err != nil {
		h.Close()
		return nil, err
	}
	if h.uplinks, err = rtnl.Subscribe(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// Close gives the sockets up; links and routes stay.
func (h *Host) Close() {
	for _, c := range []*rtnl.Conn{h.conn, h.deletions, h.looks} {
		if c != nil {
			c.Close()
		}
	}
	for _, w := range []*rtnl.Watch{h.links, h.uplinks} {
		if w != nil {
			w.Close()
		}
	}
	h.netns.Close()
}

// in runs f on a thread in a network namespace.
func (h *Host) in(file *os.File, f func() error) error { return netns.Do(file, f) }

// dial opens a socket in a pod's namespace.
func (h *Host) dial(netns *os.File) (c *rtnl.Conn, err error) {
	if same, err := sameFile(netns, h.netns); err != nil {
		return nil, err
	} else if same {
		return nil, fmt.Errorf("network namespace %s is the node's own: a pod on the host network has no wiring", netns.Name())
	}
	err = h.in(netns, func() error {
		c, err = rtnl.Dial()
		return err
	})
	return c, err
}

func sameFile(a, b *os.File) (bool, error) {
	var sa, sb unix.Stat_t
	if err := sys.Fstat(int(a.Fd()), &sa); err != nil {
		return false, fmt.Errorf("network namespace %s: %w", a.Name(), err)
	}
	if err := sys.Fstat(int(b.Fd()), &sb); err != nil {
		return false, fmt.Errorf("network namespace %s: %w", b.Name(), err)
	}
	return sa.Dev == sb.Dev && sa.Ino == sb.Ino, nil
}
