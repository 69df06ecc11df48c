package nft

import (
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

// Meta loads what the kernel knows of the packet beside its bytes (NFT_META_…).
func Meta(key, reg uint32) Expr {
	return Expr{"meta", func(a *netlink.Request) {
		a.BE32(unix.NFTA_META_KEY, key)
		a.BE32(unix.NFTA_META_DREG, reg)
	}}
}

// Payload loads n bytes of the packet, from an offset into one of its headers
// (NFT_PAYLOAD_…). A packet that is too short does not match, nor one whose
// transport header is asked for and is not in it, as in a later fragment.
func Payload(base, offset, n, reg uint32) Expr {
	return Expr{"payload", func(a *netlink.Request) {
		a.BE32(unix.NFTA_PAYLOAD_DREG, reg)
		a.BE32(unix.NFTA_PAYLOAD_BASE, base)
		a.BE32(unix.NFTA_PAYLOAD_OFFSET, offset)
		a.BE32(unix.NFTA_PAYLOAD_LEN, n)
	}}
}

// Equal matches if register 1 begins with these bytes.
func Equal(b ...byte) Expr { return compare(unix.NFT_CMP_EQ, b) }

// Differ matches if register 1 does not begin with these bytes.
func Differ(b ...byte) Expr { return compare(unix.NFT_CMP_NEQ, b) }

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

// To counts the packet.
func To(c Counter) Expr {
	return Expr{"objref", func(a *netlink.Request) {
		a.BE32(unix.NFTA_OBJREF_IMM_TYPE, unix.NFT_OBJECT_COUNTER)
		a.Str(unix.NFTA_OBJREF_IMM_NAME, c.Name)
	}}
}

// Accept ends the chain; chains of a higher priority see the packet. Drop ends
// the packet.
var (
	Accept = verdict(1) // NF_ACCEPT
	Drop   = verdict(0) // NF_DROP
)

func verdict(code uint32) Expr {
	return Expr{"immediate", func(a *netlink.Request) {
		a.BE32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		a.Nest(unix.NFTA_IMMEDIATE_DATA, func() {
			a.Nest(unix.NFTA_DATA_VERDICT, func() { a.BE32(unix.NFTA_VERDICT_CODE, code) })
		})
	}}
}

func (e Expr) appendTo(a *netlink.Request) {
	a.Nest(unix.NFTA_LIST_ELEM, func() {
		a.Str(unix.NFTA_EXPR_NAME, e.name)
		a.Nest(unix.NFTA_EXPR_DATA, func() { e.fill(a) })
	})
}
