package nodeguard

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

var _ datapath.Feature = (*Guard)(nil)

// A Guard keeps the kernel's table. Its methods may be called from several goroutines.
type Guard struct {
	conn *nft.Conn

	mu      sync.Mutex // guards what follows, and is held while the kernel is asked
	desired *Desired   // nil until it is known: what is in the kernel stays
	// seen is a generation of nftables, and looks how often the kernel had in it what is
	// desired.
	seen  uint32
	looks int
}

// enoughLooks at one generation of nftables are made. The kernel counts a transaction just
// before it shows what has changed, so the first may have seen the table of before.
const enoughLooks = 2

// Open takes the calling thread's network namespace for the node's. It changes nothing.
func Open() (*Guard, error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, err
	}
	return &Guard{conn: conn}, nil
}

// Close gives the socket up. The table stays.
func (g *Guard) Close() { g.conn.Close() }

// Set makes the table what d says.
func (g *Guard) Set(d Desired) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.desired == nil || !reflect.DeepEqual(*g.desired, d) {
		g.desired, g.looks = &d, 0
	}
	_, err := g.converge()
	return err
}

// Name implements [datapath.Feature].
func (g *Guard) Name() string { return "node guard" }

// Kinds implements [datapath.Feature].
func (g *Guard) Kinds() []kernel.Kind { return []kernel.Kind{kernel.NFTables} }

// Sync implements [datapath.Feature].
func (g *Guard) Sync(context.Context) ([]datapath.Repair, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.desired == nil {
		return nil, nil
	}
	return g.converge()
}

// converge makes the kernel's table the desired one. Where only rules differ, what the sets
// and counters have stays.
func (g *Guard) converge() ([]datapath.Repair, error) {
	generation, err := g.conn.Generation()
	if err != nil {
		return nil, err
	}
	if generation != g.seen {
		g.seen, g.looks = generation, 0
	}
	if g.looks >= enoughLooks {
		return nil, nil
	}
	all := g.desired.chains()
	repairs, structure, err := g.differs(all)
	if err != nil {
		return nil, err
	}
	if len(repairs) == 0 {
		g.looks++
		return nil, nil
	}
	var b nft.Batch
	b.AddTable(table) // or it could not be deleted
	if structure {
		b.DelTable(table)
		b.AddTable(table)
	}
	for _, c := range []nft.Counter{toNode, toNeighbours} {
		b.AddCounter(c)
	}
	for _, s := range sets() {
		b.AddSet(s)
	}
	for _, r := range all {
		b.AddChain(r.chain)
		b.SetRules(r.chain, r.rules...)
	}
	if err := g.conn.Commit(&b); err != nil {
		return nil, err
	}
	return repairs, nil
}

func sets() []nft.Set { return []nft.Set{links, v6.known, v6.tried, v4.known, v4.tried} }

// differs says how the kernel's table differs from one with these chains. structure says
// that it is not only by rules.
func (g *Guard) differs(all []ruled) (repairs []datapath.Repair, structure bool, err error) {
	found := func(what string, object fmt.Stringer, is string) {
		repairs = append(repairs, datapath.Repair{Kind: kernel.NFTables, Object: what + " " + object.String(), Found: is})
	}
	have, err := g.conn.Contents(table)
	switch {
	case errors.Is(err, unix.ENOENT):
		found("table", table, datapath.Missing)
		return repairs, true, nil
	case err != nil:
		return nil, false, err
	case have.Dormant:
		found("table", table, "dormant")
	}
	for _, c := range []nft.Counter{toNode, toNeighbours} {
		if _, err := g.conn.Counter(c); errors.Is(err, unix.ENOENT) {
			found("counter", c, datapath.Missing)
		} else if err != nil {
			return nil, false, err
		}
	}
	known := map[string]bool{}
	for _, s := range sets() {
		known[s.Name] = true
		if is := have.Sets[s.Name]; is == "" {
			found("set", s, datapath.Missing)
		} else if is != s.Definition() {
			structure = true
			found("set", s, is+", want "+s.Definition())
		}
	}
	for name := range have.Sets {
		if !known[name] {
			structure = true
			found("set", nft.Set{Table: table, Name: name}, datapath.Stray)
		}
	}
	for _, r := range all {
		known["chain "+r.chain.Name] = true
		var rules []string
		for _, rule := range r.rules {
			rules = append(rules, rule.Definition())
		}
		switch is := have.Chains[r.chain.Name]; {
		case is == "":
			found("chain", r.chain, datapath.Missing)
		case is != r.chain.Definition():
			structure = true
			found("chain", r.chain, is+", want "+r.chain.Definition())
		case !slices.Equal(have.Rules[r.chain.Name], rules):
			found("chain", r.chain, fmt.Sprintf("other rules (%d, want %d)", len(have.Rules[r.chain.Name]), len(rules)))
		}
	}
	for name := range have.Chains {
		if !known["chain "+name] {
			structure = true
			found("chain", nft.Chain{Table: table, Name: name}, datapath.Stray)
		}
	}
	return repairs, structure, nil
}

// Dropped are the packets of pods that were dropped or refused since the table was made.
type Dropped struct {
	ToNode       uint64 // to services of the node that are not for pods
	ToNeighbours uint64 // to new addresses on the node's subnets, beyond the limit
}

// Dropped reads the counters.
func (g *Guard) Dropped() (d Dropped, err error) {
	for _, c := range []struct {
		from nft.Counter
		to   *uint64
	}{{toNode, &d.ToNode}, {toNeighbours, &d.ToNeighbours}} {
		count, err := g.conn.Counter(c.from)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return Dropped{}, err
		}
		*c.to = count.Packets
	}
	return d, nil
}
