package wiring

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/wiring/rtnl"
)

// Host is the node's side of all wiring: its sockets in the node's network
// namespace. Its methods may be called from several goroutines.
type Host struct {
	netns *os.File
	conn  *rtnl.Conn
	// deletions have a socket of their own: they take milliseconds, for which
	// nobody else should wait.
	deletions *rtnl.Conn
	// slots bounds the Attaches that are under way. The kernel has one lock for
	// most of it, and spinning for it is dearer than waiting in turn: with 30 at
	// once the last is ready no later for it, the average one a quarter sooner.
	slots chan struct{}
	// readyTimeout is a few rounds of the kernel's link watch, of a second each.
	readyTimeout time.Duration
	// links tells of links that come and go.
	links *rtnl.Watch
	// uplinks tells of the node's other links and of their addresses.
	uplinks *rtnl.Watch
	// exec carries requests out. Tests cut in here.
	exec func(c *rtnl.Conn, ms []rtnl.Message) []error
}

const attachSlots = 3

// Open takes the calling thread's network namespace for the node's.
func Open() (*Host, error) {
	netns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("node's network namespace: %w", err)
	}
	h := &Host{netns: netns, slots: make(chan struct{}, attachSlots), readyTimeout: 5 * time.Second, exec: func(c *rtnl.Conn, ms []rtnl.Message) []error { return c.Do(ms...) }}
	for _, c := range []**rtnl.Conn{&h.conn, &h.deletions} {
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
	for _, c := range []*rtnl.Conn{h.conn, h.deletions} {
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

// in calls f on a thread that is in netns for that long.
func (h *Host) in(netns *os.File, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// Only this goroutine is ever bound to the thread while it is away. If
		// the way back fails the goroutine ends locked, and the thread with it.
		runtime.LockOSThread()
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("enter network namespace %s (CAP_SYS_ADMIN is needed): %w", netns.Name(), err)
			return
		}
		err := f()
		if back := unix.Setns(int(h.netns.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	err := <-result
	runtime.KeepAlive(netns)
	return err
}

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
	if err := unix.Fstat(int(a.Fd()), &sa); err != nil {
		return false, fmt.Errorf("network namespace %s: %w", a.Name(), err)
	}
	if err := unix.Fstat(int(b.Fd()), &sb); err != nil {
		return false, fmt.Errorf("network namespace %s: %w", b.Name(), err)
	}
	return sa.Dev == sb.Dev && sa.Ino == sb.Ino, nil
}

// mountedSysctls is a second way to /proc/sys/net, which a container that is not
// privileged has read-only: deploy/ mounts the host's here. Either shows the
// namespace of the thread that looks.
const mountedSysctls = "/host/proc/sys/net"

// SysctlDir is where /proc/sys/net can be written.
var SysctlDir = sync.OnceValue(func() string {
	if _, err := os.Stat(mountedSysctls); err == nil {
		return mountedSysctls
	}
	return "/proc/sys/net"
})

// writeSysctl writes below /proc/sys/net, on a thread in the namespace in
// question.
func writeSysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join(SysctlDir(), name), []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl net/%s=%s (in a container: mount the host's /proc/sys/net at %s): %w", name, value, mountedSysctls, err)
	}
	return nil
}
