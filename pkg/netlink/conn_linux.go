package netlink

import (
	"cmp"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/sys"
)

// A Conn does one exchange with the kernel at a time. It may be used from several
// goroutines and from threads in any network namespace.
type Conn struct {
	mu   sync.Mutex // guards all below
	fd   int
	seq  uint32
	port uint32 // its port ID; 0: it is not known
}

var (
	// ErrInterrupted says that a dump stayed inconsistent through all attempts:
	// what it lists changes faster than it can be read.
	ErrInterrupted = errors.New("dump was interrupted by changes each time it was tried")

	// ErrUnknown says that the kernel's answer was lost or cannot be read: what was
	// asked for may have been done or not.
	ErrUnknown = errors.New("the kernel's answer is not known")

	errEnded = errors.New("its end is missing")
)

// bufferSize is that of the largest datagram that is read; the kernel's have at
// most 32 KiB.
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Open opens a non-blocking socket of a protocol (NETLINK_…) in the calling
// thread's network namespace and connects it to the kernel, so that no other
// process can write to it. Error messages have the kernel's explanation and do not
// repeat the request. options are additional socket options.
func Open(protocol int, options ...int) (fd int, err error) {
	fd, err = sys.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return -1, fmt.Errorf("netlink socket of protocol %d: %w", protocol, err)
	}
	for _, option := range append([]int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK}, options...) {
		if err := sys.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("netlink socket option %d (kernel 4.20 or newer is needed): %w", option, err)
		}
	}
	if err := sys.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("netlink connect: %w", err)
	}
	return fd, nil
}

// own are the port IDs of this process's sockets, each with how many have it: in several network
// namespaces they may be the same.
var own struct {
	mu     sync.Mutex // guards below
	count  map[uint32]int
	closed []uint32 // the last ones
}

// remembered is how many closed sockets are own still: what the kernel says of their changes may not
// have been read yet.
const remembered = 256

// IsOwn says whether a port ID is of a socket that this process has opened.
func IsOwn(port uint32) bool {
	own.mu.Lock()
	defer own.mu.Unlock()
	return own.count[port] > 0
}

func opened(port uint32) {
	own.mu.Lock()
	defer own.mu.Unlock()
	if own.count == nil {
		own.count = map[uint32]int{}
	}
	own.count[port]++
}

func closed(port uint32) {
	own.mu.Lock()
	defer own.mu.Unlock()
	if own.closed = append(own.closed, port); len(own.closed) <= remembered {
		return
	}
	oldest := own.closed[0]
	own.closed = own.closed[1:]
	if own.count[oldest]--; own.count[oldest] == 0 {
		delete(own.count, oldest)
	}
}

// NewConn makes a Conn of a socket of [Open], which is its own then.
func NewConn(fd int) *Conn {
	c := &Conn{fd: fd}
	if name, err := unix.Getsockname(fd); err == nil {
		c.port = name.(*unix.SockaddrNetlink).Pid
		opened(c.port)
	}
	return c
}

// Close gives the socket up. The Conn must not be used after.
func (c *Conn) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
		if c.port != 0 {
			closed(c.port)
		}
	}
}

// SetSendBuffer lets requests have up to so many bytes, beyond net.core.wmem_max.
func (c *Conn) SetSendBuffer(bytes int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return sys.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, bytes)
}

// Ask does a request of one message, calls f for each message of its answer and
// ends with the acknowledgement or the end of the dump, which is an [Error] if it
// is a refusal. interrupted says that a dump is inconsistent (NLM_F_DUMP_INTR).
func (c *Conn) Ask(r Request, f func(Message) error) (interrupted bool, err error) {
	err = c.Exchange(r, func(_ int, m Message) (done bool, err error) {
		interrupted = interrupted || m.Flags&unix.NLM_F_DUMP_INTR != 0
		if m.Type != unix.NLMSG_ERROR && m.Type != unix.NLMSG_DONE {
			return false, f(m)
		}
		refusal, err := m.Refusal()
		if err == nil && refusal != nil {
			err = refusal
		}
		return true, err
	})
	return interrupted, err
}

// Exchange numbers the messages of a request, writes them at once and calls answer
// for each message that comes back, with the index of the one in the request that
// it is about. It ends when that was the last, or an error. What answer gets is
// good until it returns. Other errors are those of writing, when nothing was asked
// of the kernel, and [ErrUnknown].
//
// The kernel has answered before the write returns, and goes on with a dump when
// its last part is read. So nothing is waited for: where there is no more to read
// before the answer's end, that end was lost.
func (c *Conn) Exchange(r Request, answer func(i int, m Message) (last bool, err error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.seq + 1
	for b := r; len(b) > 0; b = b[native.Uint32(b):] {
		c.seq++
		native.PutUint32(b[8:], c.seq)
	}
	if _, err := uninterrupted(sys.Write, c.fd, r); err != nil {
		return err
	}
	in := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(in)
	var lost error
	for end := false; !end; {
		n, err := uninterrupted(sys.Read, c.fd, in[:])
		switch {
		case err == unix.ENOBUFS: // some of it did not fit; the rest is to be read
			lost = err
			continue
		case err == unix.EAGAIN:
			return unknown(cmp.Or(lost, errEnded))
		case err != nil:
			return unknown(err)
		case n == len(in):
			return unknown(fmt.Errorf("it has %d bytes or more", n))
		}
		err = Messages(in[:n], func(m Message) (err error) {
			if i := m.seq - first; !end && i <= c.seq-first { // else of an earlier exchange
				end, err = answer(int(i), m)
			}
			return err
		})
		switch {
		case errors.Is(err, ErrShort):
			return unknown(err)
		case err != nil:
			return err
		}
	}
	if lost != nil {
		return unknown(lost)
	}
	return nil
}

func unknown(cause error) error { return fmt.Errorf("%w: %w", ErrUnknown, cause) }

// uninterrupted does a system call again that a signal ended.
func uninterrupted(call func(fd int, b []byte) (int, error), fd int, b []byte) (n int, err error) {
	for {
		if n, err = call(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}
