package netlink

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// A request as the kernel reads it (little endian, as both of the architectures
// that flock is built for).
func TestRequestOnTheWire(t *testing.T) {
	t.Parallel()
	var r Request
	first := r.Begin(0x1234, unix.NLM_F_DUMP, 7, 0, 0, 0)
	r.Str(1, "lo")
	r.Nest(2, func() {
		r.U8(3, 9)
		r.U16(4, 0x0102)
		r.U32(5, 0x01020304)
		r.BE32(6, 0x01020304)
	})
	r.Bytes(7, nil)
	r.End(first)
	second := r.Begin(0x5678, 0)
	r.AddFlags(second, unix.NLM_F_ACK)
	r.End(second)
	want := []byte{
		68, 0, 0, 0, 0x34, 0x12, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, // NLM_F_REQUEST | NLM_F_DUMP
		7, 0, 0, 0, // the family's header
		7, 0, 1, 0, 'l', 'o', 0, 0,
		36, 0, 2, 0x80, // NLA_F_NESTED
		5, 0, 3, 0, 9, 0, 0, 0,
		6, 0, 4, 0, 2, 1, 0, 0,
		8, 0, 5, 0, 4, 3, 2, 1,
		8, 0, 6, 0, 1, 2, 3, 4,
		4, 0, 7, 0,
		16, 0, 0, 0, 0x78, 0x56, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, // NLM_F_REQUEST | NLM_F_ACK
	}
	if !bytes.Equal(r, want) {
		t.Errorf("request:\n%v\nwant:\n%v", []byte(r), want)
	}

	// What was written is what is read.
	var types []uint16
	var attributes []string
	err := Messages(r, func(m Message) error {
		types = append(types, m.Type)
		return Attributes(m.Body[min(4, len(m.Body)):], func(typ uint16, v []byte) error {
			attributes = append(attributes, fmt.Sprint(typ, len(v)))
			return nil
		})
	})
	if got := fmt.Sprint(types, attributes, err); got != fmt.Sprint([]uint16{0x1234, 0x5678}, []string{"1 3", "2 32", "7 0"}, nil) {
		t.Errorf("read back: %s", got)
	}
}

func TestShortMessagesAreErrors(t *testing.T) {
	t.Parallel()
	for name, b := range map[string][]byte{
		"length beyond the end":     {20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"length below the header's": {8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		if err := Messages(b, func(Message) error { return nil }); !errors.Is(err, ErrShort) {
			t.Errorf("%s: %v, want ErrShort", name, err)
		}
	}
	for name, b := range map[string][]byte{"beyond the end": {9, 0, 1, 0, 0, 0, 0, 0}, "below the header's": {3, 0, 1, 0}} {
		if err := Attributes(b, func(uint16, []byte) error { return nil }); !errors.Is(err, ErrShort) {
			t.Errorf("attribute's length %s: %v, want ErrShort", name, err)
		}
	}
	if _, err := (Message{Type: unix.NLMSG_ERROR, Body: []byte{1}}).Refusal(); !errors.Is(err, ErrShort) {
		t.Errorf("an acknowledgement without its code: %v, want ErrShort", err)
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	explained := []byte{
		237, 255, 255, 255, // -EACCES… of the code below
		16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // the request's header, capped
		7, 0, unix.NLMSGERR_ATTR_MSG, 0, 'n', 'o', 0, 0,
	}
	whole := bytes.Clone(explained[:4])
	whole = append(whole, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4) // the request itself
	whole = append(whole, explained[20:]...)
	dump := append(bytes.Clone(explained[:4]), explained[20:]...)
	for name, tt := range map[string]struct {
		m    Message
		want string
	}{
		"success":             {Message{Type: unix.NLMSG_ERROR, Body: make([]byte, 20)}, "<nil>"},
		"end of a dump":       {Message{Type: unix.NLMSG_DONE}, "<nil>"},
		"explained":           {Message{Type: unix.NLMSG_ERROR, Flags: unix.NLM_F_CAPPED | unix.NLM_F_ACK_TLVS, Body: explained}, "no such device: no"},
		"with the request":    {Message{Type: unix.NLMSG_ERROR, Flags: unix.NLM_F_ACK_TLVS, Body: whole}, "no such device: no"},
		"of a dump":           {Message{Type: unix.NLMSG_DONE, Flags: unix.NLM_F_ACK_TLVS, Body: dump}, "no such device: no"},
		"not explained":       {Message{Type: unix.NLMSG_ERROR, Flags: unix.NLM_F_CAPPED, Body: explained}, "no such device"},
		"without the request": {Message{Type: unix.NLMSG_ERROR, Flags: unix.NLM_F_ACK_TLVS, Body: explained[:4]}, "no such device"},
		"not permitted":       {Message{Type: unix.NLMSG_ERROR, Body: []byte{255, 255, 255, 255}}, "operation not permitted; CAP_NET_ADMIN is needed"},
	} {
		refusal, err := tt.m.Refusal()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := fmt.Sprint(refusal); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// No answer, however mangled, makes a reader panic or loop.
func FuzzWalk(f *testing.F) {
	var r Request
	start := r.Begin(unix.NLMSG_DONE, 0, 0, 0, 0, 0)
	r.Nest(1, func() { r.Nest(2, func() { r.Str(3, "deep") }) })
	r.End(start)
	f.Add([]byte(r))
	f.Add([]byte{36, 0, 0, 0, 2, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 237, 255, 255, 255, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		read := 0
		var walk func(typ uint16, v []byte) error
		walk = func(_ uint16, v []byte) error {
			read += unix.SizeofNlAttr
			return Attributes(v, walk)
		}
		err := Messages(b, func(m Message) error {
			read += unix.SizeofNlMsghdr
			if _, err := m.Refusal(); err != nil && !errors.Is(err, ErrShort) {
				t.Errorf("unexpected %v", err)
			}
			err := Attributes(m.Body, walk)
			if errors.Is(err, ErrShort) {
				return nil
			}
			return err
		})
		if err != nil && !errors.Is(err, ErrShort) {
			t.Errorf("unexpected %v", err)
		}
		if read > len(b) {
			t.Errorf("%d bytes of headers in %d", read, len(b))
		}
	})
}
