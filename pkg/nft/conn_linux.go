package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	in     []byte
	onRead func() // between the reads of a dump; tests only
}

// An Error is the kernel's refusal of one step of a transaction, and so of all
// of it.
type Error struct {
	What  string
	Errno unix.Errno
}

func (e *Error) Error() string {
	remedy := ""
	switch e.Errno {
	case unix.EPERM:
		remedy = " (CAP_NET_ADMIN is needed)"
	case unix.EOPNOTSUPP, unix.EAFNOSUPPORT:
		remedy = " (the kernel must have nf_tables with families inet and arp)"
	}
	return fmt.Sprintf("nftables: %s: %v%s", e.What, e.Errno, remedy)
}

func (e *Error) Unwrap() error { return e.Errno }

var (
	// ErrInterrupted says that a dump stayed inconsistent through all attempts:
	// others commit transactions faster than it can be read, or the kernel was at
	// work on the set's hash table.
	ErrInterrupted = errors.New("dump was interrupted by changes each time it was tried")
	// ErrUnknown says that the kernel's answer to a transaction was lost: it may
	// have been carried out or not.
	ErrUnknown = errors.New("nftables: the kernel did not say what became of the transaction")
)

// The n-th attempt is dumpPause after the one before, n times.
const (
	dumpAttempts = 10
	dumpPause    = time.Millisecond
)

// Dial opens a socket in the calling thread's network namespace.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netlink socket for nftables: %w", err)
	}
	// Each datagram is one of the kernel's buffers, of 32 KiB at most.
	c := &Conn{fd: fd, in: make([]byte, 64<<10)}
	// Refusals need not carry the whole request back.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
		c.Close()
		return nil, fmt.Errorf("netlink socket option NETLINK_CAP_ACK: %w", err)
	}
	// Once connected to the kernel, the socket takes messages from nobody else.
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		c.Close()
		return nil, fmt.Errorf("netlink connect: %w", err)
	}
	return c, nil
}

// Close gives the socket up; what was committed stays. The Conn must not be used
// after.
func (c *Conn) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// Commit carries a transaction out: wholly, or not at all and with an error,
// which is an [Error] if the kernel refused and [ErrUnknown] if the kernel's word
// is not known. An empty transaction is not sent.
func (c *Conn) Commit(b *Batch) error {
	if len(b.steps) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	end := len(b.b)
	b.control(unix.NFNL_MSG_BATCH_END)
	begin := c.seq + 1
	c.number(b.b)
	_, err := c.write(b.b)
	b.b = b.b[:end]
	if err != nil {
		return fmt.Errorf("nftables transaction of %d bytes: %w", end, err)
	}
	return c.answer(b.steps, begin)
}

// number gives each message its sequence number, and has the last but one, which
// is the transaction's last step, acknowledged: errors of the others come unasked.
func (c *Conn) number(b []byte) {
	var step []byte
	for len(b) > 0 {
		n := native.Uint32(b)
		c.seq++
		native.PutUint32(b[8:], c.seq)
		if len(b) == int(n) {
			native.PutUint16(step[6:], native.Uint16(step[6:])|unix.NLM_F_ACK)
		}
		step, b = b, b[n:]
	}
}

// answer reads what the kernel said of the transaction whose first message has
// sequence number begin. It said it before the write returned, so nothing is
// waited for. It goes on after a refusal, and so says all; the first is the cause.
func (c *Conn) answer(steps []step, begin uint32) error {
	last := begin + uint32(len(steps))
	var refused, lost error
	acknowledged := false
	for {
		n, _, err := unix.Recvfrom(c.fd, c.in, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN && refused != nil:
			return refused
		case err == unix.EAGAIN && acknowledged && lost == nil:
			return nil
		case err == unix.EAGAIN:
			return errors.Join(ErrUnknown, lost)
		case err == unix.ENOBUFS: // some of it did not fit; the rest is to be read
			lost = err
			continue
		case err != nil:
			return errors.Join(ErrUnknown, err)
		}
		err = messages(c.in[:n], func(h header, body []byte) error {
			if h.seq-begin > last-begin || h.typ != unix.NLMSG_ERROR {
				return nil // of an earlier exchange
			}
			errno, err := ackErrno(h, body)
			switch {
			case err != nil:
				return err
			case errno != 0 && refused == nil:
				what := "transaction"
				if h.seq != begin {
					what = steps[h.seq-begin-1].String()
				}
				refused = &Error{what, errno}
			case errno == 0 && h.seq == last:
				acknowledged = true
			}
			return nil
		})
		if err != nil {
			lost = err
		}
	}
}

// Elements are the members of a set, by key.
func (c *Conn) Elements(s Set) (elements []Element, err error) {
	what := "list elements of set " + s.String()
	b := attributes(appendHeader(nil, unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, s.Table.Family))
	b.str(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	b.str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	endMessage(b, 0)
	for attempt := range dumpAttempts {
		time.Sleep(time.Duration(attempt) * dumpPause)
		elements = elements[:0]
		interrupted, err := c.ask(what, b, func(body []byte) error {
			more, err := parseElements(body)
			elements = append(elements, more...)
			return err
		})
		if err != nil {
			return nil, err
		}
		slices.SortFunc(elements, func(a, b Element) int { return strings.Compare(a.Key, b.Key) })
		if !interrupted && !twice(elements) {
			return elements, nil
		}
	}
	return nil, fmt.Errorf("nftables: %s: %w", what, ErrInterrupted)
}

// twice says that there is a member that was listed twice. The kernel goes through
// a hash table from the start for each part of a dump, and passes over as many
// members as it has listed. If the table was enlarged meanwhile, which it is some
// time after it was filled, it passes over others than it has listed: for each one
// that is listed twice, one may not be listed at all.
func twice(sorted []Element) bool {
	for i := 1; i < len(sorted); i++ {
		if sorted[i-1].Key == sorted[i].Key {
			return true
		}
	}
	return false
}

// Counter is the count of a named counter.
func (c *Conn) Counter(counter Counter) (count Count, err error) {
	b := attributes(appendHeader(nil, unix.NFT_MSG_GETOBJ, unix.NLM_F_ACK, counter.Table.Family))
	b.str(unix.NFTA_OBJ_TABLE, counter.Table.Name)
	b.str(unix.NFTA_OBJ_NAME, counter.Name)
	b.u32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	endMessage(b, 0)
	_, err = c.ask("read counter "+counter.String(), b, func(body []byte) error {
		return each(body, func(typ uint16, v []byte) error {
			if typ == unix.NFTA_OBJ_DATA {
				return count.parseCount(v)
			}
			return nil
		})
	})
	return count, err
}

// ask sends a request and gives the messages of its answer to f, without their
// headers. interrupted says that a transaction was committed meanwhile: each part
// of the answer has the ruleset's generation in it (low 16 bits). NLM_F_DUMP_INTR,
// which should say so, is not set for the elements of sets (Linux 6.18).
func (c *Conn) ask(what string, request []byte, f func(body []byte) error) (interrupted bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	native.PutUint32(request[8:], c.seq)
	if _, err := c.write(request); err != nil {
		return false, fmt.Errorf("nftables: %s: %w", what, err)
	}
	generation := -1
	for done := false; !done; {
		if c.onRead != nil {
			c.onRead()
		}
		// The kernel continues a dump when it is read, so there is always more to
		// read until it has said that there is not.
		n, _, err := unix.Recvfrom(c.fd, c.in, unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("nftables: %s: %w", what, err)
		}
		err = messages(c.in[:n], func(h header, body []byte) error {
			if h.seq != c.seq {
				return nil // of an earlier exchange
			}
			switch {
			case h.typ == unix.NLMSG_ERROR || h.typ == unix.NLMSG_DONE:
				done = true
				if errno, err := ackErrno(h, body); err != nil {
					return err
				} else if errno != 0 {
					return &Error{what, errno}
				}
				return nil
			case len(body) < sizeofNfgenmsg:
				return errShort
			}
			now := int(binary.BigEndian.Uint16(body[2:]))
			interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0 || generation >= 0 && now != generation
			generation = now
			return f(body[sizeofNfgenmsg:])
		})
		if err != nil {
			return false, err
		}
	}
	return interrupted, nil
}

func (c *Conn) write(b []byte) (n int, err error) {
	for {
		if n, err = unix.Write(c.fd, b); err != unix.EINTR {
			return n, err
		}
	}
}
