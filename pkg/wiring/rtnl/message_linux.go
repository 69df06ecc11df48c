package rtnl

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Message is one request: header, family header, attributes. Its sequence
// number is the connection's business.
type Message struct {
	// What says for people what the request does; it becomes part of its error.
	What string
	b    []byte
}

var native = binary.NativeEndian

// newMessage makes a request of a type (RTM_…) with its family header.
func newMessage(what string, typ, flags uint16, header []byte) Message {
	b := make([]byte, unix.SizeofNlMsghdr, 256)
	native.PutUint16(b[4:], typ)
	native.PutUint16(b[6:], flags|unix.NLM_F_REQUEST)
	return Message{What: what, b: append(b, header...)}
}

func (m *Message) flags() uint16 { return native.Uint16(m.b[6:]) }

func (m *Message) setFlags(f uint16) { native.PutUint16(m.b[6:], f) }

// pad aligns to four bytes, as every attribute and message begins (RTA_ALIGNTO).
func (m *Message) pad() {
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *Message) attr(typ uint16, value []byte) {
	m.pad()
	m.b = native.AppendUint16(m.b, uint16(unix.SizeofRtAttr+len(value)))
	m.b = native.AppendUint16(m.b, typ)
	m.b = append(m.b, value...)
}

func (m *Message) u8(typ uint16, v uint8)   { m.attr(typ, []byte{v}) }
func (m *Message) u32(typ uint16, v uint32) { m.attr(typ, native.AppendUint32(nil, v)) }

func (m *Message) str(typ uint16, s string) { m.attr(typ, append([]byte(s), 0)) }

func (m *Message) addr(typ uint16, a netip.Addr) { m.attr(typ, a.AsSlice()) }

// nest puts what fill adds into an attribute of its own.
func (m *Message) nest(typ uint16, fill func()) {
	m.pad()
	start := len(m.b)
	m.b = append(m.b, 0, 0, 0, 0)
	fill()
	m.pad()
	native.PutUint16(m.b[start:], uint16(len(m.b)-start))
	native.PutUint16(m.b[start+2:], typ)
}

var errShort = errors.New("netlink: message shorter than its header says")

// attrs calls f for each attribute in b. Unknown types are f's to skip.
func attrs(b []byte, f func(typ uint16, value []byte)) error {
	for len(b) >= unix.SizeofRtAttr {
		n := int(native.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return errShort
		}
		f(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:n])
		b = b[min(align(n), len(b)):]
	}
	return nil
}

func align(n int) int { return (n + 3) &^ 3 }

// The readers of attributes give the zero value for a wrong length: the kernel
// does not send one, and nothing is decided from it.

func getU8(b []byte) uint8 {
	if len(b) < 1 {
		return 0
	}
	return b[0]
}

func getU32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return native.Uint32(b)
}

func getStr(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func getAddr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func getMAC(b []byte) (m [6]byte) {
	if len(b) == len(m) {
		copy(m[:], b)
	}
	return m
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// anyOf is the default destination of a family (AF_INET or AF_INET6).
func anyOf(fam uint8) netip.Addr {
	if fam == unix.AF_INET {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
