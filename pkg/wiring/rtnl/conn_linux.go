package rtnl

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Conn is a netlink socket in the network namespace of the thread that dialed
// it. It may be used from several goroutines and from threads in any namespace.
type Conn struct {
	mu     sync.Mutex // guards all below: one exchange at a time
	fd     int
	seq    uint32
	out    []byte
	onRead func() // between the reads of an answer; tests only
}

// An Error is the kernel's refusal of one request.
type Error struct {
	What  string
	Errno unix.Errno
	// Detail is the kernel's own explanation (extended acknowledgement); often
	// empty.
	Detail string
}

func (e *Error) Error() string {
	if e.Errno == unix.EPERM {
		return fmt.Sprintf("%s: %v; CAP_NET_ADMIN is needed", e.What, e.Errno)
	}
	if e.Detail != "" {
		return fmt.Sprintf("%s: %v: %s", e.What, e.Errno, e.Detail)
	}
	return fmt.Sprintf("%s: %v", e.What, e.Errno)
}

func (e *Error) Unwrap() error { return e.Errno }

// ErrInterrupted says that a dump stayed inconsistent (NLM_F_DUMP_INTR) through
// all attempts: the table changes faster than it can be read.
var ErrInterrupted = errors.New("dump was interrupted by changes each time it was tried")

const (
	// answerTimeout bounds a read. The kernel has answered before the write
	// returns, so this is reached only when an answer was lost.
	answerTimeout = 10 * time.Second
	// maxBatch requests are written at once: the refusals of that many fit the
	// socket's receive buffer as it is by default.
	maxBatch     = 128
	dumpAttempts = 10
)

// Dial opens a socket in the calling thread's network namespace.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	c := &Conn{fd: fd}
	for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, opt, 1); err != nil {
			c.Close()
			return nil, fmt.Errorf("netlink socket option %d (kernel 4.20 or newer is needed): %w", opt, err)
		}
	}
	timeout := unix.NsecToTimeval(answerTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		c.Close()
		return nil, fmt.Errorf("netlink socket timeout: %w", err)
	}
	// Once connected to the kernel, the socket takes messages from nobody else.
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		c.Close()
		return nil, fmt.Errorf("netlink connect: %w", err)
	}
	return c, nil
}

// Close gives the socket up. The Conn must not be used after.
func (c *Conn) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// Do sends requests in order and returns the error of each, nil where there was
// none; the slice itself is nil if all succeeded. An error of the socket is every
// request's whose fate is unknown.
func (c *Conn) Do(ms ...Message) []error {
	errs, _ := c.do(ms, nil)
	return errs
}

// do is Do, with the payloads of answers that are not acknowledgements given to
// reply, by the request's index.
func (c *Conn) do(ms []Message, reply func(i int, body []byte)) (errs []error, failed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fail := func(i int, err error) {
		if errs == nil {
			errs = make([]error, len(ms))
		}
		if errs[i] == nil {
			failed++
		}
		errs[i] = err
	}
	for start := 0; start < len(ms); start += maxBatch {
		batch := ms[start:min(start+maxBatch, len(ms))]
		first := c.prepare(batch, true)
		last := first + uint32(len(batch)) - 1
		err := c.write()
		for done := false; err == nil && !done; {
			err = c.read(func(h header, body []byte) error {
				if h.seq-first >= uint32(len(batch)) {
					return nil // an answer that an earlier exchange gave up on
				}
				i := start + int(h.seq-first)
				if h.typ != unix.NLMSG_ERROR {
					if reply != nil {
						reply(i, body)
					}
					return nil
				}
				if e, err := ackError(h, body); err != nil {
					return err
				} else if e != nil {
					e.What = ms[i].What
					fail(i, e)
				}
				done = done || h.seq == last
				return nil
			})
		}
		if err != nil {
			for i := start; i < len(ms); i++ {
				fail(i, fmt.Errorf("%s: %w", ms[i].What, err))
			}
			break
		}
	}
	return errs, failed
}

// one does a request that has at most one answer beside its acknowledgement.
func (c *Conn) one(m Message) (body []byte, err error) {
	errs, _ := c.do([]Message{m}, func(_ int, b []byte) { body = append([]byte(nil), b...) })
	if errs != nil {
		return nil, errs[0]
	}
	return body, nil
}

// dump collects a table. It is called again from the start while the kernel says
// that the table changed under it, a bounded number of times.
func (c *Conn) dump(m Message) (bodies [][]byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.setFlags(m.flags() | unix.NLM_F_DUMP)
	for range dumpAttempts {
		bodies = bodies[:0]
		seq := c.prepare([]Message{m}, false)
		if err := c.write(); err != nil {
			return nil, fmt.Errorf("%s: %w", m.What, err)
		}
		interrupted, done := false, false
		for !done {
			err := c.read(func(h header, body []byte) error {
				if h.seq != seq {
					return nil
				}
				interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
				switch h.typ {
				case unix.NLMSG_ERROR, unix.NLMSG_DONE:
					done = true
					if e, err := ackError(h, body); err != nil {
						return err
					} else if e != nil {
						e.What = m.What
						return e
					}
				default:
					bodies = append(bodies, append([]byte(nil), body...))
				}
				return nil
			})
			if err != nil {
				var e *Error
				if errors.As(err, &e) {
					return nil, err
				}
				return nil, fmt.Errorf("%s: %w", m.What, err)
			}
		}
		if !interrupted {
			return bodies, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", m.What, ErrInterrupted)
}

// prepare puts the batch into c.out and returns the first message's sequence
// number. Only the last asks to be acknowledged, if any: the kernel answers
// errors of the others unasked.
func (c *Conn) prepare(batch []Message, ack bool) (first uint32) {
	first = c.seq + 1
	c.seq += uint32(len(batch))
	c.out = c.out[:0]
	for i := range batch {
		b := batch[i].b
		at := len(c.out)
		c.out = append(c.out, b...)
		for len(c.out)%4 != 0 {
			c.out = append(c.out, 0)
		}
		h := c.out[at:]
		native.PutUint32(h, uint32(len(b)))
		native.PutUint32(h[8:], first+uint32(i))
		if ack && i == len(batch)-1 {
			native.PutUint16(h[6:], native.Uint16(h[6:])|unix.NLM_F_ACK)
		}
	}
	return first
}

func (c *Conn) write() error {
	for {
		_, err := unix.Write(c.fd, c.out)
		if err != unix.EINTR {
			return err
		}
	}
}

// buffers are for one datagram each; the kernel's have at most 32 KiB.
var buffers = sync.Pool{New: func() any { return ptr(make([]byte, 64<<10)) }}

func ptr[T any](v T) *T { return &v }

type header struct {
	typ, flags uint16
	seq        uint32
}

// read takes one datagram and calls f for each message in it. What f gets is
// good until it returns.
func (c *Conn) read(f func(h header, body []byte) error) error {
	if c.onRead != nil {
		c.onRead()
	}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	in := *buffer
	var n int
	for {
		var err error
		n, _, err = unix.Recvfrom(c.fd, in, unix.MSG_TRUNC)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return fmt.Errorf("no answer within %v", answerTimeout)
		}
		if err != nil {
			return err
		}
		break
	}
	if n > len(in) {
		return fmt.Errorf("answer of %d bytes, more than %d", n, len(in))
	}
	return messages(in[:n], f)
}

func messages(b []byte, f func(h header, body []byte) error) error {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(native.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return errShort
		}
		h := header{typ: native.Uint16(b[4:]), flags: native.Uint16(b[6:]), seq: native.Uint32(b[8:])}
		if err := f(h, b[unix.SizeofNlMsghdr:n]); err != nil {
			return err
		}
		b = b[min(align(n), len(b)):]
	}
	return nil
}

// ackError reads an acknowledgement (NLMSG_ERROR) or the end of a dump
// (NLMSG_DONE); nil, nil if it tells of success.
func ackError(h header, body []byte) (*Error, error) {
	if len(body) < 4 {
		if h.typ == unix.NLMSG_DONE {
			return nil, nil
		}
		return nil, errShort
	}
	errno := -int32(native.Uint32(body))
	if errno <= 0 {
		return nil, nil
	}
	e := &Error{Errno: unix.Errno(errno)}
	if h.flags&unix.NLM_F_ACK_TLVS == 0 {
		return e, nil
	}
	rest := body[4:]
	if h.typ == unix.NLMSG_ERROR {
		// The request's header follows, and with it the whole request unless
		// the kernel capped it as asked (NETLINK_CAP_ACK).
		skip := unix.SizeofNlMsghdr
		if h.flags&unix.NLM_F_CAPPED == 0 && len(rest) >= 4 {
			skip = align(int(native.Uint32(rest)))
		}
		if skip > len(rest) {
			return e, nil
		}
		rest = rest[skip:]
	}
	err := attrs(rest, func(typ uint16, v []byte) {
		if typ == unix.NLMSGERR_ATTR_MSG {
			e.Detail = getStr(v)
		}
	})
	return e, err
}
