package netlink

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

var native = binary.NativeEndian

// A Request is messages to the kernel being written, one behind the other. Each is
// begun, filled with attributes and ended.
type Request []byte

// Begin begins a message with the header of its protocol's family, and returns
// where.
func (r *Request) Begin(typ, flags uint16, header ...byte) (start int) {
	start = len(*r)
	*r = append(*r, make([]byte, unix.SizeofNlMsghdr)...)
	native.PutUint16((*r)[start+4:], typ)
	native.PutUint16((*r)[start+6:], flags|unix.NLM_F_REQUEST)
	*r = append(*r, header...)
	return start
}

// End ends the message that begins at start, and the Request with it.
func (r Request) End(start int) { native.PutUint32(r[start:], uint32(len(r)-start)) }

// AddFlags sets flags (NLM_F_…) of the message that begins at start.
func (r Request) AddFlags(start int, flags uint16) {
	native.PutUint16(r[start+6:], native.Uint16(r[start+6:])|flags)
}

// pad aligns to four bytes, as attributes and messages begin (NLA_ALIGNTO).
func (r *Request) pad() {
	for len(*r)%4 != 0 {
		*r = append(*r, 0)
	}
}

func (r *Request) attribute(typ uint16, n int) {
	*r = native.AppendUint16(*r, uint16(unix.SizeofNlAttr+n))
	*r = native.AppendUint16(*r, typ)
}

// Bytes writes an attribute.
func (r *Request) Bytes(typ uint16, value []byte) {
	r.attribute(typ, len(value))
	*r = append(*r, value...)
	r.pad()
}

// Str writes an attribute that is a string ending with NUL.
func (r *Request) Str(typ uint16, s string) {
	r.attribute(typ, len(s)+1)
	*r = append(*r, s...)
	*r = append(*r, 0)
	r.pad()
}

// U8 writes an attribute of one byte.
func (r *Request) U8(typ uint16, v uint8) {
	r.attribute(typ, 1)
	*r = append(*r, v)
	r.pad()
}

// U16 writes an attribute in the machine's byte order.
func (r *Request) U16(typ, v uint16) {
	r.attribute(typ, 2)
	*r = native.AppendUint16(*r, v)
	r.pad()
}

// U32 writes an attribute in the machine's byte order.
func (r *Request) U32(typ uint16, v uint32) {
	r.attribute(typ, 4)
	*r = native.AppendUint32(*r, v)
}

// BE32 writes an attribute in network byte order.
func (r *Request) BE32(typ uint16, v uint32) {
	r.attribute(typ, 4)
	*r = binary.BigEndian.AppendUint32(*r, v)
}

// BE64 writes an attribute in network byte order.
func (r *Request) BE64(typ uint16, v uint64) {
	r.attribute(typ, 8)
	*r = binary.BigEndian.AppendUint64(*r, v)
}

// Nest puts what fill writes into an attribute of its own.
func (r *Request) Nest(typ uint16, fill func()) {
	start := len(*r)
	r.attribute(typ|unix.NLA_F_NESTED, 0)
	fill()
	native.PutUint16((*r)[start:], uint16(len(*r)-start))
}
