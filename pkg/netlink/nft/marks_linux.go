package nft

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// A MarkWriter is a chain with a rule that writes to the mark of connections.
type MarkWriter struct {
	Chain
	// Bits are those that the rule may change.
	Bits uint32
}

// MarkWriters finds the rules of all tables that write to the ct mark: those of nft, and
// of iptables where its rules are in nftables (target CONNMARK). Rules of
// iptables-legacy, and programs that write marks without a rule, are not seen.
func (c *Conn) MarkWriters() (all []MarkWriter, err error) {
	for _, family := range []Family{Inet, IPv4, IPv6} {
		writers, err := c.markWriters(family)
		if err != nil {
			return nil, err
		}
		all = append(all, writers...)
	}
	return all, nil
}

func (c *Conn) markWriters(family Family) (writers []MarkWriter, err error) {
	what := "list rules of family " + family.String()
	var r netlink.Request
	begin(&r, unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, family)
	r.End(0)
	for range dumpAttempts {
		writers = writers[:0]
		interrupted, err := c.ask(what, r, func(body []byte) error {
			var expressions []byte
			w := MarkWriter{Chain: Chain{Table: Table{Family: family}}}
			err := netlink.Attributes(body, func(typ uint16, v []byte) error {
				switch typ {
				case unix.NFTA_RULE_TABLE:
					w.Table.Name = unix.ByteSliceToString(v)
				case unix.NFTA_RULE_CHAIN:
					w.Name = unix.ByteSliceToString(v)
				case unix.NFTA_RULE_EXPRESSIONS:
					expressions = v
				}
				return nil
			})
			if err != nil {
				return err
			}
			if w.Bits, err = marksWritten(expressions); w.Bits != 0 {
				writers = append(writers, w)
			}
			return err
		})
		if err != nil || !interrupted {
			return writers, err
		}
	}
	return nil, failed(what, netlink.ErrInterrupted)
}

// marksWritten returns the bits of the ct mark that a rule may change.
func marksWritten(expressions []byte) (bits uint32, err error) {
	kept := map[uint32]uint32{} // by register: the bits of the ct mark that it has as they were
	err = netlink.Attributes(expressions, func(_ uint16, v []byte) error {
		name, err := within(v, unix.NFTA_EXPR_NAME)
		if err != nil {
			return err
		}
		data, err := within(v, unix.NFTA_EXPR_DATA)
		if err != nil {
			return err
		}
		a := map[uint16][]byte{}
		if err := netlink.Attributes([]byte(data), func(typ uint16, v []byte) error {
			a[typ] = v
			return nil
		}); err != nil {
			return err
		}
		number := func(typ uint16) uint32 { return be32(a[typ]) }
		switch strings.TrimRight(name, "\x00") {
		case "ct":
			switch isMark := number(unix.NFTA_CT_KEY) == unix.NFT_CT_MARK; {
			case a[unix.NFTA_CT_SREG] != nil && isMark:
				bits |= ^kept[register(number(unix.NFTA_CT_SREG))]
			case a[unix.NFTA_CT_DREG] != nil && isMark:
				kept[register(number(unix.NFTA_CT_DREG))] = ^uint32(0)
			default:
				delete(kept, register(number(unix.NFTA_CT_DREG)))
			}
		case "bitwise":
			from, to := register(number(unix.NFTA_BITWISE_SREG)), register(number(unix.NFTA_BITWISE_DREG))
			mask, maskErr := within(a[unix.NFTA_BITWISE_MASK], unix.NFTA_DATA_VALUE)
			xor, xorErr := within(a[unix.NFTA_BITWISE_XOR], unix.NFTA_DATA_VALUE)
			if maskErr != nil || xorErr != nil || len(mask) != 4 || len(xor) != 4 {
				delete(kept, to) // another operation
				return nil
			}
			kept[to] = kept[from] & native32(mask) &^ native32(xor)
		case "target":
			bits |= connmark(unix.ByteSliceToString(a[nftaTargetName]), number(nftaTargetRev), a[nftaTargetInfo])
		default:
			// Whatever it loads, it may be into any register.
			for _, dreg := range loads[strings.TrimRight(name, "\x00")] {
				delete(kept, register(number(dreg)))
			}
		}
		return nil
	})
	return bits, err
}

// loads has the attribute of each expression's that names the register it loads.
var loads = map[string][]uint16{
	"meta": {unix.NFTA_META_DREG}, "payload": {unix.NFTA_PAYLOAD_DREG}, "immediate": {unix.NFTA_IMMEDIATE_DREG},
	"lookup": {unix.NFTA_LOOKUP_DREG}, "fib": {unix.NFTA_FIB_DREG}, "numgen": {1}, "hash": {2}, "socket": {2},
	"exthdr": {unix.NFTA_EXTHDR_DREG}, "rt": {unix.NFTA_RT_DREG}, "osf": {1}, "tunnel": {2}, "xfrm": {1},
}

// Of linux/netfilter/nf_tables_compat.h.
const nftaTargetName, nftaTargetRev, nftaTargetInfo = 1, 2, 3

// connmark returns the bits of the ct mark that iptables' target of that name changes
// (linux/netfilter/xt_connmark.h).
func connmark(target string, revision uint32, info []byte) uint32 {
	const set, save, restore = 0, 1, 2
	modeAt := map[uint32]int{1: 12, 2: 14}[revision] // the second shifts the mark, too
	switch {
	case target != "CONNMARK":
		return 0
	case modeAt == 0 || len(info) <= modeAt:
		return ^uint32(0)
	}
	ctmark, ctmask, nfmask := native32(string(info[0:4])), native32(string(info[4:8])), native32(string(info[8:12]))
	if revision == 2 {
		if shift := info[13]; info[12] == 0 {
			ctmark, nfmask = ctmark<<shift, nfmask<<shift
		} else {
			ctmark, nfmask = ctmark>>shift, nfmask>>shift
		}
	}
	switch info[modeAt] {
	case set:
		return ctmark | ctmask
	case save:
		return ctmask | nfmask
	case restore:
		return 0
	}
	return ^uint32(0)
}

// register is a register's number as one of 4 bytes: nft names the first of 16 bytes
// too (NFT_REG_1 is NFT_REG32_00).
func register(n uint32) uint32 {
	if n >= unix.NFT_REG_1 && n <= unix.NFT_REG_4 {
		return unix.NFT_REG32_00 + 4*(n-unix.NFT_REG_1)
	}
	return n
}

func native32(s string) uint32 { return binary.NativeEndian.Uint32([]byte(s)) }
