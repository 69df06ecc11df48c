package nft

import (
	"encoding/binary"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// policyTable is a table with everything in it that flock's tables use.
const policyTable = `table inet %s {
	counter denied {
		packets 0 bytes 0
	}

	set pods {
		type ipv4_addr . inet_proto . inet_service
		elements = { 10.0.0.1 . 6 . 80 }
	}

	set blocks {
		type ipv4_addr . inet_proto . inet_service
		flags interval
		elements = { 10.0.0.0/24 . 6 . 80-90 }
	}

	set blocks6 {
		type ipv6_addr . inet_proto
		flags interval
		elements = { fd00::/64 . 0-255 }
	}

	set ranges {
		type ipv4_addr
		flags interval
		elements = { 0.0.0.0/8, 10.0.0.0/24, 10.0.2.0, 255.255.0.0/16 }
	}

	set pairs {
		type ifname . ifname
		elements = { "flock1" . "flock1" }
	}

	set logged {
		type ifname
		limit rate 3/second
		elements = { "flock1" limit rate 3/second }
	}

	map links {
		type ifname : verdict
		elements = { "flock1" : jump allowed }
	}

	chain allowed {
		ip daddr . meta l4proto . th dport @pods return
		ip6 saddr . meta l4proto @blocks6 return
		meta l4proto 6 th dport 80-90 return
		iifname @logged limit rate 20/second burst 30 packets log prefix "denied" group 85 snaplen 64
		ip saddr @ranges return
		tcp flags & syn == 0 return
		counter name "denied" drop
	}

	chain orig {
		iifname vmap @links
	}

	chain judge {
		ct direction reply goto allowed
		goto orig
	}

	chain forward {
		type filter hook forward priority filter - 10; policy accept;
		ct mark & 0xffffff00 == 0x00002a00 accept
		ct state related accept
		iifname . oifname @pairs accept
		jump judge
		ct mark set ct mark & 0x000000ff | 0x00002a00
		counter packets 0 bytes 0 reject with icmpx port-unreachable
	}
}
`

func writePolicyTable(b *Batch, t Table) (sets []Set, elements [][]Element) {
	plain := func(name string) Chain { return Chain{Table: t, Name: name, Plain: true} }
	sets = []Set{
		{Table: t, Name: "pods", Key: []Field{IPv4Addr, InetProto, InetPort}},
		{Table: t, Name: "blocks", Key: []Field{IPv4Addr, InetProto, InetPort}, Interval: true},
		{Table: t, Name: "blocks6", Key: []Field{IPv6Addr, InetProto}, Interval: true},
		{Table: t, Name: "ranges", Key: []Field{IPv4Addr}, Interval: true},
		{Table: t, Name: "pairs", Key: []Field{IfName, IfName}},
		{Table: t, Name: "logged", Key: []Field{IfName}, Limit: 3},
		{Table: t, Name: "links", Key: []Field{IfName}, Verdicts: true},
	}
	link := "flock1" + strings.Repeat("\x00", 10)
	fd00 := "\xfd\x00\x00\x00\x00\x00\x00\x00"
	elements = [][]Element{
		{{Key: "\x0a\x00\x00\x01\x06\x00\x00\x00\x00\x50\x00\x00"}},
		{{Key: "\x0a\x00\x00\x00\x06\x00\x00\x00\x00\x50\x00\x00", End: "\x0a\x00\x00\xff\x06\x00\x00\x00\x00\x5a\x00\x00"}},
		{{Key: fd00 + strings.Repeat("\x00", 12), End: fd00 + strings.Repeat("\xff", 9) + "\x00\x00\x00"}},
		{
			{Key: "\x00\x00\x00\x00", End: "\x00\xff\xff\xff"}, {Key: "\x0a\x00\x00\x00", End: "\x0a\x00\x00\xff"},
			{Key: "\x0a\x00\x02\x00", End: "\x0a\x00\x02\x00"}, {Key: "\xff\xff\x00\x00", End: "\xff\xff\xff\xff"},
		},
		{{Key: link + link}},
		{{Key: link}},
		{{Key: link, Verdict: JumpTo("allowed")}},
	}
	b.AddTable(t)
	denied := Counter{Table: t, Name: "denied"}
	b.AddCounter(denied)
	for _, c := range []string{"allowed", "orig", "judge"} {
		b.AddChain(plain(c))
	}
	for i, s := range sets {
		b.AddSet(s)
		b.Add(s, elements[i]...)
	}
	mark := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	const network, transport = unix.NFT_PAYLOAD_NETWORK_HEADER, unix.NFT_PAYLOAD_TRANSPORT_HEADER
	proto := Meta(unix.NFT_META_NFPROTO, Reg1)
	b.AddRules(plain("allowed"),
		Rule{proto, Equal(unix.NFPROTO_IPV4), Payload(network, 16, 4, Word(0)), Meta(unix.NFT_META_L4PROTO, Word(1)), Payload(transport, 2, 2, Word(2)), In(sets[0]), Return},
		Rule{proto, Equal(unix.NFPROTO_IPV6), Payload(network, 8, 16, Word(0)), Meta(unix.NFT_META_L4PROTO, Word(4)), In(sets[2]), Return},
		Rule{Meta(unix.NFT_META_L4PROTO, Reg1), Equal(6), Payload(transport, 2, 2, Reg1), AtLeast(0, 80), AtMost(0, 90), Return},
		Rule{Meta(unix.NFT_META_IIFNAME, Reg1), In(sets[5]), Limit(20, 30), Log(85, "denied", 64)},
		Rule{proto, Equal(unix.NFPROTO_IPV4), Payload(network, 12, 4, Reg1), In(sets[3]), Return},
		Rule{Meta(unix.NFT_META_L4PROTO, Reg1), Equal(6), Payload(transport, 13, 1, Reg1), ByteBits(2), Equal(0), Return},
		Rule{To(denied), Drop},
	)
	b.AddRules(plain("orig"), Rule{Meta(unix.NFT_META_IIFNAME, Reg1), Map(sets[6])})
	b.AddRules(plain("judge"),
		Rule{Ct(unix.NFT_CT_DIRECTION, Reg1), Equal(1), Decide(GoTo("allowed"))},
		Rule{Decide(GoTo("orig"))},
	)
	forward := Chain{Table: t, Name: "forward", Hook: unix.NF_INET_FORWARD, Priority: -10}
	b.AddChain(forward)
	b.AddRules(forward,
		Rule{Ct(unix.NFT_CT_MARK, Reg1), Bits(0xffffff00, 0), Equal(mark(0x2a00)...), Accept},
		Rule{Ct(unix.NFT_CT_STATE, Reg1), Bits(4, 0), Differ(mark(0)...), Accept},
		Rule{Meta(unix.NFT_META_IIFNAME, Reg1), Meta(unix.NFT_META_OIFNAME, Reg2), In(sets[4]), Accept},
		Rule{Decide(JumpTo("judge"))},
		Rule{Ct(unix.NFT_CT_MARK, Reg1), Bits(0xff, 0x2a00), SetCt(unix.NFT_CT_MARK)},
		Rule{CountHere, Reject(unix.NFT_REJECT_ICMPX_PORT_UNREACH)},
	)
	return sets, elements
}

// limitTable is a table with rules that remember addresses and limit rates.
const limitTable = `table inet %s {
	set seen {
		type ipv6_addr
		size 4096
		flags dynamic,timeout
		timeout 3s
	}

	set links {
		type ifname
		size 128
		flags dynamic,timeout
		timeout 1m
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ip6 daddr & ffff:ffff:ffff:fff0:: == 2001:db8:1:20:: accept
		ip6 saddr 2001:db8::/32 update @seen { ip6 saddr }
		update @links { iifname limit rate over 50/second burst 100 packets } drop
		limit rate over 150/second burst 250 packets drop
		add @seen { ip6 daddr }
		ip daddr 10.0.0.0/8 accept
		ip daddr 10.32.0.0/11 accept
	}
}
`

func writeLimitTable(b *Batch, t Table) (sets []Set, elements [][]Element) {
	sets = []Set{
		{Table: t, Name: "seen", Key: []Field{IPv6Addr}, Dynamic: true, Size: 4096, Timeout: 3 * time.Second},
		{Table: t, Name: "links", Key: []Field{IfName}, Dynamic: true, Size: 128, Timeout: time.Minute},
	}
	b.AddTable(t)
	for _, s := range sets {
		b.AddSet(s)
	}
	only := func(family byte) Rule { return Rule{Meta(unix.NFT_META_NFPROTO, Reg1), Equal(family)} }
	header := func(offset, n uint32) Expr { return Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, n, Reg1) }
	mask := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xf0}, make([]byte, 8)...)
	net := append([]byte{0x20, 1, 0xd, 0xb8, 0, 1, 0, 0x20}, make([]byte, 8)...)
	forward := Chain{Table: t, Name: "forward", Hook: unix.NF_INET_FORWARD}
	b.AddChain(forward)
	b.AddRules(forward,
		only(unix.NFPROTO_IPV6).On(header(24, 16), Mask(mask...), Equal(net...), Accept),
		only(unix.NFPROTO_IPV6).On(header(8, 4), Equal(0x20, 1, 0xd, 0xb8), header(8, 16), Renew(sets[0])),
		Rule{Meta(unix.NFT_META_IIFNAME, Reg1), RenewEach(sets[1], Over(50, 100)), Drop},
		Rule{Over(150, 250), Drop},
		only(unix.NFPROTO_IPV6).On(header(24, 16), Remember(sets[0])),
		only(unix.NFPROTO_IPV4).On(header(16, 1), Equal(10), Accept),
		only(unix.NFPROTO_IPV4).On(header(16, 4), Mask(0xff, 0xe0, 0, 0), Equal(10, 32, 0, 0), Accept),
	)
	return sets, make([][]Element, len(sets))
}

// What this package writes and what nft(8) makes of the same in its own words is
// the same to the kernel, and nft(8) lists it in these words.
func TestSameAsNft(t *testing.T) {
	t.Parallel()
	t.Run("policy", func(t *testing.T) { sameAsNft(t, policyTable, writePolicyTable) })
	t.Run("limit", func(t *testing.T) { sameAsNft(t, limitTable, writeLimitTable) })
}

func sameAsNft(t *testing.T, text string, write func(*Batch, Table) ([]Set, [][]Element)) {
	t.Parallel()
	c, ns := dial(t)
	ours, theirs := Table{Inet, "ours"}, Table{Inet, "theirs"}
	var b Batch
	sets, elements := write(&b, ours)
	commit(t, c, &b)
	script := filepath.Join(t.TempDir(), "table.nft")
	if err := os.WriteFile(script, []byte(strings.ReplaceAll(text, "%s", "theirs")), 0o644); err != nil {
		t.Fatal(err)
	}
	ns.Exec("nft", "-f", script)

	for _, table := range []string{"ours", "theirs"} {
		got, want := ns.Exec("nft", "-nn", "list", "table", "inet", table), ns.Exec("nft", "-nn", "list", "table", "inet", "theirs")
		want = strings.Replace(want, "table inet theirs", "table inet "+table, 1)
		if got != want {
			t.Errorf("nft lists table %s as\n%s\nwant\n%s", table, got, want)
		}
	}
	ns.Exec("nft", "list", "ruleset")

	a, err := c.Contents(ours)
	if err != nil {
		t.Fatal(err)
	}
	z, err := c.Contents(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(a.Chains, z.Chains) || !reflect.DeepEqual(a.Sets, z.Sets) {
		t.Errorf("ours %+v\ntheirs %+v", a, z)
	}
	// nft(8) turns the byte order of the protocol's one byte, which does nothing.
	byteOrder := regexp.MustCompile(`\[byteorder [^]]*\]`)
	for _, chain := range slices.Sorted(maps.Keys(z.Rules)) {
		for i, rule := range z.Rules[chain] {
			z.Rules[chain][i] = byteOrder.ReplaceAllString(rule, "")
		}
		if !slices.Equal(a.Rules[chain], z.Rules[chain]) {
			t.Errorf("chain %s: rules\n%s\nwant, as nft has it,\n%s", chain, strings.Join(a.Rules[chain], "\n"), strings.Join(z.Rules[chain], "\n"))
		}
	}
	for i, s := range sets {
		for _, table := range []Table{ours, theirs} {
			s.Table = table
			got, err := c.Elements(s)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, elements[i]) {
				t.Errorf("elements of %s: %+v, want %+v", s, got, elements[i])
			}
			if a.Sets[s.Name] != s.Definition() {
				t.Errorf("set %s is defined as %s, want %s", s.Name, a.Sets[s.Name], s.Definition())
			}
		}
	}
}

// Everything can be taken back, and the definitions before and after sending are
// the same.
func TestDeleteParts(t *testing.T) {
	t.Parallel()
	c, _ := dial(t)
	ours := Table{Inet, "ours"}
	var b Batch
	sets, elements := writePolicyTable(&b, ours)
	commit(t, c, &b)
	before, err := c.Generation()
	if err != nil {
		t.Fatal(err)
	}
	b = Batch{}
	b.Delete(sets[6], elements[6]...)
	b.Delete(sets[3], elements[3]...)
	b.Delete(sets[1], elements[1]...)
	b.DelChain(Chain{Table: ours, Name: "forward"})
	for _, name := range []string{"judge", "orig", "allowed"} {
		b.SetRules(Chain{Table: ours, Name: name})
	}
	for _, name := range []string{"judge", "orig", "allowed"} {
		b.DelChain(Chain{Table: ours, Name: name})
	}
	for _, s := range sets {
		b.DelSet(s)
	}
	if have, err := c.Contents(ours); err != nil || !maps.Equal(have.Counters, map[string]bool{"denied": true}) {
		t.Errorf("counters %v, %v; want denied", have.Counters, err)
	}
	b.DelCounter(Counter{Table: ours, Name: "denied"})
	commit(t, c, &b)
	left, err := c.Contents(ours)
	if err != nil || len(left.Sets)+len(left.Chains)+len(left.Rules)+len(left.Counters) != 0 {
		t.Errorf("left are %+v, %v; want nothing", left, err)
	}
	if after, err := c.Generation(); err != nil || after != before+1 {
		t.Errorf("generation %d, %v; want %d", after, err, before+1)
	}
	b = Batch{}
	b.DelTable(ours)
	commit(t, c, &b)
	if _, err := c.Contents(ours); err == nil {
		t.Error("the table is still there")
	}
}

// A transaction beyond net.core.wmem_max goes through a socket with a buffer for it.
func TestLargeTransaction(t *testing.T) {
	t.Parallel()
	c, _ := dial(t)
	if err := c.SetSendBuffer(64 << 20); err != nil {
		t.Fatal(err)
	}
	var b Batch
	b.AddElements(names, keys(0, 50000)...)
	commit(t, c, &b)
	wantKeys(t, c, keys(0, 50000))
}
