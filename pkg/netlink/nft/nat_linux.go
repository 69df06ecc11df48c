package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// Of linux/netfilter/nf_tables.h.
const (
	nftFibResultAddrType = 3
	nftaFibFDaddr        = 1 << 1
)

// DestinationType loads what the packet's destination is to the node (RTN_LOCAL, …), as
// four bytes in the machine's byte order.
var DestinationType = Expr{"fib", func(a *netlink.Request) {
	a.BE32(unix.NFTA_FIB_DREG, Reg1)
	a.BE32(unix.NFTA_FIB_RESULT, nftFibResultAddrType)
	a.BE32(unix.NFTA_FIB_FLAGS, nftaFibFDaddr)
}}

// EqualNative matches if register 1 begins with a number in the machine's byte order.
func EqualNative(v uint32) Expr { return Equal(binary.NativeEndian.AppendUint32(nil, v)...) }

// Load replaces what is in register 1 and on by what the map has for it. What is not in
// the map does not match.
func Load(s Set) Expr {
	return Expr{"lookup", func(a *netlink.Request) {
		a.Str(unix.NFTA_LOOKUP_SET, s.Name)
		a.BE32(unix.NFTA_LOOKUP_SREG, Reg1)
		a.BE32(unix.NFTA_LOOKUP_DREG, Reg1)
	}}
}

// DNAT gives the packet's connection another destination: the address of that family
// (NFPROTO_IPV4, NFPROTO_IPV6) in register 1, and the port that follows it.
func DNAT(family uint32) Expr {
	port := Word(1)
	if family == unix.NFPROTO_IPV6 {
		port = Word(4)
	}
	return Expr{"nat", func(a *netlink.Request) {
		a.BE32(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT)
		a.BE32(unix.NFTA_NAT_FAMILY, family)
		a.BE32(unix.NFTA_NAT_REG_ADDR_MIN, Reg1)
		a.BE32(unix.NFTA_NAT_REG_PROTO_MIN, port)
	}}
}

// Masquerade gives the packet's connection the node's address as its source.
var Masquerade = Expr{"masq", func(*netlink.Request) {}}
