package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// A Conn is a netlink socket in the network namespace of the thread that dialed
// it. It may be used from several goroutines and from threads in any namespace.
type Conn struct {
	conn   *netlink.Conn
	onPart func() // before each part of a dump is taken; tests only
}

// The n-th attempt is dumpPause after the one before, n times.
const (
	dumpAttempts = 10
	dumpPause    = time.Millisecond
)

// Dial opens a socket in the calling thread's network namespace.
func Dial() (*Conn, error) {
	fd, err := netlink.Open(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return &Conn{conn: netlink.NewConn(fd)}, nil
}

// SetSendBuffer lets transactions have up to so many bytes, whatever the node's
// net.core.wmem_max says. CAP_NET_ADMIN is needed.
func (c *Conn) SetSendBuffer(bytes int) error {
	if err := c.conn.SetSendBuffer(bytes); err != nil {
		return fmt.Errorf("nftables: send buffer of %d bytes: %w", bytes, err)
	}
	return nil
}

// Close gives the socket up; what was committed stays. The Conn must not be used
// after.
func (c *Conn) Close() { c.conn.Close() }

// Commit carries a transaction out: wholly, or not at all and with an error, which
// is a [netlink.Error] if the kernel refused. After [netlink.ErrUnknown] it is
// either. An empty transaction is not sent.
func (c *Conn) Commit(b *Batch) error {
	if len(b.steps) == 0 {
		return nil
	}
	// Errors of the other steps come unasked.
	b.b.AddFlags(b.last, unix.NLM_F_ACK)
	size := len(b.b)
	b.control(unix.NFNL_MSG_BATCH_END)
	var refused error
	err := c.conn.Exchange(b.b, func(i int, m netlink.Message) (last bool, err error) {
		refusal, err := m.Refusal()
		if refusal != nil && refused == nil {
			// The kernel goes on after a refusal, and so says all; the first is the cause.
			what := "transaction"
			if i > 0 {
				what = b.steps[i-1].String()
			}
			refused = failed(what, refusal)
		}
		return i == len(b.steps), err
	})
	b.b = b.b[:size]
	switch {
	case refused != nil:
		return refused
	case err != nil:
		return failed(fmt.Sprintf("transaction of %d bytes", size), err)
	}
	return nil
}

func failed(what string, err error) error {
	remedy := ""
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		remedy = " (the kernel must have nf_tables with families inet and arp)"
	}
	return fmt.Errorf("nftables: %s: %w%s", what, err, remedy)
}

// Elements are the members of a set, by key.
func (c *Conn) Elements(s Set) (elements []Element, err error) {
	what := "list elements of set " + s.String()
	var r netlink.Request
	begin(&r, unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, s.Table.Family)
	r.Str(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	r.Str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	r.End(0)
	for attempt := range dumpAttempts {
		time.Sleep(time.Duration(attempt) * dumpPause)
		elements = elements[:0]
		interrupted, err := c.ask(what, r, func(body []byte) error {
			more, err := parseElements(body)
			elements = append(elements, more...)
			return err
		})
		if err != nil {
			return nil, err
		}
		slices.SortFunc(elements, func(a, b Element) int {
			if c := strings.Compare(a.Key, b.Key); c != 0 || a.last == b.last {
				return c
			} else if a.last {
				return -1
			}
			return 1
		})
		if interrupted || twice(elements) {
			continue
		}
		if s.ranges() {
			elements = joinRanges(elements)
		}
		return elements, nil
	}
	return nil, failed(what, netlink.ErrInterrupted)
}

// twice says that there is a member that was listed twice. The kernel goes through
// a hash table from the start for each part of a dump, and passes over as many
// members as it has listed. If the table was enlarged meanwhile, which it is some
// time after it was filled, it passes over others than it has listed: for each one
// that is listed twice, one may not be listed at all.
func twice(sorted []Element) bool {
	for i := 1; i < len(sorted); i++ {
		if sorted[i-1].Key == sorted[i].Key && sorted[i-1].last == sorted[i].last {
			return true
		}
	}
	return false
}

// joinRanges makes intervals of what the kernel has for their ends. An end without a
// beginning, as nft(8) may leave one, stays an element of its own.
func joinRanges(sorted []Element) []Element {
	out := sorted[:0]
	for i := 0; i < len(sorted); i++ {
		e := sorted[i]
		switch {
		case e.last:
		case i+1 < len(sorted):
			e.End = before(sorted[i+1].Key)
			if sorted[i+1].last {
				i++
			}
		default:
			e.End = strings.Repeat("\xff", len(e.Key))
		}
		out = append(out, e)
	}
	return out
}

// before is the key before another that is not the first.
func before(key string) string {
	b := []byte(key)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]--; b[i] != 0xff {
			break
		}
	}
	return string(b)
}

// Counter is the count of a named counter.
func (c *Conn) Counter(counter Counter) (count Count, err error) {
	var r netlink.Request
	begin(&r, unix.NFT_MSG_GETOBJ, unix.NLM_F_ACK, counter.Table.Family)
	r.Str(unix.NFTA_OBJ_TABLE, counter.Table.Name)
	r.Str(unix.NFTA_OBJ_NAME, counter.Name)
	r.BE32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	r.End(0)
	_, err = c.ask("read counter "+counter.String(), r, func(body []byte) error {
		return netlink.Attributes(body, func(typ uint16, v []byte) error {
			if typ == unix.NFTA_OBJ_DATA {
				return count.parseCount(v)
			}
			return nil
		})
	})
	return count, err
}

// Counters are the counts of all named counters of a table, by name. Counters that come
// or go meanwhile may be missing.
func (c *Conn) Counters(t Table) (map[string]Count, error) {
	var r netlink.Request
	begin(&r, unix.NFT_MSG_GETOBJ, unix.NLM_F_DUMP, t.Family)
	r.Str(unix.NFTA_OBJ_TABLE, t.Name)
	r.BE32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	r.End(0)
	out := map[string]Count{}
	_, err := c.ask("list counters of table "+t.String(), r, func(body []byte) error {
		var name string
		var count Count
		err := netlink.Attributes(body, func(typ uint16, v []byte) error {
			switch typ {
			case unix.NFTA_OBJ_NAME:
				name = unix.ByteSliceToString(v)
			case unix.NFTA_OBJ_DATA:
				return count.parseCount(v)
			}
			return nil
		})
		out[name] = count
		return err
	})
	return out, err
}

// ask sends a request and gives the messages of its answer to f, without their
// headers. interrupted says that a transaction was committed meanwhile: each part
// of the answer has the ruleset's generation in it (low 16 bits). NLM_F_DUMP_INTR,
// which should say so, is not set for the elements of sets (Linux 6.18).
func (c *Conn) ask(what string, r netlink.Request, f func(body []byte) error) (interrupted bool, err error) {
	first, changed := -1, false
	interrupted, err = c.conn.Ask(r, func(m netlink.Message) error {
		if c.onPart != nil {
			c.onPart()
		}
		if len(m.Body) < sizeofNfgenmsg {
			return netlink.ErrShort
		}
		generation := int(binary.BigEndian.Uint16(m.Body[2:]))
		if first < 0 {
			first = generation
		}
		changed = changed || generation != first
		return f(m.Body[sizeofNfgenmsg:])
	})
	if err != nil {
		return false, failed(what, err)
	}
	return interrupted || changed, nil
}
