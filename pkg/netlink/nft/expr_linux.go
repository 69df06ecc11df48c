package nft

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// A Rule is carried out from left to right until an expression does not match.
type Rule []Expr

// On is r with more expressions behind.
func (r Rule) On(more ...Expr) Rule { return slices.Concat(r, more) }

// An Expr is one step of a rule. Register 1 is sixteen bytes, 2 follows it: a key
// of two fields is put together by loading the first into 1 and the second into 2.
type Expr struct {
	name string
	fill func(*netlink.Request)
}

// The registers that flock's rules use.
const (
	Reg1 = unix.NFT_REG_1
	Reg2 = unix.NFT_REG_2
)

// Word is the register of four bytes that lies n words behind the begin of register
// 1: where the fields of a key follow each other.
func Word(n uint32) uint32 {
	if n%4 == 0 {
		return unix.NFT_REG_1 + n/4
	}
	return unix.NFT_REG32_00 + n
}

// Meta loads what the kernel knows of the packet beside its bytes (NFT_META_…).
func Meta(key, reg uint32) Expr {
	return Expr{"meta", func(a *netlink.Request) {
		a.BE32(unix.NFTA_META_KEY, key)
		a.BE32(unix.NFTA_META_DREG, reg)
	}}
}

// Payload loads n bytes of the packet, from an offset into one of its headers
// (NFT_PAYLOAD_…). A packet that is too short does not match. Neither does a
// packet without the transport header that is read, such as a later fragment.
func Payload(base, offset, n, reg uint32) Expr {
	return Expr{"payload", func(a *netlink.Request) {
		a.BE32(unix.NFTA_PAYLOAD_DREG, reg)
		a.BE32(unix.NFTA_PAYLOAD_BASE, base)
		a.BE32(unix.NFTA_PAYLOAD_OFFSET, offset)
		a.BE32(unix.NFTA_PAYLOAD_LEN, n)
	}}
}

// Ct loads what conntrack knows of the packet's connection (NFT_CT_…). A packet
// without a connection does not match, except for NFT_CT_STATE.
func Ct(key, reg uint32) Expr {
	return Expr{"ct", func(a *netlink.Request) {
		a.BE32(unix.NFTA_CT_KEY, key)
		a.BE32(unix.NFTA_CT_DREG, reg)
	}}
}

// SetCt writes register 1 to the packet's connection, if there is one.
func SetCt(key uint32) Expr {
	return Expr{"ct", func(a *netlink.Request) {
		a.BE32(unix.NFTA_CT_KEY, key)
		a.BE32(unix.NFTA_CT_SREG, Reg1)
	}}
}

// Bits makes the first four bytes of register 1, in the machine's byte order, what
// they are & mask ^ xor.
func Bits(mask, xor uint32) Expr {
	data := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	return Expr{"bitwise", func(a *netlink.Request) {
		a.BE32(unix.NFTA_BITWISE_SREG, Reg1)
		a.BE32(unix.NFTA_BITWISE_DREG, Reg1)
		a.BE32(unix.NFTA_BITWISE_LEN, 4)
		a.Nest(unix.NFTA_BITWISE_MASK, func() { a.Bytes(unix.NFTA_DATA_VALUE, data(mask)) })
		a.Nest(unix.NFTA_BITWISE_XOR, func() { a.Bytes(unix.NFTA_DATA_VALUE, data(xor)) })
	}}
}

// ByteBits makes the first byte of register 1 what it is & mask.
func ByteBits(mask byte) Expr {
	return Expr{"bitwise", func(a *netlink.Request) {
		a.BE32(unix.NFTA_BITWISE_SREG, Reg1)
		a.BE32(unix.NFTA_BITWISE_DREG, Reg1)
		a.BE32(unix.NFTA_BITWISE_LEN, 1)
		a.Nest(unix.NFTA_BITWISE_MASK, func() { a.Bytes(unix.NFTA_DATA_VALUE, []byte{mask}) })
		a.Nest(unix.NFTA_BITWISE_XOR, func() { a.Bytes(unix.NFTA_DATA_VALUE, []byte{0}) })
	}}
}

// Equal matches if register 1 begins with these bytes.
func Equal(b ...byte) Expr { return compare(unix.NFT_CMP_EQ, b) }

// Differ matches if register 1 does not begin with these bytes.
func Differ(b ...byte) Expr { return compare(unix.NFT_CMP_NEQ, b) }

// AtLeast matches if register 1 begins with these bytes or more, as a number in
// network byte order.
func AtLeast(b ...byte) Expr { return compare(unix.NFT_CMP_GTE, b) }

// AtMost matches if register 1 begins with these bytes or less, as a number in
// network byte order.
func AtMost(b ...byte) Expr { return compare(unix.NFT_CMP_LTE, b) }

func compare(op uint32, b []byte) Expr {
	return Expr{"cmp", func(a *netlink.Request) {
		a.BE32(unix.NFTA_CMP_SREG, Reg1)
		a.BE32(unix.NFTA_CMP_OP, op)
		a.Nest(unix.NFTA_CMP_DATA, func() { a.Bytes(unix.NFTA_DATA_VALUE, b) })
	}}
}

// In matches if what is in register 1 and on is in the set.
func In(s Set) Expr {
	return Expr{"lookup", func(a *netlink.Request) {
		a.Str(unix.NFTA_LOOKUP_SET, s.Name)
		a.BE32(unix.NFTA_LOOKUP_SREG, Reg1)
	}}
}

// Map does what the map says for what is in register 1 and on. What is not in the
// map does not match.
func Map(s Set) Expr {
	return Expr{"lookup", func(a *netlink.Request) {
		a.Str(unix.NFTA_LOOKUP_SET, s.Name)
		a.BE32(unix.NFTA_LOOKUP_SREG, Reg1)
		a.BE32(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT)
	}}
}

// To counts the packet.
func To(c Counter) Expr {
	return Expr{"objref", func(a *netlink.Request) {
		a.BE32(unix.NFTA_OBJREF_IMM_TYPE, unix.NFT_OBJECT_COUNTER)
		a.Str(unix.NFTA_OBJREF_IMM_NAME, c.Name)
	}}
}

// CountHere counts the packets that come as far as this in the rule.
var CountHere = Expr{"counter", func(*netlink.Request) {}}

// Log sends the first bytes of the packet to whoever reads the group (package nflog).
func Log(group uint16, prefix string, bytes uint32) Expr {
	return Expr{"log", func(a *netlink.Request) {
		a.Bytes(unix.NFTA_LOG_GROUP, binary.BigEndian.AppendUint16(nil, group))
		a.Str(unix.NFTA_LOG_PREFIX, prefix)
		a.BE32(unix.NFTA_LOG_SNAPLEN, bytes)
	}}
}

// Reject drops the packet and says so to its sender (NFT_REJECT_ICMPX_…).
func Reject(code uint8) Expr {
	return Expr{"reject", func(a *netlink.Request) {
		a.BE32(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_ICMPX_UNREACH)
		a.U8(unix.NFTA_REJECT_ICMP_CODE, code)
	}}
}

// Reset drops a TCP packet and resets its connection, at the sender. The rule must match
// TCP before.
var Reset = Expr{"reject", func(a *netlink.Request) { a.BE32(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_TCP_RST) }}

// Accept ends the chain; chains of a higher priority see the packet. Drop ends
// the packet. Return goes on behind the jump to this chain.
var (
	Accept = Decide(Verdict{Code: 1}) // NF_ACCEPT
	Drop   = Decide(Verdict{Code: 0}) // NF_DROP
	Return = Decide(Verdict{Code: unix.NFT_RETURN})
)

// JumpTo is the verdict to go on in a chain, and behind the rule when it ends.
func JumpTo(chain string) Verdict { return Verdict{unix.NFT_JUMP, chain} }

// GoTo is the verdict to go on in a chain, and not to come back.
func GoTo(chain string) Verdict { return Verdict{unix.NFT_GOTO, chain} }

// Decide ends a rule with a verdict.
func Decide(v Verdict) Expr {
	return Expr{"immediate", func(a *netlink.Request) {
		a.BE32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		a.Nest(unix.NFTA_IMMEDIATE_DATA, func() { v.appendTo(a) })
	}}
}

func (v Verdict) appendTo(a *netlink.Request) {
	a.Nest(unix.NFTA_DATA_VERDICT, func() {
		a.BE32(unix.NFTA_VERDICT_CODE, uint32(v.Code))
		if v.Chain != "" {
			a.Str(unix.NFTA_VERDICT_CHAIN, v.Chain)
		}
	})
}

func (e Expr) appendTo(a *netlink.Request) {
	a.Nest(unix.NFTA_LIST_ELEM, func() {
		a.Str(unix.NFTA_EXPR_NAME, e.name)
		a.Nest(unix.NFTA_EXPR_DATA, func() { e.fill(a) })
	})
}
