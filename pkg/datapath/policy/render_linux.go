package policy

import (
	"encoding/binary"
	"maps"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

var table = nft.Table{Family: nft.Inet, Name: kernel.PolicyTable}

// The maps from a pod's interface to the chain of its profile, for each side and
// direction of a connection.
var (
	fromPod      = verdictMap("from-pod")       // the pod's connections, what it sends
	toPod        = verdictMap("to-pod")         // connections to the pod, what it gets
	replyToPod   = verdictMap("reply-to-pod")   // the pod's connections, what it gets
	replyFromPod = verdictMap("reply-from-pod") // connections to the pod, what it sends
	toNode       = verdictMap("to-node")        // what the pod sends to its node
	// hairpin has the pairs of interfaces by which a pod reaches itself through a
	// Service.
	hairpin = nft.Set{Table: table, Name: "hairpin", Key: []nft.Field{nft.IfName, nft.IfName}}

	// deniedIn and deniedOut count for each pod what policies deny of what it gets and
	// of what it sends.
	deniedIn  = nft.Set{Table: table, Name: "denied-in", Key: []nft.Field{nft.IfName}, Counters: true}
	deniedOut = nft.Set{Table: table, Name: "denied-out", Key: []nft.Field{nft.IfName}, Counters: true}

	// logIn and logOut are the pods whose denied packets are logged. A table in which
	// nothing is logged does not have them: the kernel may lack what they need.
	logIn  = nft.Set{Table: table, Name: "log-in", Key: []nft.Field{nft.IfName}, Limit: LogRate}
	logOut = nft.Set{Table: table, Name: "log-out", Key: []nft.Field{nft.IfName}, Limit: LogRate}

	staticSets = []nft.Set{fromPod, toPod, replyToPod, replyFromPod, toNode, hairpin, deniedIn, deniedOut}
)

// logSets are the sets of a table in which something is logged.
var logSets = []nft.Set{logIn, logOut}

// What is logged at most, in packets a second: of a pod in one direction, and of the
// node for each of the four chains that deny.
const (
	LogRate  = 5
	nodeRate = 50
	// logBytes is enough for the headers of a packet.
	logBytes = 128
)

func verdictMap(name string) nft.Set {
	return nft.Set{Table: table, Name: name, Key: []nft.Field{nft.IfName}, Verdicts: true}
}

func plainChain(name string) nft.Chain { return nft.Chain{Table: table, Name: name, Plain: true} }

// Before other filters, so that their counters see what policies let through.
const filterPriority = -10

var (
	forward = nft.Chain{Table: table, Name: "forward", Hook: unix.NF_INET_FORWARD, Priority: filterPriority}
	input   = nft.Chain{Table: table, Name: "input", Hook: unix.NF_INET_LOCAL_IN, Priority: filterPriority}
	judge   = plainChain("judge")
	either  = plainChain("either")
	orig    = plainChain("orig")
	reply   = plainChain("reply")

	// What profiles deny ends in one of these, by the direction of the connection and
	// of the packet.
	denyFromPod      = plainChain("deny-from-pod")
	denyToPod        = plainChain("deny-to-pod")
	denyReplyToPod   = plainChain("deny-reply-to-pod")
	denyReplyFromPod = plainChain("deny-reply-from-pod")
)

// A chainState is a chain with its rules.
type chainState struct {
	chain nft.Chain
	rules []nft.Rule
}

// turned is the bit of a connection that may have been opened by the one whom conntrack
// takes for its server.
func (m Mark) turned() uint32 { return uint32(m) & -uint32(m) }

// generations are the other bits.
func (m Mark) generations() uint32 { return uint32(m) &^ m.turned() }

// value is the mark of a generation, which is never 0.
func (m Mark) value(generation uint32) uint32 {
	shift := bits.TrailingZeros32(m.generations())
	return (generation%(m.generations()>>shift) + 1) << shift
}

// generation is what value made a mark of.
func (m Mark) generation(value uint32) uint32 {
	return (value&m.generations())>>bits.TrailingZeros32(m.generations()) - 1
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

const (
	network   = unix.NFT_PAYLOAD_NETWORK_HEADER
	transport = unix.NFT_PAYLOAD_TRANSPORT_HEADER

	relatedBit = 4 // NF_CT_STATE_BIT(IP_CT_RELATED)
	newBit     = 8 // NF_CT_STATE_BIT(IP_CT_NEW)
	isReply    = 1 // IP_CT_DIR_REPLY

	tcpFlags, synBit = 13, 2

	// firstEphemeral is the first port that Linux gives to a client (ip_local_port_range).
	firstEphemeral = 32768
)

// seen accepts what this generation has judged, and what a judged connection causes.
func (m Mark) seen(generation uint32) []nft.Rule {
	return []nft.Rule{
		// ct mark & MASK == GENERATION accept
		{nft.Ct(unix.NFT_CT_MARK, nft.Reg1), nft.Bits(m.generations(), 0), nft.Equal(native(m.value(generation))...), nft.Accept},
		// ct state related accept
		{nft.Ct(unix.NFT_CT_STATE, nft.Reg1), nft.Bits(relatedBit, 0), nft.Differ(native(0)...), nft.Accept},
	}
}

// stamp writes the generation to the connection. It must stay in the base chain,
// beside seen: a packet sees both as one transaction left them.
func (m Mark) stamp(generation uint32) nft.Rule {
	// ct mark set ct mark & ~MASK | GENERATION
	return nft.Rule{nft.Ct(unix.NFT_CT_MARK, nft.Reg1), nft.Bits(^m.generations(), m.value(generation)), nft.SetCt(unix.NFT_CT_MARK)}
}

// turn notes that the packet seems to be a server's, of a TCP connection that conntrack
// did not see begin: its table was flushed, or the node tracked nothing. It is taken for
// the first of a connection that its sender opens; but no connection begins without SYN,
// and the ports are those of a server and a client.
func (m Mark) turn() nft.Rule {
	port := func(offset uint32) nft.Expr { return nft.Payload(transport, offset, 2, nft.Reg1) }
	// ct state new tcp flags ! syn tcp sport < 32768 tcp dport >= 32768 ct mark set ct mark | TURNED
	return nft.Rule{
		nft.Meta(unix.NFT_META_L4PROTO, nft.Reg1), nft.Equal(tcp),
		nft.Ct(unix.NFT_CT_STATE, nft.Reg1), nft.Bits(newBit, 0), nft.Differ(native(0)...),
		nft.Payload(transport, tcpFlags, 1, nft.Reg1), nft.ByteBits(synBit), nft.Equal(0),
		port(0), nft.AtMost((firstEphemeral-1)>>8, (firstEphemeral-1)&0xff),
		port(2), nft.AtLeast(firstEphemeral>>8, firstEphemeral&0xff),
		nft.Ct(unix.NFT_CT_MARK, nft.Reg1), nft.Bits(^m.turned(), m.turned()), nft.SetCt(unix.NFT_CT_MARK),
	}
}

// baseRules are those of the chains forward and input.
func (m Mark) baseRules(generation uint32) [2][]nft.Rule {
	return [2][]nft.Rule{m.forwardRules(generation), m.inputRules(generation)}
}

// openRules are baseRules without a generation: every packet is judged.
func (m Mark) openRules(uint32) (out [2][]nft.Rule) {
	for i, rules := range m.baseRules(0) {
		out[i] = rules[1 : len(rules)-1] // less the first of seen, and stamp
	}
	return out
}

func (m Mark) forwardRules(generation uint32) []nft.Rule {
	return append(m.seen(generation),
		// iifname . oifname @hairpin accept
		nft.Rule{nft.Meta(unix.NFT_META_IIFNAME, nft.Reg1), nft.Meta(unix.NFT_META_OIFNAME, nft.Reg2), nft.In(hairpin), nft.Accept},
		m.turn(),
		// jump judge
		nft.Rule{nft.Decide(nft.JumpTo(judge.Name))},
		m.stamp(generation),
	)
}

func (m Mark) inputRules(generation uint32) []nft.Rule {
	return append(m.seen(generation),
		// ct direction reply accept
		nft.Rule{nft.Ct(unix.NFT_CT_DIRECTION, nft.Reg1), nft.Equal(isReply), nft.Accept},
		// icmpv6 type 133-137 accept: neighbour discovery
		nft.Rule{
			nft.Meta(unix.NFT_META_L4PROTO, nft.Reg1), nft.Equal(unix.IPPROTO_ICMPV6),
			nft.Payload(transport, 0, 1, nft.Reg1), nft.AtLeast(133), nft.AtMost(137), nft.Accept,
		},
		// iifname vmap @to-node
		nft.Rule{nft.Meta(unix.NFT_META_IIFNAME, nft.Reg1), nft.Map(toNode)},
		m.stamp(generation),
	)
}

// staticChains are those that are the same whatever the policies are.
func (m Mark) staticChains() []chainState {
	return []chainState{
		// Not a map by direction: what conntrack calls invalid has none, and would pass.
		{judge, []nft.Rule{
			// ct mark & TURNED != 0 goto either
			{nft.Ct(unix.NFT_CT_MARK, nft.Reg1), nft.Bits(m.turned(), 0), nft.Differ(native(0)...), nft.Decide(nft.GoTo(either.Name))},
			{nft.Ct(unix.NFT_CT_DIRECTION, nft.Reg1), nft.Equal(isReply), nft.Decide(nft.GoTo(reply.Name))},
			{nft.Decide(nft.GoTo(orig.Name))},
		}},
		// Whoever opened it: both must be allowed to.
		{either, []nft.Rule{
			{nft.Decide(nft.JumpTo(reply.Name))},
			{nft.Decide(nft.GoTo(orig.Name))},
		}},
		{orig, []nft.Rule{
			{nft.Meta(unix.NFT_META_IIFNAME, nft.Reg1), nft.Map(fromPod)},
			{nft.Meta(unix.NFT_META_OIFNAME, nft.Reg1), nft.Map(toPod)},
		}},
		{reply, []nft.Rule{
			{nft.Meta(unix.NFT_META_IIFNAME, nft.Reg1), nft.Map(replyFromPod)},
			{nft.Meta(unix.NFT_META_OIFNAME, nft.Reg1), nft.Map(replyToPod)},
		}},
	}
}

// denyChains count a packet of the pod behind an interface, log it if log says so, and
// drop it.
func denyChains(log bool) []chainState {
	return []chainState{
		denyChain(denyFromPod, unix.NFT_META_IIFNAME, deniedOut, logOut, log),
		denyChain(denyToPod, unix.NFT_META_OIFNAME, deniedIn, logIn, log),
		denyChain(denyReplyFromPod, unix.NFT_META_IIFNAME, deniedIn, logIn, log),
		denyChain(denyReplyToPod, unix.NFT_META_OIFNAME, deniedOut, logOut, log),
	}
}

func denyChain(c nft.Chain, pod uint32, count, logged nft.Set, log bool) chainState {
	out := chainState{c, []nft.Rule{{nft.Meta(pod, nft.Reg1), nft.In(count)}}}
	if log {
		out.rules = append(out.rules, nft.Rule{nft.Meta(pod, nft.Reg1), nft.In(logged), nft.Limit(nodeRate, nodeRate), nft.Log(kernel.PolicyLogGroup, c.Name, logBytes)})
	}
	out.rules = append(out.rules, nft.Rule{nft.Drop})
	return out
}

// deny is the chain in which packets end that the profile denies.
func (p *Profile) deny(reply bool) nft.Expr {
	c := denyFromPod
	switch {
	case p.dir == ingress && reply:
		c = denyReplyFromPod
	case p.dir == ingress:
		c = denyToPod
	case reply:
		c = denyReplyToPod
	}
	return nft.Decide(nft.GoTo(c.Name))
}

func (c *Counter) nftCounter() nft.Counter { return nft.Counter{Table: table, Name: c.Name} }

// chains are a profile's: for packets of a connection's original direction and, if
// they pass the forward hook, for replies.
func (p *Profile) chains() (out []chainState) {
	out = p.appendChains(out, "-orig", false)
	if !p.toNode {
		out = p.appendChains(out, "-reply", true)
	}
	return out
}

func (p *Profile) appendChains(out []chainState, suffix string, reply bool) []chainState {
	first := chainState{chain: plainChain(p.Name + suffix)}
	// What passes the admin tier goes on in a chain of its own, behind its rules.
	following := &first
	second := chainState{chain: plainChain(p.Name + suffix + "-next")}
	if slices.ContainsFunc(p.admin, func(s step) bool { return s.effect == passes }) {
		following = &second
	}
	for _, s := range p.admin {
		first.rules = append(first.rules, p.rule(s, reply, second.chain.Name))
	}
	if following == &second {
		first.rules = append(first.rules, nft.Rule{nft.Decide(nft.GoTo(second.chain.Name))})
	}
	if p.isolated {
		for _, s := range p.namespaced {
			following.rules = append(following.rules, p.rule(s, reply, ""))
		}
		following.rules = append(following.rules, nft.Rule{countTo(p.Name), p.deny(reply)})
	} else {
		for _, s := range p.baseline {
			following.rules = append(following.rules, p.rule(s, reply, ""))
		}
	}
	if following == &second {
		out = append(out, second)
	}
	return append(out, first)
}

// rule is a step as a rule of a chain. A step that passes goes to the chain next; if
// that is empty, there is nothing behind that would deny.
func (p *Profile) rule(s step, reply bool, next string) (r nft.Rule) {
	l := s.lookup
	// The peer is where the pod's packets go; the port is the server's.
	peerIsDestination := (p.dir == egress) != reply
	portOffset := uint32(2)
	if reply {
		portOffset = 0
	}
	loadPort := func(word uint32) nft.Expr { return nft.Payload(transport, portOffset, 2, nft.Word(word)) }

	words := uint32(0) // of the key so far
	var load []nft.Expr
	switch l.family {
	case 4:
		offset := uint32(12)
		if peerIsDestination {
			offset = 16
		}
		r = r.On(nft.Meta(unix.NFT_META_NFPROTO, nft.Reg1), nft.Equal(unix.NFPROTO_IPV4))
		load, words = append(load, nft.Payload(network, offset, 4, nft.Reg1)), 1
	case 6:
		offset := uint32(8)
		if peerIsDestination {
			offset = 24
		}
		r = r.On(nft.Meta(unix.NFT_META_NFPROTO, nft.Reg1), nft.Equal(unix.NFPROTO_IPV6))
		load, words = append(load, nft.Payload(network, offset, 16, nft.Reg1)), 4
	}
	if g := l.guard; g.proto != 0 {
		r = r.On(nft.Meta(unix.NFT_META_L4PROTO, nft.Reg1), nft.Equal(g.proto))
		if g.lo != 0 || g.hi != maxPort {
			r = r.On(loadPort(0), nft.AtLeast(byte(g.lo>>8), byte(g.lo)), nft.AtMost(byte(g.hi>>8), byte(g.hi)))
		}
	}
	if l.hasPort() {
		load = append(load, nft.Meta(unix.NFT_META_L4PROTO, nft.Word(words)), loadPort(words+1))
	}
	if s.set != "" {
		r = r.On(load...).On(nft.In(l.nftSet(s.set)))
	}
	r = r.On(countTo(s.counter))
	switch {
	case s.effect == denies:
		return r.On(p.deny(reply))
	case s.effect == passes && next != "":
		return r.On(nft.Decide(nft.GoTo(next)))
	}
	return r.On(nft.Return)
}

func countTo(name string) nft.Expr { return nft.To(nft.Counter{Table: table, Name: name}) }

// nftSet is the set of that name for such lookups.
func (l lookup) nftSet(name string) nft.Set {
	s := nft.Set{Table: table, Name: name, Interval: l.interval()}
	switch l.family {
	case 4:
		s.Key = append(s.Key, nft.IPv4Addr)
	case 6:
		s.Key = append(s.Key, nft.IPv6Addr)
	}
	if l.hasPort() {
		s.Key = append(s.Key, nft.InetProto, nft.InetPort)
	}
	return s
}

func (s *Set) nftSet() nft.Set { return s.lookup.nftSet(s.Name) }

// content is the elements that a set shall have.
type content interface {
	len() int
	has(nft.Element) bool
	all() []nft.Element
}

// listed is the content of a small set, or of one whose elements are found by nothing else.
type listed struct {
	elements []nft.Element
	byKey    map[string]nft.Element // once it was asked for
}

func (l *listed) len() int           { return len(l.elements) }
func (l *listed) all() []nft.Element { return l.elements }

func (l *listed) has(e nft.Element) bool {
	if l.byKey == nil {
		l.byKey = make(map[string]nft.Element, len(l.elements))
		for _, one := range l.elements {
			l.byKey[one.Key] = one
		}
	}
	one, ok := l.byKey[e.Key]
	return ok && one == e
}

// content is of the set as it is now.
func (s *Set) content() content {
	if s.lookup.interval() {
		return &listed{elements: s.all()}
	}
	return s
}

func (s *Set) len() int { return len(s.members) }

func (s *Set) has(e nft.Element) bool {
	return s.members[e.Key] > 0 && e == nft.Element{Key: e.Key}
}

func (s *Set) all() []nft.Element {
	if s.lookup.interval() {
		out := make([]nft.Element, len(s.boxes))
		for i, b := range s.boxes {
			out[i] = nft.Element{Key: b.from, End: b.to}
		}
		return out
	}
	out := make([]nft.Element, 0, len(s.members))
	for key := range s.members {
		out = append(out, nft.Element{Key: key})
	}
	return out
}

func ifName(link string) string {
	var b [unix.IFNAMSIZ]byte
	copy(b[:unix.IFNAMSIZ-1], link)
	return string(b[:])
}

// entry is an element of a static set.
type entry struct {
	set nft.Set
	nft.Element
}

// entries are what a link has in the static sets.
func (l Link) entries(name string) (out []entry) {
	key := ifName(name)
	jump := func(s nft.Set, chain string) {
		out = append(out, entry{s, nft.Element{Key: key, Verdict: nft.JumpTo(chain)}})
	}
	if l.Egress != "" {
		jump(fromPod, l.Egress+"-orig")
		jump(replyToPod, l.Egress+"-reply")
	}
	if l.Ingress != "" {
		jump(toPod, l.Ingress+"-orig")
		jump(replyFromPod, l.Ingress+"-reply")
	}
	if l.ToNode != "" {
		jump(toNode, l.ToNode+"-orig")
	}
	if l != (Link{}) {
		out = append(out, entry{hairpin, nft.Element{Key: key + key}})
	}
	if l.Ingress != "" {
		out = append(out, entry{deniedIn, nft.Element{Key: key}})
	}
	if l.Egress != "" || l.ToNode != "" {
		out = append(out, entry{deniedOut, nft.Element{Key: key}})
	}
	if l.LogDenied {
		out = append(out, entry{logIn, nft.Element{Key: key}}, entry{logOut, nft.Element{Key: key}})
	}
	return out
}

// judgesInput says whether anything is decided about what pods send to the node.
func (r *Ruleset) judgesInput() bool {
	for _, l := range r.Links {
		if l.ToNode != "" {
			return true
		}
	}
	return false
}

// logs says whether anything that is denied is logged.
func (r *Ruleset) logs() bool {
	for _, l := range r.Links {
		if l.LogDenied {
			return true
		}
	}
	return false
}

// A tableState is the whole of a table, as it shall be.
type tableState struct {
	sets     map[string]nft.Set
	elements map[string]content // by set
	chains   map[string]chainState
	counters map[string]nft.Counter
}

// state is what the ruleset makes of the table; empty if it selects no pod.
func (r *Ruleset) state(m Mark, generation uint32) *tableState {
	s := &tableState{map[string]nft.Set{}, map[string]content{}, map[string]chainState{}, map[string]nft.Counter{}}
	if len(r.Links) == 0 {
		return s
	}
	static := map[string][]nft.Element{}
	for _, name := range slices.Sorted(maps.Keys(r.Links)) {
		for _, e := range r.Links[name].entries(name) {
			static[e.set.Name] = append(static[e.set.Name], e.Element)
		}
	}
	sets := staticSets
	if r.logs() {
		sets = slices.Concat(sets, logSets)
	}
	for _, set := range sets {
		s.sets[set.Name] = set
		s.elements[set.Name] = &listed{elements: static[set.Name]}
	}
	for name, set := range r.Sets {
		s.sets[name] = set.nftSet()
		s.elements[name] = set.content()
	}
	for name, c := range r.Counters {
		s.counters[name] = c.nftCounter()
	}
	chains := slices.Concat(m.staticChains(), denyChains(r.logs()), []chainState{{forward, m.forwardRules(generation)}})
	if r.judgesInput() {
		chains = append(chains, chainState{input, m.inputRules(generation)})
	}
	for _, p := range r.Profiles {
		chains = append(chains, p.chains()...)
	}
	for _, c := range chains {
		s.chains[c.chain.Name] = c
	}
	return s
}

// set is one of the table's sets and its elements; false if there is none of the name.
func (r *Ruleset) set(name string) (nft.Set, content, bool) {
	if s := r.Sets[name]; s != nil {
		return s.nftSet(), s.content(), true
	}
	state := (&Ruleset{Links: r.Links}).state(DefaultMark, 0)
	s, ok := state.sets[name]
	return s, state.elements[name], ok
}
