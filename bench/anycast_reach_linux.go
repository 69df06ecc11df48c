package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
)

const (
	// tryEvery is how often a connection is tried. A SYN that found no route
	// would be sent again after a second only, so each try is a new one.
	tryEvery = time.Millisecond
	// defaultTryFor bounds the tries, and tryAtOnce those under way.
	defaultTryFor = 3 * time.Second
	tryAtOnce     = 64
)

// prober finds out when an address is first reached from a network namespace.
type prober struct {
	netns   string
	asked   chan netip.Addr
	reached func(addr netip.Addr, at int64)
	// failed, if there is one, is told of the connections that failed before that.
	failed func(addr netip.Addr, began int64, what string)
	// tryFor is how long an address is tried.
	tryFor time.Duration
}

func newProber(netns string, reached func(netip.Addr, int64)) *prober {
	return &prober{netns: netns, asked: make(chan netip.Addr, 1024), reached: reached, tryFor: defaultTryFor}
}

// try has an address be tried from now on, until it is reached or tryFor is over.
func (p *prober) try(addr netip.Addr) { p.asked <- addr }

// run is the one thread that tries, in the namespace, until the context ends.
func (p *prober) run(ctx context.Context) error {
	return member.InNet(p.netns, func() error {
		trying := map[netip.Addr]*trial{}
		defer func() {
			for _, t := range trying {
				t.end()
			}
		}()
		for {
			if len(trying) == 0 {
				select {
				case <-ctx.Done():
					return nil
				case addr := <-p.asked:
					trying[addr] = &trial{until: time.Now().Add(p.tryFor)}
				}
			}
			for more := true; more; {
				select {
				case <-ctx.Done():
					return nil
				case addr := <-p.asked:
					trying[addr] = &trial{until: time.Now().Add(p.tryFor)}
				default:
					more = false
				}
			}
			for addr, t := range trying {
				if time.Now().After(t.until) {
					t.end()
					delete(trying, addr)
				} else if err := p.again(t, addr); err != nil {
					return err
				}
			}
			if err := p.await(trying, time.Now().Add(tryEvery)); err != nil {
				return err
			}
		}
	})
}

// trial is the connections being made to one address, the oldest first.
type trial struct {
	until time.Time
	fds   []attempt
}

// attempt is a connection being made.
type attempt struct {
	fd    int
	began int64 // monotonic
}

func (t *trial) end() {
	for _, a := range t.fds {
		unix.Close(a.fd)
	}
	t.fds = nil
}

// fail reports a connection that failed.
func (p *prober) fail(addr netip.Addr, began int64, err error) {
	if p.failed == nil {
		return
	}
	what := unreachable
	switch {
	case err == nil:
		what = unanswered
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET):
		what = refused
	}
	p.failed(addr, began, what)
}

// again begins one more connection.
func (p *prober) again(t *trial, addr netip.Addr) error {
	if len(t.fds) >= tryAtOnce {
		unix.Close(t.fds[0].fd)
		p.fail(addr, t.fds[0].began, nil)
		t.fds = t.fds[1:]
	}
	began := monotonic()
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: addr.As16(), Port: cluster.EchoPort})
	if addr.Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.As4(), Port: cluster.EchoPort}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket to try %s: %w", addr, err)
	}
	switch err := unix.Connect(fd, to); err {
	case nil, unix.EINPROGRESS:
		t.fds = append(t.fds, attempt{fd, began})
	default: // there is no route yet
		unix.Close(fd)
		p.fail(addr, began, err)
	}
	return nil
}

// await reports the addresses that are reached until the deadline, and removes them
// from the list.
func (p *prober) await(trying map[netip.Addr]*trial, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return nil
		}
		var poll []unix.PollFd
		var of []netip.Addr
		for addr, t := range trying {
			for _, a := range t.fds {
				poll, of = append(poll, unix.PollFd{Fd: int32(a.fd), Events: unix.POLLOUT}), append(of, addr)
			}
		}
		timeout := unix.NsecToTimespec(left.Nanoseconds())
		n, err := unix.Ppoll(poll, &timeout, nil)
		at := monotonic()
		if err == unix.EINTR {
			continue
		} else if err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		if n == 0 {
			return nil
		}
		for i, f := range poll {
			t := trying[of[i]]
			if f.Revents == 0 || t == nil {
				continue
			}
			errno, err := unix.GetsockoptInt(int(f.Fd), unix.SOL_SOCKET, unix.SO_ERROR)
			began := t.drop(int(f.Fd))
			if err == nil && errno == 0 && f.Revents&unix.POLLOUT != 0 {
				for _, a := range t.fds {
					if a.began < began {
						p.fail(of[i], a.began, nil)
					}
				}
				p.reached(of[i], at)
				t.end()
				delete(trying, of[i])
				continue
			}
			p.fail(of[i], began, unix.Errno(errno))
		}
	}
}

// drop closes a connection, and returns when it began.
func (t *trial) drop(fd int) (began int64) {
	for i, a := range t.fds {
		if a.fd == fd {
			unix.Close(fd)
			t.fds = append(t.fds[:i], t.fds[i+1:]...)
			return a.began
		}
	}
	return 0
}
