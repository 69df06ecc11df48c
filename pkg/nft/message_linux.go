package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var native = binary.NativeEndian

// attributes is a run of netlink attributes being written. nf_tables has its
// integers in network byte order.
type attributes []byte

func (a *attributes) pad() {
	for len(*a)%4 != 0 {
		*a = append(*a, 0)
	}
}

func (a *attributes) put(typ uint16, value []byte) {
	*a = native.AppendUint16(*a, uint16(unix.SizeofNlAttr+len(value)))
	*a = native.AppendUint16(*a, typ)
	*a = append(*a, value...)
	a.pad()
}

func (a *attributes) str(typ uint16, s string) {
	*a = native.AppendUint16(*a, uint16(unix.SizeofNlAttr+len(s)+1))
	*a = native.AppendUint16(*a, typ)
	*a = append(*a, s...)
	*a = append(*a, 0)
	a.pad()
}

func (a *attributes) u32(typ uint16, v uint32) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	a.put(typ, b[:])
}

// nest puts what fill writes into an attribute of its own.
func (a *attributes) nest(typ uint16, fill func()) {
	start := len(*a)
	*a = append(*a, 0, 0, 0, 0)
	fill()
	native.PutUint16((*a)[start:], uint16(len(*a)-start))
	native.PutUint16((*a)[start+2:], typ|unix.NLA_F_NESTED)
}

var errShort = errors.New("netlink: message shorter than its header says")

// each calls f for each attribute in b. Unknown types are f's to skip.
func each(b []byte, f func(typ uint16, value []byte) error) error {
	for len(b) >= unix.SizeofNlAttr {
		n := int(native.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return errShort
		}
		if err := f(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:n]); err != nil {
			return err
		}
		b = b[min(align(n), len(b)):]
	}
	return nil
}

// sizeofNfgenmsg is that of struct nfgenmsg: family, version, resource ID.
const sizeofNfgenmsg = 4

// appendHeader begins a message of nf_tables (NFT_MSG_…); endMessage ends it.
func appendHeader(b []byte, typ, flags uint16, family Family) []byte {
	b = append(b, make([]byte, unix.SizeofNlMsghdr)...)
	h := b[len(b)-unix.SizeofNlMsghdr:]
	native.PutUint16(h[4:], unix.NFNL_SUBSYS_NFTABLES<<8|typ)
	native.PutUint16(h[6:], unix.NLM_F_REQUEST|flags)
	return append(b, byte(family), unix.NFNETLINK_V0, 0, 0)
}

func endMessage(b []byte, start int) { native.PutUint32(b[start:], uint32(len(b)-start)) }

type header struct {
	typ, flags uint16
	seq        uint32
}

// messages calls f for each message in a datagram.
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

// ackErrno is what an acknowledgement (NLMSG_ERROR), or the end of a dump
// (NLMSG_DONE), tells; 0 is success.
func ackErrno(h header, body []byte) (unix.Errno, error) {
	if len(body) < 4 {
		if h.typ == unix.NLMSG_DONE {
			return 0, nil
		}
		return 0, errShort
	}
	return unix.Errno(-int32(native.Uint32(body))), nil
}

// parseElements reads the members of a set out of one message of a dump.
func parseElements(body []byte) (elements []Element, err error) {
	err = each(body, func(typ uint16, v []byte) error {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return each(v, func(_ uint16, v []byte) error {
			var e Element
			err := each(v, func(typ uint16, v []byte) error {
				switch typ {
				case unix.NFTA_SET_ELEM_KEY:
					return each(v, func(typ uint16, v []byte) error {
						if typ == unix.NFTA_DATA_VALUE {
							e.Key = string(v)
						}
						return nil
					})
				case unix.NFTA_SET_ELEM_EXPR:
					return each(v, func(typ uint16, v []byte) error {
						if typ == unix.NFTA_EXPR_DATA {
							return e.parseCount(v)
						}
						return nil
					})
				}
				return nil
			})
			if err == nil && e.Key == "" {
				err = errors.New("netlink: element without key")
			}
			elements = append(elements, e)
			return err
		})
	})
	return elements, err
}

func (c *Count) parseCount(b []byte) error {
	return each(b, func(typ uint16, v []byte) error {
		if typ != unix.NFTA_COUNTER_PACKETS && typ != unix.NFTA_COUNTER_BYTES {
			return nil
		}
		if len(v) != 8 {
			return fmt.Errorf("netlink: counter of %d bytes, want 8", len(v))
		}
		if typ == unix.NFTA_COUNTER_PACKETS {
			c.Packets = binary.BigEndian.Uint64(v)
		} else {
			c.Bytes = binary.BigEndian.Uint64(v)
		}
		return nil
	})
}
