package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// sizeofNfgenmsg is that of struct nfgenmsg: family, version, resource ID.
const sizeofNfgenmsg = 4

// begin begins a message of nf_tables (NFT_MSG_…).
func begin(r *netlink.Request, typ, flags uint16, family Family) (start int) {
	return r.Begin(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, byte(family), unix.NFNETLINK_V0, 0, 0)
}

// parseElements reads the members of a set out of one message of a dump.
func parseElements(body []byte) (elements []Element, err error) {
	err = netlink.Attributes(body, func(typ uint16, v []byte) error {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return netlink.Attributes(v, func(_ uint16, v []byte) error {
			var e Element
			err := e.parse(v)
			if err == nil && e.Key == "" {
				err = errors.New("netlink: element without key")
			}
			elements = append(elements, e)
			return err
		})
	})
	return elements, err
}

func (e *Element) parse(b []byte) error {
	return netlink.Attributes(b, func(typ uint16, v []byte) (err error) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			e.Key, err = within(v, unix.NFTA_DATA_VALUE)
		case nftaSetElemKeyEnd:
			e.End, err = within(v, unix.NFTA_DATA_VALUE)
		case unix.NFTA_SET_ELEM_FLAGS:
			e.last = be32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_EXPIRATION:
			if len(v) != 8 {
				return netlink.ErrShort
			}
			e.Timeout = max(time.Duration(binary.BigEndian.Uint64(v))*time.Millisecond, 1) // 0 is never
		case unix.NFTA_SET_ELEM_DATA:
			var verdict string
			if verdict, err = within(v, unix.NFTA_DATA_VERDICT); err == nil {
				err = e.Verdict.parse([]byte(verdict))
			}
			if err == nil {
				e.Data, err = within(v, unix.NFTA_DATA_VALUE)
			}
		case unix.NFTA_SET_ELEM_EXPR:
			var name, count string
			if name, err = within(v, unix.NFTA_EXPR_NAME); err != nil || strings.TrimRight(name, "\x00") != "counter" {
				return err
			}
			if count, err = within(v, unix.NFTA_EXPR_DATA); err == nil {
				err = e.parseCount([]byte(count))
			}
		}
		return err
	})
}

// within is the value of the last attribute of a type in b; empty if there is none.
func within(b []byte, typ uint16) (value string, err error) {
	err = netlink.Attributes(b, func(t uint16, v []byte) error {
		if t == typ {
			value = string(v)
		}
		return nil
	})
	return value, err
}

func (v *Verdict) parse(b []byte) error {
	return netlink.Attributes(b, func(typ uint16, value []byte) error {
		switch typ {
		case unix.NFTA_VERDICT_CODE:
			if len(value) != 4 {
				return netlink.ErrShort
			}
			v.Code = int32(binary.BigEndian.Uint32(value))
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = unix.ByteSliceToString(value)
		}
		return nil
	})
}

func (c *Count) parseCount(b []byte) error {
	return netlink.Attributes(b, func(typ uint16, v []byte) error {
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
