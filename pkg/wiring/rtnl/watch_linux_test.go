package rtnl

import (
	"context"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/nettest"
)

func TestWatchHearsOfLinks(t *testing.T) {
	t.Parallel()
	ns, peer := nettest.New(t), nettest.New(t)
	var w *Watch
	var c *Conn
	ns.Run(func() {
		var err error
		if w, err = Subscribe(unix.RTNLGRP_LINK); err != nil {
			t.Fatal(err)
		}
		if c, err = Dial(); err != nil {
			t.Fatal(err)
		}
	})
	defer c.Close()
	defer w.Close()
	type told struct {
		lost bool
		LinkState
	}
	heard := make(chan told)
	ended := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		ended <- w.Run(ctx, func(n Notification) {
			s, ok := n.LinkState()
			if n.Type != 0 && !ok {
				return
			}
			select {
			case heard <- told{n.Type == 0, s}:
			case <-ctx.Done():
			}
		})
	}()
	hear := func(up bool) {
		t.Helper()
		for n := range heard {
			if n.lost || n.Up != up {
				continue
			}
			if links, err := c.LinksUp(); err != nil || links[n.Index] != up {
				t.Errorf("link %d is told up=%t; all: %v, %v", n.Index, up, links, err)
			}
			if is, err := c.LinkUp(n.Index); is != up || err != nil {
				t.Errorf("link %d is told up=%t; it: %v, %v", n.Index, up, is, err)
			}
			return
		}
	}
	ns.Veth("l0", peer, "eth0")
	hear(true)
	peer.IP("link", "set", "eth0", "down") // the carrier goes
	hear(false)
	peer.IP("link", "set", "eth0", "up")
	hear(true)
	ns.IP("link", "del", "l0")
	hear(false)

	// More than fits is told to be lost, and the Watch goes on.
	w.raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 2048) })
	for i := range 20 {
		ns.Veth(fmt.Sprint("x", i), peer, fmt.Sprint("x", i))
	}
	for n := range heard {
		if n.lost {
			break
		}
	}
	ns.IP("link", "set", "x0", "down")
	hear(false)

	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the context's end is an error: %v", err)
	}
	w.Close()
	if err := w.Run(t.Context(), func(Notification) {}); err == nil {
		t.Error("no error after Close")
	}
}
