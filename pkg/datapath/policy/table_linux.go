package policy

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

// A Table is the kernel's side: it makes the table "inet flock-policy" what a
// [Ruleset] says. Its methods may be called from several goroutines, one Ruleset at
// a time.
type Table struct {
	mark   Mark
	conn   *nft.Conn
	commit func(*nft.Batch) error // conn's. Tests cut in here

	mu sync.Mutex // guards all below, and is held while the kernel is at work
	// generation is that of the policies in force.
	generation uint32
	// stale says that the kernel may have something else than what was applied.
	stale bool
	// there says that the table is there, input that it has the chain, and logs that it
	// has what logs denied packets.
	there, input, logs bool
	// unchanged is nftables' generation up to which no other program changed anything, but
	// for ours transactions of this Table's since. suspect says that this has not been
	// looked at yet.
	unchanged, ours uint32
	suspect         bool
}

var _ kernelTable = (*Table)(nil)

const (
	// sendBuffer is for one transaction: two million elements.
	sendBuffer = 128 << 20
	// partSize is about how many bytes of what is not in force yet go into one
	// transaction. Others cannot change nftables while it lasts.
	partSize = 4 << 20
)

// Open returns the Table in the calling thread's network namespace. It changes
// nothing: a table that is there goes on.
func Open(mark Mark) (*Table, error) {
	if err := mark.Validate(); err != nil {
		return nil, err
	}
	conn, err := nft.Dial()
	if err != nil {
		return nil, err
	}
	if err := conn.SetSendBuffer(sendBuffer); err != nil {
		conn.Close()
		return nil, err
	}
	return &Table{
		mark: mark, conn: conn, commit: conn.Commit,
		// Connections may be stamped by a generation of an earlier table. With a
		// number by chance, it is hardly ever one that will be used.
		generation: rand.Uint32(),
		stale:      true,
	}, nil
}

// Close gives the socket up. What is in the kernel goes on.
func (t *Table) Close() { t.conn.Close() }

// Invalidate makes the next Apply one of everything.
func (t *Table) Invalidate() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stale = true
}

// Remove deletes the table. No policy is enforced then.
func (t *Table) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stale = true
	var b nft.Batch
	b.AddTable(table) // so that deleting it is no error
	b.DelTable(table)
	return t.send(&b)
}

// Apply takes a change of the ruleset into the kernel. When it returns, the change
// is in force, for the connections that there are too. If the kernel has something
// else than before the change, Apply reads it and makes it the whole ruleset. After an
// error, the next Apply or Sync does that.
func (t *Table) Apply(r *Ruleset, c Change) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.stale && c.Empty() {
		return nil
	}
	if t.stale || !t.there || len(r.Links) == 0 {
		_, err := t.sync(r)
		return err
	}
	err := t.carryOut(t.planChange(r, c))
	if refusal := (*netlink.Error)(nil); errors.As(err, &refusal) {
		_, err = t.sync(r)
	}
	return err
}

// Counts reads the counters. There are none without a table.
func (t *Table) Counts() (Counts, error) {
	out := Counts{map[string]uint64{}, map[string]uint64{}, map[string]uint64{}}
	counters, err := t.conn.Counters(table)
	if err != nil {
		return out, ignoreNoTable(err)
	}
	for name, c := range counters {
		out.Counters[name] = c.Packets
	}
	for set, into := range map[string]map[string]uint64{deniedIn.Name: out.DeniedIn, deniedOut.Name: out.DeniedOut} {
		elements, err := t.conn.Elements(nft.Set{Table: table, Name: set})
		if err != nil {
			return out, ignoreNoTable(err)
		}
		for _, e := range elements {
			into[unix.ByteSliceToString([]byte(e.Key))] = e.Packets
		}
	}
	return out, nil
}

// CountsOf reads some counters.
func (t *Table) CountsOf(counters []*Counter) (map[string]uint64, error) {
	const few = 32
	if len(counters) > few {
		all, err := t.Counts()
		return all.Counters, err
	}
	out := map[string]uint64{}
	for _, c := range counters {
		count, err := t.conn.Counter(c.nftCounter())
		if err != nil {
			return out, ignoreNoTable(err)
		}
		out[c.Name] = count.Packets
	}
	return out, nil
}

func ignoreNoTable(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// send commits a transaction and counts it.
func (t *Table) send(b *nft.Batch) error {
	if b.Len() == 0 {
		return nil
	}
	err := t.commit(b)
	if err == nil {
		t.ours++
	}
	return err
}

// A plan is what is to be done with the table, in two steps. What is new is not used
// by anything until the second step, which is one transaction: packets see all of it
// or nothing.
type plan struct {
	newCounters []nft.Counter
	newSets     []nft.Set
	fill        map[string]func() []nft.Element // of the new sets
	newChains   []chainState

	added, deleted map[string][]nft.Element // of sets that are there
	sets           map[string]nft.Set       // those of the above
	rules          []chainState             // chains with changed rules
	goneChains     []nft.Chain
	goneSets       []nft.Set
	goneCounters   []nft.Counter
	revokes        bool // there is a new generation
	wakes          bool // the table is dormant
	// Base chains that come, and whether the table has the chain input, and what logs,
	// after all.
	addForward, addInput, hasInput, hasLogs bool
}

func newPlan() *plan {
	return &plan{
		fill:  map[string]func() []nft.Element{},
		added: map[string][]nft.Element{}, deleted: map[string][]nft.Element{}, sets: map[string]nft.Set{},
	}
}

func (p *plan) add(s nft.Set, e ...nft.Element) {
	p.sets[s.Name] = s
	p.added[s.Name] = append(p.added[s.Name], e...)
}

func (p *plan) delete(s nft.Set, e ...nft.Element) {
	p.sets[s.Name] = s
	p.deleted[s.Name] = append(p.deleted[s.Name], e...)
}

func (p *plan) empty() bool {
	return !p.revokes && len(p.newCounters)+len(p.newSets)+len(p.newChains)+len(p.sets)+len(p.rules)+len(p.goneChains)+len(p.goneSets)+len(p.goneCounters) == 0
}

func (t *Table) planChange(r *Ruleset, c Change) *plan {
	p := newPlan()
	p.revokes = c.Revokes
	for _, s := range c.NewSets {
		p.newSets = append(p.newSets, s.nftSet())
		p.fill[s.Name] = s.all
	}
	for _, n := range c.NewCounters {
		p.newCounters = append(p.newCounters, n.nftCounter())
	}
	for _, n := range c.GoneCounters {
		p.goneCounters = append(p.goneCounters, n.nftCounter())
	}
	for _, profile := range c.NewProfiles {
		p.newChains = append(p.newChains, profile.chains()...)
	}
	for _, s := range c.Sets {
		set := s.Set.nftSet()
		for _, key := range s.Added {
			p.add(set, nft.Element{Key: key})
		}
		for _, key := range s.Deleted {
			p.delete(set, nft.Element{Key: key})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Links)) {
		old, now := c.Links[name].Old.entries(name), c.Links[name].New.entries(name)
		for _, e := range old {
			if !slices.ContainsFunc(now, e.equal) {
				p.delete(e.set, e.Element)
			}
		}
		for _, e := range now {
			if !slices.ContainsFunc(old, e.equal) {
				p.add(e.set, e.Element)
			}
		}
	}
	for _, profile := range c.GoneProfiles {
		for _, ch := range profile.chains() {
			p.goneChains = append(p.goneChains, ch.chain)
		}
	}
	for _, s := range c.GoneSets {
		p.goneSets = append(p.goneSets, s.nftSet())
	}
	if p.hasLogs = r.logs(); p.hasLogs != t.logs {
		p.rules = append(p.rules, denyChains(p.hasLogs)...)
		for _, s := range logSets {
			if p.hasLogs {
				p.newSets = append(p.newSets, s)
				p.fill[s.Name] = func() []nft.Element { return nil } // with the links
			} else {
				p.goneSets = append(p.goneSets, s)
			}
		}
	}
	switch p.hasInput = r.judgesInput(); {
	case p.hasInput && !t.input:
		p.addInput, p.revokes = true, true
	case !p.hasInput && t.input:
		p.goneChains = append(p.goneChains, input)
	}
	return p
}

func (e entry) equal(o entry) bool { return e.set.Name == o.set.Name && e.Element == o.Element }

// carryOut does a plan for a table that is there.
func (t *Table) carryOut(p *plan) error {
	t.stale = true // until it has come to its end
	var b nft.Batch
	commit := func() error {
		err := t.send(&b)
		b = nft.Batch{}
		return err
	}
	// What the second step uses must be whole before it: a packet on its way when a
	// transaction takes hold may see a new element of a map with an empty chain, and
	// the kernel fills sets of intervals a moment after the rest.
	for _, s := range p.newSets {
		b.AddSet(s)
		for part := range slices.Chunk(p.fill[s.Name](), partSize/64) {
			b.Add(s, part...)
			if b.Len() > partSize {
				if err := commit(); err != nil {
					return err
				}
			}
		}
	}
	for _, c := range p.newCounters {
		b.AddCounter(c)
	}
	for _, c := range p.newChains {
		b.AddChain(c.chain)
	}
	for _, c := range p.newChains {
		b.AddRules(c.chain, c.rules...)
	}
	if err := commit(); err != nil {
		return err
	}

	if p.wakes {
		b.AddTable(table)
	}
	for _, name := range slices.Sorted(maps.Keys(p.sets)) {
		b.Delete(p.sets[name], p.deleted[name]...)
		b.Add(p.sets[name], p.added[name]...)
	}
	for _, c := range p.rules {
		b.SetRules(c.chain, c.rules...)
	}
	generation := t.generation
	base := func(rules func(generation uint32) [2][]nft.Rule) {
		if p.addForward {
			b.AddChain(forward)
		}
		b.SetRules(forward, rules(generation)[0]...)
		if p.addInput {
			b.AddChain(input)
		}
		if p.hasInput {
			b.SetRules(input, rules(generation)[1]...)
		}
	}
	// Where a set of intervals is repaired, a packet on its way may see the old ones with
	// the new rules. So it must not be stamped with the new generation, and while there is
	// none, every packet is judged.
	inTwo := p.revokes && p.changesIntervals()
	switch {
	case inTwo:
		base(t.mark.openRules)
	case p.revokes:
		generation++
		base(t.mark.baseRules)
	}
	for _, c := range p.goneChains {
		b.SetRules(c)
	}
	for _, c := range p.goneChains {
		b.DelChain(c)
	}
	for _, s := range p.goneSets {
		b.DelSet(s)
	}
	for _, c := range p.goneCounters {
		b.DelCounter(c)
	}
	if err := commit(); err != nil {
		return err
	}
	if inTwo {
		generation++
		p.addForward, p.addInput = false, false
		base(t.mark.baseRules)
		if err := commit(); err != nil {
			return err
		}
	}
	t.generation, t.input, t.logs, t.there, t.stale = generation, p.hasInput, p.hasLogs, true, false
	return nil
}

func (p *plan) changesIntervals() bool {
	for _, s := range p.sets {
		if s.Interval {
			return true
		}
	}
	return false
}

// build makes the table from nothing. What was there is replaced in one transaction.
func (t *Table) build(r *Ruleset, replace bool) error {
	generation := t.generation + 1
	s := r.state(t.mark, generation)
	p := newPlan()
	p.hasInput, p.hasLogs = r.judgesInput(), r.logs()
	if replace {
		var b nft.Batch
		b.DelTable(table)
		s.addTo(&b)
		if err := t.send(&b); err != nil {
			return err
		}
		t.generation, t.input, t.logs, t.there, t.stale = generation, p.hasInput, p.hasLogs, true, false
		return nil
	}
	sets, chains := staticSets, slices.Concat(t.mark.staticChains(), denyChains(p.hasLogs))
	if p.hasLogs {
		sets = slices.Concat(sets, logSets)
	}
	var b nft.Batch
	b.AddTable(table)
	for _, set := range sets {
		b.AddSet(set)
	}
	for _, c := range chains {
		b.AddChain(c.chain)
	}
	for _, c := range chains {
		b.AddRules(c.chain, c.rules...)
	}
	if err := t.send(&b); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(r.Sets)) {
		p.newSets = append(p.newSets, s.sets[name])
		p.fill[name] = s.elements[name].all
	}
	for _, name := range slices.Sorted(maps.Keys(s.counters)) {
		p.newCounters = append(p.newCounters, s.counters[name])
	}
	for _, name := range slices.Sorted(maps.Keys(r.Profiles)) {
		p.newChains = append(p.newChains, r.Profiles[name].chains()...)
	}
	for _, set := range sets {
		p.add(set, s.elements[set.Name].all()...)
	}
	// The base chains come last, with all that they lead to.
	p.revokes, p.addInput = true, p.hasInput
	p.addForward = true
	return t.carryOut(p)
}

// addTo adds the whole table to a transaction.
func (s *tableState) addTo(b *nft.Batch) {
	b.AddTable(table)
	for _, name := range slices.Sorted(maps.Keys(s.counters)) {
		b.AddCounter(s.counters[name])
	}
	names := slices.Sorted(maps.Keys(s.chains))
	for _, name := range names {
		b.AddChain(s.chains[name].chain)
	}
	for _, name := range slices.Sorted(maps.Keys(s.sets)) {
		b.AddSet(s.sets[name])
		b.Add(s.sets[name], s.elements[name].all()...)
	}
	for _, name := range names {
		b.AddRules(s.chains[name].chain, s.chains[name].rules...)
	}
}
