package netlink

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
)

func dial(t *testing.T) *Conn {
	t.Helper()
	var c *Conn
	nettest.New(t).Run(func() {
		fd, err := Open(unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		c = NewConn(fd)
	})
	t.Cleanup(c.Close)
	return c
}

// deletions ask n times to delete a link that is not there, of which the last is
// acknowledged.
func deletions(n int) (r Request) {
	for range n {
		start := r.Begin(unix.RTM_DELLINK, 0, make([]byte, unix.SizeofIfInfomsg)...)
		r.Str(unix.IFLA_IFNAME, "none")
		r.End(start)
	}
	return r
}

// refusals counts the requests up to the last that are refused with ENODEV.
func refusals(t *testing.T, c *Conn, n int) (refused int, err error) {
	t.Helper()
	err = c.Exchange(deletions(n), func(i int, m Message) (last bool, err error) {
		refusal, err := m.Refusal()
		if refusal == nil || refusal.Errno != unix.ENODEV || i != refused {
			t.Errorf("answer %d is of request %d: %v, %v; want ENODEV", refused, i, refusal, err)
		}
		refused++
		return i == n-1, err
	})
	return refused, err
}

// Each answer is its request's, and none an earlier exchange's.
func TestExchange(t *testing.T) {
	t.Parallel()
	c := dial(t)
	c.seq = 1<<32 - 50 // numbers wrap
	mine := errors.New("given up")
	if err := c.Exchange(deletions(20), func(int, Message) (bool, error) { return false, mine }); err != mine {
		t.Errorf("got %v, want the caller's own error", err)
	}
	for range 3 {
		if n, err := refusals(t, c, 20); n != 20 || err != nil {
			t.Errorf("%d refusals, %v; want 20", n, err)
		}
	}
	if err := c.Exchange(deletions(1), func(int, Message) (bool, error) { return false, nil }); !errors.Is(err, ErrUnknown) {
		t.Errorf("an answer without its end: %v, want ErrUnknown", err)
	}
	c.Close()
	if _, err := refusals(t, c, 1); !errors.Is(err, unix.EBADF) || errors.Is(err, ErrUnknown) {
		t.Errorf("after Close: %v, want EBADF", err)
	}
}

// Answers for which the socket has no room are missed, and those that follow are
// read.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	c := dial(t)
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		t.Fatal(err)
	}
	if n, err := refusals(t, c, 100); n == 0 || n == 100 || !errors.Is(err, ErrUnknown) || !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("%d refusals, %v; want some of 100, ErrUnknown and ENOBUFS", n, err)
	}
	if n, err := refusals(t, c, 1); n != 1 || err != nil {
		t.Errorf("afterwards: %d refusals, %v; want one", n, err)
	}
	// An answer that is complete is not believed if something was lost before.
	for range 10 {
		if _, err := unix.Write(c.fd, deletions(1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := refusals(t, c, 1); !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v, want ErrUnknown", err)
	}
}

// Ask ends with the end of a dump, and with a refusal.
func TestAsk(t *testing.T) {
	t.Parallel()
	c := dial(t)
	var r Request
	r.Begin(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg)...)
	r.End(0)
	links := 0
	interrupted, err := c.Ask(r, func(m Message) error {
		links++
		return nil
	})
	if interrupted || err != nil || links != 1 {
		t.Errorf("%d links, interrupted %t, %v; want the loopback", links, interrupted, err)
	}
	var refusal *Error
	if _, err := c.Ask(deletions(1), func(Message) error { return nil }); !errors.As(err, &refusal) || !errors.Is(err, unix.ENODEV) {
		t.Errorf("got %v, want the refusal", err)
	}
	if _, err := c.Ask(r, func(Message) error { return ErrShort }); !errors.Is(err, ErrUnknown) {
		t.Errorf("a message that does not parse: %v, want ErrUnknown", err)
	}
}

// Sockets that are opened and closed again are not remembered for ever, and those that are open are:
// in another network namespace one may have the same port ID.
func TestOwnSockets(t *testing.T) {
	stays := dial(t)
	ns := nettest.New(t)
	for range 4 * remembered {
		ns.Run(func() {
			fd, err := Open(unix.NETLINK_ROUTE)
			if err != nil {
				t.Fatal(err)
			}
			c := NewConn(fd)
			c.Close()
			if !IsOwn(c.port) {
				t.Fatalf("port ID %d is not known any more: what the kernel says of its changes may not have been read", c.port)
			}
		})
	}
	own.mu.Lock()
	n := len(own.count)
	own.mu.Unlock()
	if n > 2*remembered || !IsOwn(stays.port) {
		t.Errorf("%d port IDs; that of an open socket is known: %v", n, IsOwn(stays.port))
	}
	if IsOwn(1) {
		t.Error("that of a stranger is known")
	}
}
