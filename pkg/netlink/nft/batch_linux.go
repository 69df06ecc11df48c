package nft

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// A Batch is a transaction being written. The zero value is an empty one. What it
// adds may be there already, as it is added; what it deletes must be there.
type Batch struct {
	b     netlink.Request
	steps []step
	last  int // where in b the last step begins
	// nextSet numbers sets within the transaction, as the kernel wants it.
	nextSet uint32
}

// step says for people what a message does; it becomes part of its error.
type step struct {
	verb   string
	object fmt.Stringer
}

func (s step) String() string { return s.verb + " " + s.object.String() }

// Len is the transaction's size in bytes. The kernel takes as much as fits the
// socket's send buffer, which is about 200 KiB unless the node's net.core.wmem_default
// says otherwise.
func (b *Batch) Len() int { return len(b.b) }

func (b *Batch) add(verb string, object fmt.Stringer, typ, flags uint16, family Family, fill func(a *netlink.Request)) {
	if len(b.b) == 0 {
		b.control(unix.NFNL_MSG_BATCH_BEGIN)
	}
	b.last = begin(&b.b, typ, flags, family)
	fill(&b.b)
	b.b.End(b.last)
	b.steps = append(b.steps, step{verb, object})
}

// control is the message that begins or ends a transaction.
func (b *Batch) control(typ uint16) {
	b.b.End(b.b.Begin(typ, 0, 0, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES))
}

// DelTable deletes a table and all that is in it.
func (b *Batch) DelTable(t Table) {
	b.add("delete table", t, unix.NFT_MSG_DELTABLE, 0, t.Family, func(a *netlink.Request) {
		a.Str(unix.NFTA_TABLE_NAME, t.Name)
	})
}

// AddTable adds a table, or puts one that is dormant in force.
func (b *Batch) AddTable(t Table) {
	b.add("add table", t, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, t.Family, func(a *netlink.Request) {
		a.Str(unix.NFTA_TABLE_NAME, t.Name)
		a.BE32(unix.NFTA_TABLE_FLAGS, 0)
	})
}

// AddCounter adds a counter; one that is there keeps its count.
func (b *Batch) AddCounter(c Counter) {
	b.add("add counter", c, unix.NFT_MSG_NEWOBJ, unix.NLM_F_CREATE, c.Table.Family, func(a *netlink.Request) {
		a.Str(unix.NFTA_OBJ_TABLE, c.Table.Name)
		a.Str(unix.NFTA_OBJ_NAME, c.Name)
		a.BE32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
		a.Nest(unix.NFTA_OBJ_DATA, func() {})
	})
}

// DelCounter deletes a counter. No rule may use it.
func (b *Batch) DelCounter(c Counter) {
	b.add("delete counter", c, unix.NFT_MSG_DELOBJ, 0, c.Table.Family, func(a *netlink.Request) {
		a.Str(unix.NFTA_OBJ_TABLE, c.Table.Name)
		a.Str(unix.NFTA_OBJ_NAME, c.Name)
		a.BE32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	})
}

// Of linux/netfilter/nf_tables.h.
const (
	nftSetConcat      = 0x80
	nftaSetDescConcat = 2
	nftaSetFieldLen   = 1
	nftaSetExpr       = 17
	nftaSetElemKeyEnd = 10
)

// defaultBurst is nft(8)'s.
const defaultBurst = 5

// AddSet adds a set. One of the same name with another key is an error.
func (b *Batch) AddSet(s Set) {
	b.nextSet++
	b.add("add set", s, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, s.Table.Family, func(a *netlink.Request) {
		a.Str(unix.NFTA_SET_TABLE, s.Table.Name)
		a.Str(unix.NFTA_SET_NAME, s.Name)
		a.BE32(unix.NFTA_SET_FLAGS, s.flags())
		a.BE32(unix.NFTA_SET_KEY_TYPE, s.keyType())
		a.BE32(unix.NFTA_SET_KEY_LEN, uint32(s.keyLen()))
		if typ := s.dataType(); typ != 0 {
			a.BE32(unix.NFTA_SET_DATA_TYPE, typ)
			a.BE32(unix.NFTA_SET_DATA_LEN, uint32(lenOf(s.Data)))
		}
		if s.boxes() {
			a.Nest(unix.NFTA_SET_DESC, func() {
				a.Nest(nftaSetDescConcat, func() {
					for _, f := range s.Key {
						a.Nest(unix.NFTA_LIST_ELEM, func() { a.BE32(nftaSetFieldLen, uint32(f.len)) })
					}
				})
			})
		}
		if s.Dynamic {
			a.BE64(unix.NFTA_SET_TIMEOUT, uint64(s.Timeout.Milliseconds()))
			a.Nest(unix.NFTA_SET_DESC, func() { a.BE32(unix.NFTA_SET_DESC_SIZE, s.Size) })
		}
		a.BE32(unix.NFTA_SET_ID, b.nextSet)
		a.Bytes(unix.NFTA_SET_USERDATA, s.userdata())
		if s.Counters {
			a.Nest(nftaSetExpr, func() {
				a.Str(unix.NFTA_EXPR_NAME, "counter")
				a.Nest(unix.NFTA_EXPR_DATA, func() {})
			})
		}
		if s.Limit > 0 {
			a.Nest(nftaSetExpr, func() {
				a.Str(unix.NFTA_EXPR_NAME, "limit")
				a.Nest(unix.NFTA_EXPR_DATA, func() { appendLimit(a, s.Limit, defaultBurst, 0) })
			})
		}
	})
}

// userdata is what nft(8) leaves with a set for itself, and needs to print names
// of interfaces: the byte order of its key.
func (s Set) userdata() []byte {
	const keyByteOrder, hostEndian, bigEndian = 0, 1, 2 // of libnftnl's udata.h and nftables' datatype.h
	order := uint32(bigEndian)
	if len(s.Key) == 1 && s.Key[0] == IfName {
		order = hostEndian
	}
	return binary.NativeEndian.AppendUint32([]byte{keyByteOrder, 4}, order)
}

// AddChain adds a chain without rules; one that is there keeps its rules.
func (b *Batch) AddChain(c Chain) {
	b.add("add chain", c, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, c.Table.Family, func(a *netlink.Request) {
		a.Str(unix.NFTA_CHAIN_TABLE, c.Table.Name)
		a.Str(unix.NFTA_CHAIN_NAME, c.Name)
		if c.Plain {
			return
		}
		a.Str(unix.NFTA_CHAIN_TYPE, c.typ())
		a.Nest(unix.NFTA_CHAIN_HOOK, func() {
			a.BE32(unix.NFTA_HOOK_HOOKNUM, c.Hook)
			a.BE32(unix.NFTA_HOOK_PRIORITY, uint32(c.Priority))
		})
	})
}

// DelChain deletes a chain and its rules. Nothing may jump to it.
func (b *Batch) DelChain(c Chain) {
	b.delRules(c)
	b.add("delete chain", c, unix.NFT_MSG_DELCHAIN, 0, c.Table.Family, func(a *netlink.Request) {
		a.Str(unix.NFTA_CHAIN_TABLE, c.Table.Name)
		a.Str(unix.NFTA_CHAIN_NAME, c.Name)
	})
}

// DelSet deletes a set. No rule may use it.
func (b *Batch) DelSet(s Set) {
	b.add("delete set", s, unix.NFT_MSG_DELSET, 0, s.Table.Family, func(a *netlink.Request) {
		a.Str(unix.NFTA_SET_TABLE, s.Table.Name)
		a.Str(unix.NFTA_SET_NAME, s.Name)
	})
}

func (b *Batch) delRules(c Chain) {
	b.add("delete rules of chain", c, unix.NFT_MSG_DELRULE, 0, c.Table.Family, func(a *netlink.Request) {
		a.Str(unix.NFTA_RULE_TABLE, c.Table.Name)
		a.Str(unix.NFTA_RULE_CHAIN, c.Name)
	})
}

// SetRules makes a chain's rules these and no others.
func (b *Batch) SetRules(c Chain, rules ...Rule) {
	b.delRules(c)
	b.AddRules(c, rules...)
}

// AddRules adds rules behind those that a chain has.
func (b *Batch) AddRules(c Chain, rules ...Rule) {
	for _, r := range rules {
		b.add("add rule to chain", c, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, c.Table.Family, func(a *netlink.Request) {
			a.Str(unix.NFTA_RULE_TABLE, c.Table.Name)
			a.Str(unix.NFTA_RULE_CHAIN, c.Name)
			a.Nest(unix.NFTA_RULE_EXPRESSIONS, func() {
				for _, e := range r {
					e.appendTo(a)
				}
			})
		})
	}
}

// AddElements adds members to a set. Those that are there keep their counts.
func (b *Batch) AddElements(s Set, keys ...string) { b.Add(s, plain(keys)...) }

// DelElements deletes members of a set.
func (b *Batch) DelElements(s Set, keys ...string) { b.Delete(s, plain(keys)...) }

func plain(keys []string) []Element {
	es := make([]Element, len(keys))
	for i, k := range keys {
		es[i].Key = k
	}
	return es
}

// Add adds members to a set or a map.
func (b *Batch) Add(s Set, elements ...Element) {
	b.elements("add elements to set", s, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, elements)
}

// Delete deletes members of a set or a map. Their verdicts do not matter.
func (b *Batch) Delete(s Set, elements ...Element) {
	b.elements("delete elements of set", s, unix.NFT_MSG_DELSETELEM, 0, elements)
}

// maxElements is how many bytes of elements go into one message. They are one
// attribute, and its length has 16 bits. An element takes less than 512 bytes.
const maxElements = 1<<16 - 512

func (b *Batch) elements(verb string, s Set, typ, flags uint16, elements []Element) {
	verdicts := s.Verdicts && typ == unix.NFT_MSG_NEWSETELEM
	for len(elements) > 0 {
		n := 0
		b.add(verb, s, typ, flags, s.Table.Family, func(a *netlink.Request) {
			a.Str(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
			a.Str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
			a.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
				for start := len(*a); n < len(elements) && len(*a)-start < maxElements; n++ {
					if s.ranges() {
						appendRange(a, elements[n])
					} else {
						appendElement(a, &elements[n], verdicts)
					}
				}
			})
		})
		elements = elements[n:]
	}
}

func appendElement(a *netlink.Request, e *Element, verdict bool) {
	a.Nest(unix.NFTA_LIST_ELEM, func() {
		a.Nest(unix.NFTA_SET_ELEM_KEY, func() { a.Bytes(unix.NFTA_DATA_VALUE, []byte(e.Key)) })
		if e.last {
			a.BE32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		}
		if e.End != "" {
			a.Nest(nftaSetElemKeyEnd, func() { a.Bytes(unix.NFTA_DATA_VALUE, []byte(e.End)) })
		}
		if verdict {
			a.Nest(unix.NFTA_SET_ELEM_DATA, func() { e.Verdict.appendTo(a) })
		}
		if e.Timeout > 0 {
			a.BE64(unix.NFTA_SET_ELEM_TIMEOUT, uint64(max(1, e.Timeout.Milliseconds())))
		}
		if e.Data != "" {
			a.Nest(unix.NFTA_SET_ELEM_DATA, func() { a.Bytes(unix.NFTA_DATA_VALUE, []byte(e.Data)) })
		}
	})
}

// appendRange appends what the kernel has for an interval of one field: an element for
// its first key and, unless it goes to the end, one for the first key behind it.
func appendRange(a *netlink.Request, e Element) {
	behind, more := next(e.End)
	e.End = ""
	appendElement(a, &e, false)
	if more && !e.last {
		appendElement(a, &Element{Key: behind, last: true}, false)
	}
}

// next is the key behind another; false if that is the last.
func next(key string) (string, bool) {
	b := []byte(key)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return string(b), true
		}
	}
	return "", false
}

// Empty deletes all members of a set.
func (b *Batch) Empty(s Set) {
	b.add("empty set", s, unix.NFT_MSG_DELSETELEM, 0, s.Table.Family, func(a *netlink.Request) {
		a.Str(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
		a.Str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	})
}

// boxes says that the elements are intervals of several fields, ranges that they are of
// one.
func (s Set) boxes() bool  { return s.Interval && len(s.Key) > 1 }
func (s Set) ranges() bool { return s.Interval && len(s.Key) == 1 }

func (s Set) flags() (flags uint32) {
	if s.Interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if s.boxes() {
		flags |= nftSetConcat
	}
	if s.dataType() != 0 {
		flags |= unix.NFT_SET_MAP
	}
	if s.Dynamic {
		flags |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	}
	if s.Expires {
		flags |= unix.NFT_SET_TIMEOUT
	}
	return flags
}
