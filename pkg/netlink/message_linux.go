package netlink

import (
	"errors"

	"golang.org/x/sys/unix"
)

// A Message is one that the kernel sent. Its Body begins with the header of its
// protocol's family.
type Message struct {
	Type, Flags uint16
	Body        []byte
	// Port is the port ID of the socket on which the change was asked for that a
	// notification reports; 0 if the kernel made it, or does not say.
	Port uint32
	seq  uint32
}

// ErrShort says that a message is cut off.
var ErrShort = errors.New("netlink: message shorter than its header says")

// Messages calls f for each message in a datagram, until it returns an error.
func Messages(b []byte, f func(Message) error) error {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(native.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return ErrShort
		}
		m := Message{Type: native.Uint16(b[4:]), Flags: native.Uint16(b[6:]), Body: b[unix.SizeofNlMsghdr:n], seq: native.Uint32(b[8:]), Port: native.Uint32(b[12:])}
		if err := f(m); err != nil {
			return err
		}
		b = b[min(Align(n), len(b)):]
	}
	return nil
}

// Attributes calls f for each attribute in b, until it returns an error. Unknown
// types are f's to skip.
func Attributes(b []byte, f func(typ uint16, value []byte) error) error {
	for len(b) >= unix.SizeofNlAttr {
		n := int(native.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return ErrShort
		}
		if err := f(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:n]); err != nil {
			return err
		}
		b = b[min(Align(n), len(b)):]
	}
	return nil
}

// Align is where behind n bytes the next attribute or message begins.
func Align(n int) int { return (n + 3) &^ 3 }

// An Error is the kernel's refusal of a request.
type Error struct {
	Errno unix.Errno
	// Detail is the kernel's own explanation (extended acknowledgement); often
	// empty.
	Detail string
}

func (e *Error) Error() string {
	s := e.Errno.Error()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Errno == unix.EPERM {
		s += "; CAP_NET_ADMIN is needed"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Errno }

// Refusal reads an acknowledgement (NLMSG_ERROR) or the end of a dump
// (NLMSG_DONE). It returns nil, nil on success.
func (m Message) Refusal() (*Error, error) {
	if len(m.Body) < 4 {
		if m.Type == unix.NLMSG_DONE {
			return nil, nil
		}
		return nil, ErrShort
	}
	errno := -int32(native.Uint32(m.Body))
	if errno <= 0 {
		return nil, nil
	}
	e := &Error{Errno: unix.Errno(errno)}
	if m.Flags&unix.NLM_F_ACK_TLVS == 0 {
		return e, nil
	}
	rest := m.Body[4:]
	if m.Type == unix.NLMSG_ERROR {
		// The request's header follows, and with it the whole request unless
		// the kernel capped it as asked (NETLINK_CAP_ACK).
		skip := unix.SizeofNlMsghdr
		if m.Flags&unix.NLM_F_CAPPED == 0 && len(rest) >= 4 {
			skip = Align(int(native.Uint32(rest)))
		}
		if skip > len(rest) {
			return e, nil
		}
		rest = rest[skip:]
	}
	err := Attributes(rest, func(typ uint16, v []byte) error {
		if typ == unix.NLMSGERR_ATTR_MSG {
			e.Detail = unix.ByteSliceToString(v)
		}
		return nil
	})
	return e, err
}
