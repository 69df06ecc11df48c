package ipam

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
	"time"
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

// address is what is known of one address that is not simply free.
type address struct {
	held     bool
	cidr     netip.Prefix  // held: what it was allocated from, or zero
	released time.Duration // not held: when it was released, since the allocator's epoch
}

// never is later than any release.
const never = time.Duration(math.MaxInt64)

// node stands for the prefix (key, bits) in a compressed binary trie: it is there
// because it is excluded, because it is a known address, or because both of its
// halves hold something.
type node struct {
	key           key
	kids          [2]*node
	known         *address      // only of a whole address
	oldest        time.Duration // the first release below, outside what is excluded
	held, resting uint32        // addresses below
	bits          uint8
	excluded      bool
	fullHeld      bool // each address below is excluded or held
	full          bool // each address below is excluded, held or resting
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

// settled brings n's aggregates up to date with its children, and returns what
// stands in n's place: n, or less where n is no longer needed.
func (n *node) settled() *node {
	left, right := n.kids[0], n.kids[1]
	if !n.excluded && n.known == nil {
		if left == nil {
			return right
		}
		if right == nil {
			return left
		}
	}
	n.held, n.resting, n.oldest = 0, 0, never
	n.fullHeld, n.full = n.excluded, n.excluded
	if n.known != nil {
		n.full = true
		if n.known.held {
			n.held, n.fullHeld = 1, true
		} else {
			n.resting, n.oldest = 1, n.known.released
		}
	}
	for _, kid := range n.kids {
		if kid != nil {
			n.held += kid.held
			n.resting += kid.resting
			n.oldest = min(n.oldest, kid.oldest)
		}
	}
	if n.excluded {
		n.oldest = never
	}
	if left != nil && right != nil && left.bits == n.bits+1 && right.bits == n.bits+1 {
		n.fullHeld = n.fullHeld || left.fullHeld && right.fullHeld
		n.full = n.full || left.full && right.full
	}
	return n
}

// firstReleased returns the address below n that was released first.
func (n *node) firstReleased() key {
	for n.known == nil || n.known.held {
		if left := n.kids[0]; left != nil && left.oldest == n.oldest {
			n = left
		} else {
			n = n.kids[1]
		}
	}
	return n.key
}

// below finds the part of the trie inside the prefix (k, length): the topmost node
// in it, or nil. excluded says that the whole prefix is excluded.
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
// distance (XOR) to near. With resting, addresses at rest count as free.
func (n *node) nearest(k key, length, whole int, near key, resting bool) (key, bool) {
	full := func(n *node) bool { return n.full && !resting || n.fullHeld }
	n, excluded := n.below(k, length)
	if excluded || n != nil && int(n.bits) == length && full(n) {
		return key{}, false
	}
	// k grows bit by bit into the answer; n is the topmost node inside (k, i), and
	// (k, i) has room. At each bit the side of near is taken if it has room.
	for i := length; i < whole; i++ {
		if n == nil {
			return k.then(i, near), true
		}
		side := near.bit(i)
		if int(n.bits) > i { // all of n is on one side, the other is empty
			if n.key.bit(i) == side && int(n.bits) == i+1 && full(n) {
				side = 1 - side
			}
			if n.key.bit(i) != side {
				n = nil
			}
		} else {
			if kid := n.kids[side]; kid != nil && int(kid.bits) == i+1 && full(kid) {
				side = 1 - side
			}
			n = n.kids[side]
		}
		k = k.withBit(i, side)
	}
	return k, true
}

// addresses yields every known address, in order.
func (n *node) addresses(yield func(key, *address) bool) bool {
	if n == nil {
		return true
	}
	if n.known != nil && !yield(n.key, n.known) {
		return false
	}
	return n.kids[0].addresses(yield) && n.kids[1].addresses(yield)
}
