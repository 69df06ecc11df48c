package ipam

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
	"time"
	"unique"
)

// key is an address with its bits from the top of hi downwards, so that bit i is
// bit i of the prefix in both families. Bits behind the address or prefix are 0.
type key struct{ hi, lo uint64 }

func keyOf(a netip.Addr) key {
	if a.Is4() {
		b := a.As4()
		return key{hi: uint64(binary.BigEndian.Uint32(b[:])) << 32}
	}
	b := a.As16()
	return key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (k key) addr(length int) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.hi)
	binary.BigEndian.PutUint64(b[8:], k.lo)
	if length == 32 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}

func (k key) bit(i int) int {
	if i < 64 {
		return int(k.hi >> (63 - i) & 1)
	}
	return int(k.lo >> (127 - i) & 1)
}

func (k key) withBit(i, b int) key {
	if i < 64 {
		k.hi |= uint64(b) << (63 - i)
	} else {
		k.lo |= uint64(b) << (127 - i)
	}
	return k
}

// withDigit puts the last digit of an address of the given length behind the rest.
func (k key) withDigit(digit, length int) key {
	if length == 32 {
		return key{hi: k.hi | uint64(digit)<<32}
	}
	return key{k.hi, k.lo | uint64(digit)}
}

// first keeps the first n bits.
func (k key) first(n int) key {
	if n <= 64 {
		return key{hi: k.hi &^ (^uint64(0) >> n)}
	}
	return key{k.hi, k.lo &^ (^uint64(0) >> (n - 64))}
}

// then puts the bits of o behind the first n of k.
func (k key) then(n int, o key) key {
	p, q := k.first(n), o.first(n)
	return key{p.hi | o.hi&^q.hi, p.lo | o.lo&^q.lo}
}

// common is how many bits k and o share from the top.
func (k key) common(o key) int {
	if d := k.hi ^ o.hi; d != 0 {
		return bits.LeadingZeros64(d)
	}
	return 64 + bits.LeadingZeros64(k.lo^o.lo)
}

// never is later than any release.
const never = time.Duration(math.MaxInt64)

// blockBits is how many bits of an address a block spans: the last hexadecimal digit.
const blockBits = 4

// block is what is known of the 16 addresses that differ in their last digit, bit
// by bit: held, quarantined, excluded (alone or together with one of the others), or
// none of them, which is never used, or forgotten. It keeps neighbours together in
// memory, which is most of what a full range costs.
type block struct {
	held, quarantined, excluded uint16
	// released is when an address was released last, since the allocator's epoch;
	// of a held one too, where it may be never.
	released [1 << blockBits]time.Duration
	// cidr is what a held address was allocated from.
	cidr [1 << blockBits]unique.Handle[netip.Prefix]
}

// node stands for the prefix (key, bits) in a compressed binary trie, which ends in
// blocks. It is there because it is excluded, because it is a block of which
// something is known, or because both of its halves hold something.
type node struct {
	key               key
	kids              [2]*node
	block             *block
	oldest            time.Duration // the first release below, outside what is excluded
	held, quarantined uint32        // addresses below
	bits              uint8
	excluded          bool
	full              bool // each address below is excluded, held or quarantined
}

// edit returns the trie n with change made to the node of the prefix (k, length),
// which is created where it is missing and dropped where it has become empty.
func edit(n *node, k key, length int, change func(*node)) *node {
	if n == nil {
		n = &node{key: k, bits: uint8(length)}
		change(n)
		return n.settled()
	}
	shared := min(n.key.common(k), int(n.bits), length)
	switch {
	case shared == int(n.bits) && shared == length:
		change(n)
	case shared == int(n.bits):
		side := k.bit(shared)
		n.kids[side] = edit(n.kids[side], k, length, change)
	default:
		above := &node{key: k.first(shared), bits: uint8(shared)}
		above.kids[n.key.bit(shared)] = n
		return edit(above, k, length, change)
	}
	return n.settled()
}

// settled brings n's aggregates up to date with its children or block, and returns
// what stands in n's place: n, or less where n is no longer needed.
func (n *node) settled() *node {
	left, right := n.kids[0], n.kids[1]
	if b := n.block; b != nil && b.held|b.quarantined|b.excluded == 0 {
		n.block = nil
	}
	if !n.excluded && n.block == nil {
		if left == nil {
			return right
		}
		if right == nil {
			return left
		}
	}
	n.held, n.quarantined, n.oldest = 0, 0, never
	n.full = n.excluded
	for _, kid := range n.kids {
		if kid != nil {
			n.held += kid.held
			n.quarantined += kid.quarantined
			n.oldest = min(n.oldest, kid.oldest)
		}
	}
	if left != nil && right != nil && left.bits == n.bits+1 && right.bits == n.bits+1 {
		n.full = n.full || left.full && right.full
	}
	if b := n.block; b != nil {
		n.held, n.quarantined = uint32(bits.OnesCount16(b.held)), uint32(bits.OnesCount16(b.quarantined))
		n.full = n.full || b.held|b.excluded|b.quarantined == everyDigit
		n.oldest, _ = b.oldest(everyDigit)
	}
	if n.excluded {
		n.oldest = never
	}
	return n
}

// everyDigit is the set of all 16 digits.
const everyDigit = 1<<(1<<blockBits) - 1

// digitsOf is the set of last digits that the prefix (k, length) leaves open.
func digitsOf(k key, length, whole int) uint16 {
	if length <= whole-blockBits {
		return everyDigit
	}
	size := 1 << (whole - length)
	return uint16((1<<size - 1) << lastDigit(k, whole))
}

func lastDigit(k key, whole int) int {
	if whole == 32 {
		return int(k.hi>>32) & 0xf
	}
	return int(k.lo) & 0xf
}

// oldest is the first release of the addresses in quarantine among the digits.
func (b *block) oldest(digits uint16) (first time.Duration, digit int) {
	first = never
	for left := b.quarantined &^ b.excluded & digits; left != 0; left &= left - 1 {
		if i := bits.TrailingZeros16(left); b.released[i] < first {
			first, digit = b.released[i], i
		}
	}
	return first, digit
}

// below finds the part of the trie inside the prefix (k, length), which must not be
// longer than a block's: the topmost node in it, or nil. excluded says that the
// whole prefix is excluded.
func (n *node) below(k key, length int) (_ *node, excluded bool) {
	for n != nil && n.key.common(k) >= min(int(n.bits), length) {
		if int(n.bits) > length {
			return n, excluded
		}
		excluded = excluded || n.excluded
		if int(n.bits) == length {
			return n, excluded
		}
		n = n.kids[k.bit(int(n.bits))]
	}
	return nil, excluded
}

// nearest returns the free address of the prefix (k, length) with the smallest
// distance (XOR) to near.
func (n *node) nearest(k key, length, whole int, near key) (key, bool) {
	digits := digitsOf(k, length, whole)
	i := min(length, whole-blockBits)
	k = k.first(i)
	n, excluded := n.below(k, i)
	if excluded || n != nil && int(n.bits) == i && n.full {
		return key{}, false
	}
	// k grows bit by bit into the answer; n is the topmost node inside (k, i), and
	// (k, i) has room. At each bit the side of near is taken if it has room.
	for ; i < whole-blockBits && n != nil; i++ {
		side := near.bit(i)
		if int(n.bits) > i { // all of n is on one side, the other is empty
			if n.key.bit(i) == side && int(n.bits) == i+1 && n.full {
				side = 1 - side
			}
			if n.key.bit(i) != side {
				n = nil
			}
		} else {
			if kid := n.kids[side]; kid != nil && int(kid.bits) == i+1 && kid.full {
				side = 1 - side
			}
			n = n.kids[side]
		}
		k = k.withBit(i, side)
	}
	if n == nil {
		k = k.then(i, near).first(whole - blockBits)
	} else if b := n.block; b != nil {
		digits &^= b.held | b.excluded | b.quarantined
	}
	for distance := range 1 << blockBits {
		if digit := lastDigit(near, whole) ^ distance; digits>>digit&1 == 1 {
			return k.withDigit(digit, whole), true
		}
	}
	return key{}, false
}

// oldestRelease returns the address in the prefix (k, length), outside what is excluded,
// that was released first, and when.
func (n *node) oldestRelease(k key, length, whole int) (_ key, released time.Duration) {
	n, excluded := n.below(k.first(min(length, whole-blockBits)), min(length, whole-blockBits))
	if n == nil || excluded || n.oldest == never {
		return key{}, never
	}
	for n.block == nil {
		if left := n.kids[0]; left != nil && left.oldest == n.oldest {
			n = left
		} else {
			n = n.kids[1]
		}
	}
	released, digit := n.block.oldest(digitsOf(k, length, whole))
	return n.key.withDigit(digit, whole), released
}

// count returns how many addresses of the prefix (k, length) are held and quarantined.
func (n *node) count(k key, length, whole int) (held, quarantined int) {
	n, _ = n.below(k.first(min(length, whole-blockBits)), min(length, whole-blockBits))
	switch {
	case n == nil:
		return 0, 0
	case n.block == nil:
		return int(n.held), int(n.quarantined)
	}
	digits := digitsOf(k, length, whole)
	return bits.OnesCount16(n.block.held & digits), bits.OnesCount16(n.block.quarantined & digits)
}

// blocks yields every block, in order.
func (n *node) blocks(yield func(key, *block) bool) bool {
	if n == nil {
		return true
	}
	if n.block != nil && !yield(n.key, n.block) {
		return false
	}
	return n.kids[0].blocks(yield) && n.kids[1].blocks(yield)
}
