package nft

import (
	"fmt"
	"time"
)

// Family is which packets a table sees (NFPROTO_…).
type Family uint8

// The families that flock uses, and those of other programs' tables that it reads.
const (
	Inet Family = 1 // IPv4 and IPv6
	ARP  Family = 3

	IPv4   Family = 2
	NetDev Family = 5
	IPv6   Family = 10
)

func (f Family) String() string {
	switch f {
	case Inet:
		return "inet"
	case ARP:
		return "arp"
	case IPv4:
		return "ip"
	case NetDev:
		return "netdev"
	case IPv6:
		return "ip6"
	}
	return fmt.Sprintf("family %d", uint8(f))
}

// A Table holds all else. Tables of other names are other programs'.
type Table struct {
	Family Family
	Name   string
}

func (t Table) String() string { return t.Family.String() + " " + t.Name }

// A Set is keyed by the concatenation of its key's fields, each padded to four
// bytes. The kernel hashes it: a lookup costs the same at any size.
type Set struct {
	Table Table
	Name  string
	Key   []Field
	// Counters: each element counts the packets that lookups find it for.
	Counters bool
	// Limit: lookups find each element so many times a second, and five more at once.
	// Else they do not match.
	Limit uint32
	// Interval: an element is a box, from Key to End in each field, both included.
	// Elements must not overlap, and with a key of one field not touch either. The
	// kernel makes a copy of a set with more fields for each transaction that changes
	// it; one field is a tree. A packet may not find an interval in the tree while one
	// that overlaps it comes or goes (Linux before 7.0), or find the old ones for a moment.
	Interval bool
	// Verdicts: the set is a map, and each element has a verdict.
	Verdicts bool
	// Data are the fields of what the elements of a map have that is not of verdicts.
	Data []Field
	// Dynamic: rules add the elements (see Remember), at most Size of them. Each is
	// forgotten Timeout after it was added or updated.
	Dynamic bool
	Size    uint32
	Timeout time.Duration
	// Expires: elements may have a Timeout of their own.
	Expires bool
}

func (s Set) String() string { return s.Table.String() + " " + s.Name }

// A Field is a part of a set's key, with nft's number for its type, by which
// nft(8) knows how to print it.
type Field struct {
	typ uint32
	len int // bytes
}

// Len is the field's length in bytes.
func (f Field) Len() int { return f.len }

// The types of fields.
var (
	IPv4Addr   = Field{7, 4}
	IPv6Addr   = Field{8, 16}
	InetProto  = Field{12, 1}
	InetPort   = Field{13, 2} // inet_service
	ICMPv6Type = Field{29, 1}
	IfName     = Field{41, 16} // NUL-padded
)

// fieldBits is the width of a type's number within the number of a concatenation
// (nft's TYPE_BITS).
const fieldBits = 6

// typeOf is the number of a concatenation.
func typeOf(fields []Field) (typ uint32) {
	for _, f := range fields {
		typ = typ<<fieldBits | f.typ
	}
	return typ
}

// lenOf is the length of a concatenation in bytes.
func lenOf(fields []Field) (n int) {
	if len(fields) == 1 {
		return fields[0].len
	}
	for _, f := range fields {
		n += (f.len + 3) &^ 3
	}
	return n
}

func (s Set) keyType() uint32 { return typeOf(s.Key) }
func (s Set) keyLen() int     { return lenOf(s.Key) }

// nftDataVerdict is the type of verdicts (linux/netfilter/nf_tables.h).
const nftDataVerdict = 0xffffff00

// dataType is the number of what the elements of a map have, 0 in a set.
func (s Set) dataType() uint32 {
	if s.Verdicts {
		return nftDataVerdict
	}
	return typeOf(s.Data)
}

// A Counter is a counter with a name: it keeps its count when the rules that use
// it are replaced.
type Counter struct {
	Table Table
	Name  string
}

func (c Counter) String() string { return c.Table.String() + " " + c.Name }

// A Chain is a base chain of type filter, or of type nat, with the policy to accept: its
// rules see the packets, of type nat only the first of each connection, at Hook (NF_INET_…, NF_ARP_…), before chains of a higher
// Priority. A Plain chain has no hook: rules and elements of maps jump to it.
type Chain struct {
	Table    Table
	Name     string
	Hook     uint32
	Priority int32
	Plain    bool
	NAT      bool
}

func (c Chain) String() string { return c.Table.String() + " " + c.Name }

// BaseChain is a chain with a hook, of any program's.
type BaseChain struct {
	Chain
	// Hooked: it is a base chain indeed. Others have rules only that one of these jumps to.
	Hooked bool
	// Drops: what no rule decides on is dropped.
	Drops bool
	// Devices are the links that a chain of family NetDev is on.
	Devices []string
}

// Count is what a counter has seen.
type Count struct{ Packets, Bytes uint64 }

// An Element is a member of a set. End is empty except in a set of intervals,
// Verdict and Data are zero except in a map, and Count is zero in a set without counters.
type Element struct {
	Key, End string
	Data     string
	Verdict  Verdict
	Count
	// Timeout is after how long the kernel forgets the element, in a set with Expires; 0 is
	// never. Of an element that was read, it is what is left of it. The kernel counts
	// milliseconds.
	Timeout time.Duration
	// last marks what the kernel has for the end of an interval of one field.
	last bool
}

// A Verdict is what a rule or an element of a map decides (NFT_JUMP, NF_DROP, …).
type Verdict struct {
	Code  int32
	Chain string // of a jump or goto
}
