package nft

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// Contents is what the kernel has of a table, for comparison with what it should
// have: definitions as [Set.Definition], [Chain.Definition] and [Rule.Definition]
// give them. Elements are not in it.
type Contents struct {
	Sets   map[string]string   // by name
	Chains map[string]string   // by name
	Rules  map[string][]string // by chain
	// Counters are the names of the counters.
	Counters map[string]bool
	// Dormant: the kernel passes over all of the table's chains.
	Dormant bool
}

// Contents reads a table. An error that is ENOENT says that there is no such table.
func (c *Conn) Contents(t Table) (*Contents, error) {
	var err error
	for range dumpAttempts {
		out := &Contents{Sets: map[string]string{}, Chains: map[string]string{}, Rules: map[string][]string{}, Counters: map[string]bool{}}
		var interrupted bool
		if interrupted, err = c.contents(t, out); err != nil {
			return nil, err
		}
		if !interrupted {
			return out, nil
		}
	}
	return nil, failed("list table "+t.String(), netlink.ErrInterrupted)
}

func (c *Conn) contents(t Table, out *Contents) (interrupted bool, err error) {
	var r netlink.Request
	begin(&r, unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, t.Family)
	r.Str(unix.NFTA_TABLE_NAME, t.Name)
	r.End(0)
	_, err = c.ask("read table "+t.String(), r, func(body []byte) error {
		flags, err := within(body, unix.NFTA_TABLE_FLAGS)
		out.Dormant = be32([]byte(flags))&unix.NFT_TABLE_F_DORMANT != 0
		return err
	})
	if err != nil {
		return false, err
	}
	dumps := []struct {
		typ, table uint16
		parse      func(map[uint16][]byte) error
	}{
		{unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE, out.addSet},
		{unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_TABLE, out.addChain},
		{unix.NFT_MSG_GETRULE, unix.NFTA_RULE_TABLE, out.addRule},
		{unix.NFT_MSG_GETOBJ, unix.NFTA_OBJ_TABLE, out.addObject},
	}
	for _, d := range dumps {
		var r netlink.Request
		begin(&r, d.typ, unix.NLM_F_DUMP, t.Family)
		r.Str(d.table, t.Name)
		r.End(0)
		again, err := c.ask("list table "+t.String(), r, func(body []byte) error {
			attributes := map[uint16][]byte{}
			if err := netlink.Attributes(body, func(typ uint16, v []byte) error {
				attributes[typ] = v
				return nil
			}); err != nil {
				return err
			}
			// The kernel does not filter chains by table.
			if unix.ByteSliceToString(attributes[d.table]) != t.Name {
				return nil
			}
			return d.parse(attributes)
		})
		if err != nil {
			return false, err
		}
		interrupted = interrupted || again
	}
	return interrupted, nil
}

// Generation is the number of the ruleset in the calling Conn's namespace. Each
// transaction of anybody's adds one.
func (c *Conn) Generation() (generation uint32, err error) {
	var r netlink.Request
	begin(&r, unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, unix.NFPROTO_UNSPEC)
	r.End(0)
	_, err = c.ask("read the generation", r, func(body []byte) error {
		v, err := within(body, unix.NFTA_GEN_ID)
		generation = be32([]byte(v))
		return err
	})
	return generation, err
}

func be32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// Definition is the set without its elements, to compare.
func (s Set) Definition() string {
	return setDefinition(s.keyType(), uint32(s.keyLen()), s.flags(), s.dataType(), uint64(s.Timeout.Milliseconds()), s.Size)
}

func setDefinition(keyType, keyLen, flags, dataType uint32, timeout uint64, size uint32) string {
	s := fmt.Sprintf("key type %d of %d bytes, flags %#x, data type %#x", keyType, keyLen, flags, dataType)
	if flags&unix.NFT_SET_EVAL != 0 {
		s += fmt.Sprintf(", timeout %d ms, size %d", timeout, size)
	}
	return s
}

func (c *Contents) addSet(a map[uint16][]byte) error {
	var timeout uint64
	if t := a[unix.NFTA_SET_TIMEOUT]; len(t) == 8 {
		timeout = binary.BigEndian.Uint64(t)
	}
	var size string
	if desc := a[unix.NFTA_SET_DESC]; desc != nil {
		var err error
		if size, err = within(desc, unix.NFTA_SET_DESC_SIZE); err != nil {
			return err
		}
	}
	c.Sets[unix.ByteSliceToString(a[unix.NFTA_SET_NAME])] = setDefinition(
		be32(a[unix.NFTA_SET_KEY_TYPE]), be32(a[unix.NFTA_SET_KEY_LEN]), be32(a[unix.NFTA_SET_FLAGS]), be32(a[unix.NFTA_SET_DATA_TYPE]),
		timeout, be32([]byte(size)))
	return nil
}

// Definition is the chain without its rules, to compare.
func (c Chain) Definition() string {
	if c.Plain {
		return "plain"
	}
	return chainDefinition(c.typ(), c.Hook, c.Priority, policyAccept)
}

func (c Chain) typ() string {
	if c.NAT {
		return "nat"
	}
	return "filter"
}

// policyAccept is NF_ACCEPT.
const policyAccept = 1

func chainDefinition(typ string, hook uint32, priority int32, policy uint32) string {
	return fmt.Sprintf("type %s hook %d priority %d policy %d", typ, hook, priority, policy)
}

func (c *Contents) addObject(a map[uint16][]byte) error {
	if be32(a[unix.NFTA_OBJ_TYPE]) == unix.NFT_OBJECT_COUNTER {
		c.Counters[unix.ByteSliceToString(a[unix.NFTA_OBJ_NAME])] = true
	}
	return nil
}

func (c *Contents) addChain(a map[uint16][]byte) error {
	name := unix.ByteSliceToString(a[unix.NFTA_CHAIN_NAME])
	c.Chains[name] = "plain"
	if hook := a[unix.NFTA_CHAIN_HOOK]; hook != nil {
		num, err := within(hook, unix.NFTA_HOOK_HOOKNUM)
		if err != nil {
			return err
		}
		priority, err := within(hook, unix.NFTA_HOOK_PRIORITY)
		if err != nil {
			return err
		}
		c.Chains[name] = chainDefinition(unix.ByteSliceToString(a[unix.NFTA_CHAIN_TYPE]), be32([]byte(num)), int32(be32([]byte(priority))), be32(a[unix.NFTA_CHAIN_POLICY]))
	}
	return nil
}

func (c *Contents) addRule(a map[uint16][]byte) error {
	chain := unix.ByteSliceToString(a[unix.NFTA_RULE_CHAIN])
	rule, err := ruleDefinition(a[unix.NFTA_RULE_EXPRESSIONS])
	c.Rules[chain] = append(c.Rules[chain], rule)
	return err
}

// Definition is the rule, to compare: its expressions with the attributes that this
// package sets.
func (r Rule) Definition() string {
	var b netlink.Request
	for _, e := range r {
		e.appendTo(&b)
	}
	s, err := ruleDefinition(b)
	if err != nil {
		panic(err) // what this package wrote itself
	}
	return s
}

// settable are the attributes of each expression that this package sets. The
// kernel adds others, such as flags that are zero.
var settable = map[string][]uint16{
	"meta":      {unix.NFTA_META_DREG, unix.NFTA_META_KEY, unix.NFTA_META_SREG},
	"payload":   {unix.NFTA_PAYLOAD_DREG, unix.NFTA_PAYLOAD_BASE, unix.NFTA_PAYLOAD_OFFSET, unix.NFTA_PAYLOAD_LEN},
	"cmp":       {unix.NFTA_CMP_SREG, unix.NFTA_CMP_OP, unix.NFTA_CMP_DATA},
	"lookup":    {unix.NFTA_LOOKUP_SET, unix.NFTA_LOOKUP_SREG, unix.NFTA_LOOKUP_DREG},
	"ct":        {unix.NFTA_CT_KEY, unix.NFTA_CT_DREG, unix.NFTA_CT_SREG},
	"bitwise":   {unix.NFTA_BITWISE_SREG, unix.NFTA_BITWISE_DREG, unix.NFTA_BITWISE_LEN, unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR},
	"immediate": {unix.NFTA_IMMEDIATE_DREG, unix.NFTA_IMMEDIATE_DATA},
	"objref":    {unix.NFTA_OBJREF_IMM_TYPE, unix.NFTA_OBJREF_IMM_NAME},
	"reject":    {unix.NFTA_REJECT_TYPE, unix.NFTA_REJECT_ICMP_CODE},
	"counter":   {},
	"log":       {unix.NFTA_LOG_GROUP, unix.NFTA_LOG_PREFIX, unix.NFTA_LOG_SNAPLEN},
	"fib":       {unix.NFTA_FIB_DREG, unix.NFTA_FIB_RESULT, unix.NFTA_FIB_FLAGS},
	"nat":       {unix.NFTA_NAT_TYPE, unix.NFTA_NAT_FAMILY, unix.NFTA_NAT_REG_ADDR_MIN, unix.NFTA_NAT_REG_PROTO_MIN},
	"masq":      {},
	"limit":     limitAttributes,
	"dynset":    {unix.NFTA_DYNSET_SET_NAME, unix.NFTA_DYNSET_OP, unix.NFTA_DYNSET_SREG_KEY, unix.NFTA_DYNSET_EXPR},
}

func ruleDefinition(expressions []byte) (string, error) {
	var out strings.Builder
	err := netlink.Attributes(expressions, func(_ uint16, v []byte) error {
		expression, err := exprDefinition(v)
		out.WriteString(expression)
		return err
	})
	return out.String(), err
}

func exprDefinition(v []byte) (string, error) {
	name, err := within(v, unix.NFTA_EXPR_NAME)
	if err != nil {
		return "", err
	}
	name = strings.TrimRight(name, "\x00")
	data, err := within(v, unix.NFTA_EXPR_DATA)
	if err != nil {
		return "", err
	}
	var attributes []string
	known, all := settable[name]
	err = netlink.Attributes([]byte(data), func(typ uint16, v []byte) error {
		if !all || slices.Contains(known, typ) {
			value, err := value(name, typ, v)
			attributes = append(attributes, fmt.Sprintf(" %d=%s", typ, value))
			return err
		}
		return nil
	})
	slices.Sort(attributes)
	return fmt.Sprintf("[%s%s]", name, strings.Join(attributes, "")), err
}

// value is an attribute's; data is in an attribute of its own within.
func value(expr string, typ uint16, v []byte) (string, error) {
	switch {
	case expr == "lookup" && typ == unix.NFTA_LOOKUP_SET:
		return unix.ByteSliceToString(v), nil
	case expr == "immediate" && typ == unix.NFTA_IMMEDIATE_DATA:
		inner, err := within(v, unix.NFTA_DATA_VERDICT)
		if err != nil {
			return "", err
		}
		var verdict Verdict
		err = verdict.parse([]byte(inner))
		return fmt.Sprintf("%d/%s", verdict.Code, verdict.Chain), err
	case expr == "cmp" && typ == unix.NFTA_CMP_DATA,
		expr == "bitwise" && (typ == unix.NFTA_BITWISE_MASK || typ == unix.NFTA_BITWISE_XOR):
		inner, err := within(v, unix.NFTA_DATA_VALUE)
		return fmt.Sprintf("%x", inner), err
	case expr == "dynset" && typ == unix.NFTA_DYNSET_EXPR:
		return exprDefinition(v)
	}
	return fmt.Sprintf("%x", v), nil
}
