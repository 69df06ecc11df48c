package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

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
			err := netlink.Attributes(v, func(typ uint16, v []byte) error {
				switch typ {
				case unix.NFTA_SET_ELEM_KEY:
					return netlink.Attributes(v, func(typ uint16, v []byte) error {
						if typ == unix.NFTA_DATA_VALUE {
							e.Key = string(v)
						}
						return nil
					})
				case unix.NFTA_SET_ELEM_EXPR:
					return netlink.Attributes(v, func(typ uint16, v []byte) error {
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
