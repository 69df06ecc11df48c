package rtnl

import (
	"context"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
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
	type state struct {
		lost bool
		LinkState
	}
	heard := make(chan state)
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
			case heard <- state{n.Type == 0, s}:
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
				t.Errorf("notification of link %d has up=%t; all links: %v, %v", n.Index, up, links, err)
			}
			if is, err := c.LinkUp(n.Index); is != up || err != nil {
				t.Errorf("notification of link %d has up=%t; the link: %v, %v", n.Index, up, is, err)
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

	// A lost notification is reported, and the Watch continues.
	w.watch.SetBuffer(2048)
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
