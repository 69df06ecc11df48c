package rtnl

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// A Conn is a netlink socket in the network namespace of the thread that dialed
// it. It may be used from several goroutines and from threads in any namespace.
type Conn struct {
	conn   *netlink.Conn
	onBody func(n int) // before the n-th body of a dump is taken; tests only
}

const (
	// maxBatch requests are written at once: the refusals of that many fit the
	// socket's receive buffer as it is by default.
	maxBatch     = 128
	dumpAttempts = 10
)

// Dial opens a socket in the calling thread's network namespace.
func Dial() (*Conn, error) {
	fd, err := netlink.Open(unix.NETLINK_ROUTE, unix.NETLINK_GET_STRICT_CHK)
	if err != nil {
		return nil, err
	}
	return &Conn{conn: netlink.NewConn(fd)}, nil
}

// Close gives the socket up. The Conn must not be used after.
func (c *Conn) Close() { c.conn.Close() }

// Do sends requests in order and returns one error for each, or nil if all succeeded.
// An error is a [netlink.Error] if the kernel refused the request. An error of the
// socket is returned for every request without an answer.
func (c *Conn) Do(ms ...Message) []error { return c.do(ms, nil) }

// do is Do, with the payloads of answers that are not acknowledgements given to
// reply, by the request's index.
func (c *Conn) do(ms []Message, reply func(i int, body []byte)) (errs []error) {
	fail := func(i int, err error) {
		if errs == nil {
			errs = make([]error, len(ms))
		}
		errs[i] = fmt.Errorf("%s: %w", ms[i].What, err)
	}
	for start := 0; start < len(ms); start += maxBatch {
		batch := ms[start:min(start+maxBatch, len(ms))]
		err := c.conn.Exchange(join(batch), func(i int, m netlink.Message) (last bool, err error) {
			if m.Type != unix.NLMSG_ERROR {
				if reply != nil {
					reply(start+i, m.Body)
				}
				return false, nil
			}
			refusal, err := m.Refusal()
			if refusal != nil {
				fail(start+i, refusal)
			}
			return i == len(batch)-1, err
		})
		if err != nil {
			for i := start; i < len(ms); i++ {
				fail(i, err)
			}
			break
		}
	}
	return errs
}

// join makes one request of many. Only the last asks to be acknowledged: the
// kernel answers errors of the others unasked.
func join(batch []Message) netlink.Request {
	r := make(netlink.Request, 0, 128*len(batch))
	last := 0
	for _, m := range batch {
		last = len(r)
		r = append(r, m.b...)
		r.End(last)
	}
	r.AddFlags(last, unix.NLM_F_ACK)
	return r
}

// one does a request that has at most one answer beside its acknowledgement.
func (c *Conn) one(m Message) (body []byte, err error) {
	errs := c.do([]Message{m}, func(_ int, b []byte) { body = slices.Clone(b) })
	if errs != nil {
		return nil, errs[0]
	}
	return body, nil
}

// dump collects a table. It is called again from the start while the kernel says
// that the table changed under it, a bounded number of times.
func (c *Conn) dump(m Message) (bodies [][]byte, err error) {
	m.b.AddFlags(0, unix.NLM_F_DUMP)
	m.b.End(0)
	for range dumpAttempts {
		bodies = bodies[:0]
		interrupted, err := c.conn.Ask(m.b, func(m netlink.Message) error {
			if c.onBody != nil {
				c.onBody(len(bodies))
			}
			bodies = append(bodies, slices.Clone(m.Body))
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.What, err)
		}
		if !interrupted {
			return bodies, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", m.What, netlink.ErrInterrupted)
}
