package nft

import (
	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// limitAttributes are those of a limit that this package sets.
var limitAttributes = []uint16{unix.NFTA_LIMIT_RATE, unix.NFTA_LIMIT_UNIT, unix.NFTA_LIMIT_BURST, unix.NFTA_LIMIT_TYPE, unix.NFTA_LIMIT_FLAGS}

// Limit matches so many packets a second, after a burst (a token bucket).
func Limit(rate, burst uint32) Expr {
	return Expr{"limit", func(a *netlink.Request) { appendLimit(a, rate, burst, 0) }}
}

// Over matches the packets beyond a rate for each second, after a burst (a token bucket).
func Over(rate, burst uint32) Expr {
	return Expr{"limit", func(a *netlink.Request) { appendLimit(a, rate, burst, unix.NFT_LIMIT_F_INV) }}
}

func appendLimit(a *netlink.Request, rate, burst, flags uint32) {
	a.BE64(unix.NFTA_LIMIT_RATE, uint64(rate))
	a.BE64(unix.NFTA_LIMIT_UNIT, 1) // seconds
	a.BE32(unix.NFTA_LIMIT_BURST, burst)
	a.BE32(unix.NFTA_LIMIT_TYPE, unix.NFT_LIMIT_PKTS)
	a.BE32(unix.NFTA_LIMIT_FLAGS, flags)
}

// Remember adds what is in register 1 and on to a dynamic set, if it is not there. A
// packet for which the set has no room does not match.
func Remember(s Set) Expr { return dynset(s, unix.NFT_DYNSET_OP_ADD, nil) }

// Renew is Remember that also lets the element's timeout begin again.
func Renew(s Set) Expr { return dynset(s, unix.NFT_DYNSET_OP_UPDATE, nil) }

// RenewEach is Renew, and then matches as each does, of which every element has its own.
func RenewEach(s Set, each Expr) Expr { return dynset(s, unix.NFT_DYNSET_OP_UPDATE, &each) }

func dynset(s Set, op uint32, each *Expr) Expr {
	return Expr{"dynset", func(a *netlink.Request) {
		a.Str(unix.NFTA_DYNSET_SET_NAME, s.Name)
		a.BE32(unix.NFTA_DYNSET_OP, op)
		a.BE32(unix.NFTA_DYNSET_SREG_KEY, Reg1)
		if each != nil {
			a.Nest(unix.NFTA_DYNSET_EXPR, func() {
				a.Str(unix.NFTA_EXPR_NAME, each.name)
				a.Nest(unix.NFTA_EXPR_DATA, func() { each.fill(a) })
			})
		}
	}}
}

// Mask makes of the bytes in register 1 and on what they are & mask.
func Mask(mask ...byte) Expr {
	return Expr{"bitwise", func(a *netlink.Request) {
		a.BE32(unix.NFTA_BITWISE_SREG, Reg1)
		a.BE32(unix.NFTA_BITWISE_DREG, Reg1)
		a.BE32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		a.Nest(unix.NFTA_BITWISE_MASK, func() { a.Bytes(unix.NFTA_DATA_VALUE, mask) })
		a.Nest(unix.NFTA_BITWISE_XOR, func() { a.Bytes(unix.NFTA_DATA_VALUE, make([]byte, len(mask))) })
	}}
}
