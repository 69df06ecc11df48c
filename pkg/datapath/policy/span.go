package policy

import (
	"net/netip"
	"slices"
)

// A span is the addresses from one to another of the same family, both included.
type span struct{ from, to netip.Addr }

func prefixSpan(p netip.Prefix) span {
	p = p.Masked()
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 1 << (7 - i%8)
	}
	to, _ := netip.AddrFromSlice(last)
	return span{p.Addr(), to}
}

func (s span) contains(a netip.Addr) bool {
	return s.from.BitLen() == a.BitLen() && s.from.Compare(a) <= 0 && a.Compare(s.to) <= 0
}

func anyContains(spans []span, a netip.Addr) bool {
	return slices.ContainsFunc(spans, func(s span) bool { return s.contains(a) })
}

// subtract takes one span out of others.
func subtract(from []span, s span) (out []span) {
	for _, f := range from {
		if f.from.BitLen() != s.from.BitLen() || s.to.Less(f.from) || f.to.Less(s.from) {
			out = append(out, f)
			continue
		}
		if f.from.Less(s.from) {
			out = append(out, span{f.from, s.from.Prev()})
		}
		if s.to.Less(f.to) {
			out = append(out, span{s.to.Next(), f.to})
		}
	}
	return out
}

// union is the same addresses in as few spans as possible, in order. The spans are
// of one family.
func union(spans []span) (out []span) {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b span) int { return a.from.Compare(b.from) })
	for _, s := range spans {
		if n := len(out); n > 0 && (!out[n-1].to.Less(s.from) || out[n-1].to.Next() == s.from) {
			if out[n-1].to.Less(s.to) {
				out[n-1].to = s.to
			}
			continue
		}
		out = append(out, s)
	}
	return out
}
