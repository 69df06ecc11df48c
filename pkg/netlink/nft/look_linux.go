package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// Lookup returns those members of a set or map that have one of the keys, by key. An error
// that is ENOENT says that there is no such set; a key that is not in it is no error. It
// costs the same at any size of the set.
func (c *Conn) Lookup(s Set, keys []string) (map[string]Element, error) {
	what := "look up elements of set " + s.String()
	found := make(map[string]Element, len(keys))
	// The kernel answers each request with a message; so many fit the receive buffer.
	const most = 64
	for len(keys) > 0 {
		n := min(most, len(keys))
		var r netlink.Request
		last := 0
		for _, key := range keys[:n] {
			last = begin(&r, unix.NFT_MSG_GETSETELEM, 0, s.Table.Family)
			r.Str(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
			r.Str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
			r.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
				r.Nest(unix.NFTA_LIST_ELEM, func() {
					r.Nest(unix.NFTA_SET_ELEM_KEY, func() { r.Bytes(unix.NFTA_DATA_VALUE, []byte(key)) })
				})
			})
			r.End(last)
		}
		r.AddFlags(last, unix.NLM_F_ACK)
		missing := 0
		err := c.conn.Exchange(r, func(i int, m netlink.Message) (done bool, err error) {
			if m.Type == unix.NLMSG_ERROR {
				refusal, err := m.Refusal()
				switch {
				case err != nil:
					return true, err
				case refusal == nil:
				case errors.Is(refusal, unix.ENOENT):
					missing++
				default:
					return true, refusal
				}
				return i == n-1, nil
			}
			if len(m.Body) < sizeofNfgenmsg {
				return true, netlink.ErrShort
			}
			elements, err := parseElements(m.Body[sizeofNfgenmsg:])
			for _, e := range elements {
				found[e.Key] = e
			}
			return false, err
		})
		if err != nil {
			return nil, failed(what, err)
		}
		if missing == n { // perhaps the set
			if err := c.hasSet(s); err != nil {
				return nil, err
			}
		}
		keys = keys[n:]
	}
	return found, nil
}

// hasSet is nil if there is a set.
func (c *Conn) hasSet(s Set) error {
	var r netlink.Request
	begin(&r, unix.NFT_MSG_GETSET, unix.NLM_F_ACK, s.Table.Family)
	r.Str(unix.NFTA_SET_TABLE, s.Table.Name)
	r.Str(unix.NFTA_SET_NAME, s.Name)
	r.End(0)
	_, err := c.ask("read set "+s.String(), r, func([]byte) error { return nil })
	return err
}

// Parsed is an expression of any program's rule: its name ("lookup") and its attributes by
// type, as linux/netfilter/nf_tables.h has them.
type Parsed struct {
	Name       string
	Attributes map[uint16][]byte
}

// U32 is an attribute that is a number in network byte order; 0 if it is missing.
func (p Parsed) U32(typ uint16) uint32 { return be32(p.Attributes[typ]) }

// Str is an attribute that is a string.
func (p Parsed) Str(typ uint16) string { return unix.ByteSliceToString(p.Attributes[typ]) }

// Value is an attribute that holds data, such as what a register is compared with.
func (p Parsed) Value(typ uint16) []byte {
	v, _ := within(p.Attributes[typ], unix.NFTA_DATA_VALUE)
	return []byte(v)
}

// Verdict is the verdict of an expression "immediate"; false if it has none.
func (p Parsed) Verdict() (v Verdict, ok bool) {
	inner, err := within(p.Attributes[unix.NFTA_IMMEDIATE_DATA], unix.NFTA_DATA_VERDICT)
	if p.Name != "immediate" || err != nil || inner == "" {
		return v, false
	}
	return v, v.parse([]byte(inner)) == nil
}

// Expressions are the expressions of each rule of a chain, in order, also of other programs'.
// An error that is ENOENT says that there is no such chain.
func (c *Conn) Expressions(chain Chain) ([][]Parsed, error) {
	return listRules(c, chain, parseExpressions)
}

func parseExpressions(b []byte) (all []Parsed, err error) {
	err = netlink.Attributes(b, func(_ uint16, v []byte) error {
		name, err := within(v, unix.NFTA_EXPR_NAME)
		if err != nil {
			return err
		}
		data, err := within(v, unix.NFTA_EXPR_DATA)
		if err != nil {
			return err
		}
		p := Parsed{Name: unix.ByteSliceToString([]byte(name)), Attributes: map[uint16][]byte{}}
		err = netlink.Attributes([]byte(data), func(typ uint16, v []byte) error {
			p.Attributes[typ] = v
			return nil
		})
		all = append(all, p)
		return err
	})
	return all, err
}

// SubscribeGenerations reports the end of each transaction of nftables, and not the thousands
// of objects that may be in it, in the calling thread's network namespace.
func SubscribeGenerations() (*netlink.Watch, error) {
	w, err := netlink.Subscribe(unix.NETLINK_NETFILTER, onlyGenerations(), unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return w, nil
}

// Writer is the process that made the transaction whose end a notification reports: its name, of
// 15 characters at most, and ID. The name is empty if the kernel does not say.
func Writer(generation netlink.Message) (name string, pid uint32) {
	if len(generation.Body) < sizeofNfgenmsg {
		return "", 0
	}
	netlink.Attributes(generation.Body[sizeofNfgenmsg:], func(typ uint16, v []byte) error {
		switch {
		case typ == unix.NFTA_GEN_PROC_NAME:
			name = unix.ByteSliceToString(v)
		case typ == unix.NFTA_GEN_PROC_PID && len(v) == 4:
			pid = binary.BigEndian.Uint32(v)
		}
		return nil
	})
	return name, pid
}

// onlyGenerations is a classic BPF program over a message. BPF loads in network byte order
// what netlink writes in the machine's.
func onlyGenerations() []unix.SockFilter {
	const offType = 4
	generation := uint16(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN)
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: offType},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(networkOrder(generation)), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 20},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

// networkOrder is a number of the machine's byte order as it reads in network byte order.
func networkOrder(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}
