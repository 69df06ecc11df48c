package nft

import "fmt"

// Family is which packets a table sees (NFPROTO_…).
type Family uint8

// The families that flock uses.
const (
	Inet Family = 1 // IPv4 and IPv6
	ARP  Family = 3
)

func (f Family) String() string {
	switch f {
	case Inet:
		return "inet"
	case ARP:
		return "arp"
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
}

func (s Set) String() string { return s.Table.String() + " " + s.Name }

// A Field is a part of a set's key, with nft's number for its type, by which
// nft(8) knows how to print it.
type Field struct {
	typ uint32
	len int // bytes
}

// The types of fields.
var (
	IPv4Addr   = Field{7, 4}
	IPv6Addr   = Field{8, 16}
	ICMPv6Type = Field{29, 1}
	IfName     = Field{41, 16} // NUL-padded
)

// fieldBits is the width of a type's number within the number of a concatenation
// (nft's TYPE_BITS).
const fieldBits = 6

func (s Set) keyType() (typ uint32) {
	for _, f := range s.Key {
		typ = typ<<fieldBits | f.typ
	}
	return typ
}

func (s Set) keyLen() (n int) {
	if len(s.Key) == 1 {
		return s.Key[0].len
	}
	for _, f := range s.Key {
		n += (f.len + 3) &^ 3
	}
	return n
}

// A Counter is a counter with a name: it keeps its count when the rules that use
// it are replaced.
type Counter struct {
	Table Table
	Name  string
}

func (c Counter) String() string { return c.Table.String() + " " + c.Name }

// A Chain is a base chain of type filter whose policy is to accept: its rules
// see the packets at Hook (NF_INET_…, NF_ARP_…), before chains of a higher
// Priority.
type Chain struct {
	Table    Table
	Name     string
	Hook     uint32
	Priority int32
}

func (c Chain) String() string { return c.Table.String() + " " + c.Name }

// Count is what a counter has seen.
type Count struct{ Packets, Bytes uint64 }

// An Element is a member of a set as the kernel has it. Count is zero in a set
// without counters.
type Element struct {
	Key string
	Count
}
