package service

import (
	"errors"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

// The guard refuses what is about to leave by the link: nobody has translated it. Its rules
// match the link, not addresses, so they do not change when addresses do. The table also has
// the translations that kube-proxy does not have yet ([Interim]).
var (
	table   = nft.Table{Family: nft.Inet, Name: kernel.ServiceTable}
	refused = nft.Counter{Table: table, Name: "refused"}
)

// afterFilter is the priority of the guard's chains. At filter (0), kube-proxy rejects what
// goes to a Service without endpoints, and drops what goes to one without local endpoints
// while others have some, so that the client tries again. That comes first.
const afterFilter = 10

// ruled is a chain with its rules.
type ruled struct {
	chain nft.Chain
	rules []nft.Rule
}

// chains are those of the table; nat: with the one that translates. The one that others go
// to comes first.
func chains(nat bool) []ruled {
	// Of linux/netfilter/nf_conntrack_common.h.
	const stateInvalid, statusDNAT = 1, 1 << 5
	refuse := nft.Chain{Table: table, Name: "refuse", Plain: true}
	link := append([]byte(kernel.ServiceLink), make([]byte, unix.IFNAMSIZ-len(kernel.ServiceLink))...)
	toLink := nft.Rule{nft.Meta(unix.NFT_META_OIFNAME, nft.Reg1), nft.Equal(link...)}
	toRefuse := toLink.On(nft.Decide(nft.GoTo(refuse.Name)))
	all := []ruled{
		{refuse, []nft.Rule{
			{nft.To(refused)},
			// ct state invalid drop: a late packet of a connection that is translated. An
			// answer would end the connection.
			{nft.Ct(unix.NFT_CT_STATE, nft.Reg1), nft.Bits(stateInvalid, 0), nft.EqualNative(stateInvalid), nft.Drop},
			// meta l4proto tcp reject with tcp reset: unlike ICMP errors, resets are not
			// limited to a few each second.
			{nft.Meta(unix.NFT_META_L4PROTO, nft.Reg1), nft.Equal(unix.IPPROTO_TCP), nft.Reset},
			// reject
			{nft.Reject(unix.NFT_REJECT_ICMPX_PORT_UNREACH)},
		}},
		{nft.Chain{Table: table, Name: "forward", Hook: unix.NF_INET_FORWARD, Priority: afterFilter}, []nft.Rule{toRefuse}},
		{nft.Chain{Table: table, Name: "output", Hook: unix.NF_INET_LOCAL_OUT, Priority: afterFilter}, []nft.Rule{
			// oifname "flock-service" ct status dnat accept: in this hook the link is still
			// the one of the first lookup. A packet without connection does not match.
			toLink.On(nft.Ct(unix.NFT_CT_STATUS, nft.Reg1), nft.Bits(statusDNAT, 0), nft.EqualNative(statusDNAT), nft.Accept),
			toRefuse,
		}},
	}
	if nat {
		all = append(all, ruled{nft.Chain{Table: table, Name: "interim", Hook: unix.NF_INET_PRE_ROUTING, Priority: beforeProxy, NAT: true}, interimRules()})
	}
	return all
}

// guard is the table in the network namespace that it was opened in. Its methods wait while
// other programs change nftables: the kernel makes one transaction after the other. It has one
// owner; they are not safe for concurrent use, but for Refused and look.
type guard struct {
	tables   *nft.Conn
	looks    *nft.Conn // of look alone, so that no transaction waits for its dumps
	onCommit func()    // before a transaction is made; tests only
	onLook   func()    // before the table is looked at; tests only

	// interim are the connections that the kernel translated at the last look, with the
	// changes since.
	interim Interim
	seen    seen
}

// seen is what is known of the kernel, from looks and transactions.
type seen struct {
	// noNAT: the kernel cannot translate.
	noNAT bool
	// complete is how often the guard was seen complete in this generation of nftables.
	generation uint32
	complete   int
	// commits counts the guard's own transactions.
	commits int
}

// sendBuffer, in bytes, holds the translations to thousands of pods in one transaction.
const sendBuffer = 8 << 20

// openGuard opens nftables of the calling thread's network namespace. It changes nothing.
func openGuard() (*guard, error) {
	tables, err := nft.Dial()
	if err != nil {
		return nil, err
	}
	if err := tables.SetSendBuffer(sendBuffer); err != nil {
		tables.Close()
		return nil, err
	}
	looks, err := nft.Dial()
	if err != nil {
		tables.Close()
		return nil, err
	}
	return &guard{tables: tables, looks: looks, interim: Interim{}}, nil
}

// Close gives the sockets up. The table stays.
func (g *guard) Close() {
	g.tables.Close()
	g.looks.Close()
}

func (g *guard) commit(b *nft.Batch) error {
	g.seen.commits++
	if g.onCommit != nil {
		g.onCommit()
	}
	return g.tables.Commit(b)
}

// tableLook is what a look came to.
type tableLook struct {
	generation uint32
	found      string  // how the kernel's table differs from the guard's; empty if it does not
	interim    Interim // what is translated, if the table does not differ; nil if it was not read
}

// look says how the kernel's table differs from the guard's, and what is translated. It does
// not read what was seen often enough. It changes nothing of the guard.
func (g *guard) look(before seen) (is tableLook, err error) {
	if g.onLook != nil {
		g.onLook()
	}
	if is.generation, err = g.looks.Generation(); err != nil {
		return is, err
	}
	if is.generation == before.generation && before.complete >= enoughLooks {
		return is, nil
	}
	if is.found, err = g.differs(before.noNAT); is.found != "" || err != nil {
		return is, err
	}
	is.interim, err = readInterim(g.looks)
	return is, err
}

// saw takes in a look at a table that is the guard's, since which the guard has made no
// transaction.
func (g *guard) saw(is tableLook) {
	if is.generation != g.seen.generation {
		g.seen.generation, g.seen.complete = is.generation, 0
	}
	if is.interim != nil {
		g.interim = is.interim
		g.seen.complete++
	}
}

// enoughLooks at one generation of nftables are made. The kernel counts a transaction just
// before it shows what has changed, so the first may have seen the table of before.
const enoughLooks = 2

// differs says how the kernel's table differs from the guard's, but for what is translated;
// empty if it does not.
func (g *guard) differs(noNAT bool) (found string, err error) {
	have, err := g.looks.Contents(table)
	switch {
	case errors.Is(err, unix.ENOENT):
		return datapath.Missing, nil
	case err != nil:
		return "", err
	case have.Dormant:
		return "dormant", nil
	}
	if _, err := g.looks.Counter(refused); errors.Is(err, unix.ENOENT) {
		return "another counter", nil
	} else if err != nil {
		return "", err
	}
	all := chains(!noNAT)
	if len(have.Chains) != len(all) || len(have.Sets) != len(interimMaps) {
		return "other chains or sets", nil
	}
	for _, m := range interimMaps {
		if have.Sets[m.set.Name] != m.set.Definition() {
			return "another map " + m.set.Name, nil
		}
	}
	for _, r := range all {
		var rules []string
		for _, rule := range r.rules {
			rules = append(rules, rule.Definition())
		}
		if have.Chains[r.chain.Name] != r.chain.Definition() || !slices.Equal(have.Rules[r.chain.Name], rules) {
			return "another chain " + r.chain.Name, nil
		}
	}
	return "", nil
}

// replace writes the table in one transaction, with the connections that flock translates. The
// count of refused packets begins again. A kernel without NAT in nf_tables has no chain for
// them. If it refuses one of them, the table begins with none.
func (g *guard) replace(interim Interim) error {
	err := g.write(interim)
	switch {
	case err == nil:
		return nil
	case !g.seen.noNAT && isMissing(err):
		g.seen.noNAT = true
	case len(interim) == 0:
		return err
	}
	return g.write(nil)
}

// isMissing says whether an error is that of a transaction with something that the kernel, or
// the modules that it may load, does not have.
func isMissing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

func (g *guard) write(interim Interim) error {
	if g.seen.noNAT {
		interim = nil
	}
	var b nft.Batch
	b.AddTable(table) // or it could not be deleted
	b.DelTable(table)
	b.AddTable(table)
	b.AddCounter(refused)
	for _, m := range interimMaps {
		b.AddSet(m.set)
	}
	for _, r := range chains(!g.seen.noNAT) {
		b.AddChain(r.chain)
		b.AddRules(r.chain, r.rules...)
	}
	interimChange{add: interim}.appendTo(&b)
	if err := g.commit(&b); err != nil {
		return err
	}
	g.interim = Interim{}
	maps.Copy(g.interim, interim)
	return nil
}

// takeAway deletes the table, and says whether there was one.
func (g *guard) takeAway() (deleted bool, err error) {
	g.seen.complete, g.interim = 0, Interim{}
	if _, err := g.tables.Contents(table); errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	var b nft.Batch
	b.AddTable(table)
	b.DelTable(table)
	return true, g.commit(&b)
}

// Refused counts the packets that the guard has refused since its table was made.
func (g *guard) Refused() (uint64, error) {
	count, err := g.tables.Counter(refused)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return count.Packets, err
}
