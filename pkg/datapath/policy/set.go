package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// kind is how a lookup matches the peer's address and the port.
type kind uint8

const (
	kindAny     kind = iota // every peer; there is no set
	kindPorts               // every peer: protocol . port
	kindAddr                // address
	kindPort                // address . protocol . port
	kindNet                 // intervals: address
	kindNetPort             // intervals: address . protocol . port
)

var kindNames = [...]string{"any", "ports", "addr", "port", "net", "netport"}

// guard is a condition in the rule beside the lookup: a protocol and a range of its
// ports. The zero value is none.
type guard struct {
	proto  uint8
	lo, hi uint16
}

func (g guard) String() string {
	switch {
	case g.proto == 0:
		return ""
	case g.lo == 0 && g.hi == maxPort:
		return fmt.Sprintf("-%d", g.proto)
	}
	return fmt.Sprintf("-%d-%d-%d", g.proto, g.lo, g.hi)
}

// A lookup is one rule's match. family is 4 or 6, or 0 if the kind has no address.
type lookup struct {
	kind   kind
	family uint8
	guard  guard
}

func (l lookup) String() string {
	s := kindNames[l.kind]
	if l.family != 0 {
		s += fmt.Sprint(l.family)
	}
	return s + l.guard.String()
}

func (l lookup) compare(o lookup) int {
	return cmp.Or(cmp.Compare(l.kind, o.kind), cmp.Compare(l.family, o.family),
		cmp.Compare(l.guard.proto, o.guard.proto), cmp.Compare(l.guard.lo, o.guard.lo), cmp.Compare(l.guard.hi, o.guard.hi))
}

func (l lookup) interval() bool { return l.kind == kindNet || l.kind == kindNetPort }

// hasPort says that the key ends in the protocol and its port.
func (l lookup) hasPort() bool {
	return l.kind == kindPorts || l.kind == kindPort || l.kind == kindNetPort
}

// effect is what being in a set does to a packet.
type effect uint8

const (
	allows effect = iota
	denies
	passes // what was a decision of this tier is left to the next
)

// A Set is one set of the table. Its elements are keys as the kernel has them.
type Set struct {
	Name   string
	lookup lookup
	effect effect
	// boxes are the elements of a set of intervals, in order.
	boxes []box
	// members are those of another set, with how many reasons each has to be in it.
	members map[string]int32
	// was says of each member that changed since the last [Index.Flush] whether it
	// was in the set then.
	was map[string]bool
	// installed says that the set was there at the last flush.
	installed bool
}

// box is an element of a set of intervals: the first key and the last.
type box struct{ from, to string }

// Len is how many elements the set has.
func (s *Set) Len() int { return max(len(s.boxes), len(s.members)) }

func (s *Set) add(x *Index, key string, n int32) {
	before := s.members[key]
	if after := before + n; after == 0 {
		delete(s.members, key)
	} else {
		s.members[key] = after
	}
	if !s.installed {
		return
	}
	if len(s.was) == 0 {
		s.was = map[string]bool{}
		x.changedSets = append(x.changedSets, s)
	}
	if _, known := s.was[key]; !known {
		s.was[key] = before > 0
	}
}

// replace makes the members these.
func (s *Set) replace(x *Index, members map[string]int32) {
	for key, n := range s.members {
		if members[key] == 0 {
			s.add(x, key, -n)
		}
	}
	for key, n := range members {
		if more := n - s.members[key]; more != 0 {
			s.add(x, key, more)
		}
	}
}

// flush returns what changed since the last time.
func (s *Set) flush() (added, deleted []string) {
	for key, was := range s.was {
		switch is := s.members[key] > 0; {
		case is && !was:
			added = append(added, key)
		case was && !is:
			deleted = append(deleted, key)
		}
	}
	s.was = nil
	slices.Sort(added)
	slices.Sort(deleted)
	return added, deleted
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return 4
	}
	return 6
}

// The fields of a key are padded to four bytes.
func appendProto(b []byte, proto uint8) []byte { return append(b, proto, 0, 0, 0) }
func appendPort(b []byte, number uint16) []byte {
	return append(b, byte(number>>8), byte(number), 0, 0)
}
func appendAddr(b []byte, a netip.Addr) []byte { return append(b, a.AsSlice()...) }
func addrKey(a netip.Addr) string              { var b [16]byte; return string(appendAddr(b[:0], a)) }
func portsKey(proto uint8, number uint16) string {
	return string(appendPort(appendProto(nil, proto), number))
}

func portKey(a netip.Addr, proto uint8, number uint16) string {
	var b [24]byte
	return string(appendPort(appendProto(appendAddr(b[:0], a), proto), number))
}

// netTerm is what a rule allows to blocks of addresses: all, or a range of ports.
type netTerm struct {
	spans []span
	port  port
}

func appendFamily(out, spans []span, family uint8) []span {
	for _, s := range spans {
		if familyOf(s.from) == family {
			out = append(out, s)
		}
	}
	return out
}

// netBoxes are the boxes of kindNetPort that cover the terms' addresses of one family,
// less the terms for all ports. They do not overlap, as the kernel wants it.
func netBoxes(terms []netTerm, family uint8) (boxes []box) {
	for _, proto := range []uint8{tcp, udp, sctp} {
		// Between two cuts, the same terms match every port.
		var cuts []int
		for _, t := range terms {
			if t.port.proto == proto {
				cuts = append(cuts, int(t.port.lo), int(t.port.hi)+1)
			}
		}
		slices.Sort(cuts)
		cuts = slices.Compact(cuts)
		for i := 1; i < len(cuts); i++ {
			lo, hi := uint16(cuts[i-1]), uint16(cuts[i]-1)
			var spans []span
			for _, t := range terms {
				if t.port.proto == proto && t.port.lo <= lo && hi <= t.port.hi {
					spans = appendFamily(spans, t.spans, family)
				}
			}
			for _, s := range union(spans) {
				boxes = append(boxes, box{
					string(appendPort(appendProto(appendAddr(nil, s.from), proto), lo)),
					string(appendPort(appendProto(appendAddr(nil, s.to), proto), hi)),
				})
			}
		}
	}
	return boxes
}

// digest is a short name for what is too long to be one. Tenants choose what goes in,
// so it must not be possible to find two that are the same.
func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return strings.ToLower(base32.HexEncoding.EncodeToString(h.Sum(nil)[:15]))
}
