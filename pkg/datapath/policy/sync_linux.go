package policy

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

// Sync reads the table, makes it what the ruleset says, and returns what differed. It
// takes one set after the other and calls between them what may Apply changes.
func (t *Table) Sync(r *Ruleset, between func()) ([]datapath.Repair, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stale {
		return t.sync(r)
	}
	now, err := t.conn.Generation()
	if err != nil {
		return nil, err
	}
	if now == t.unchanged+t.ours && !t.suspect {
		return nil, nil
	}
	t.unchanged, t.ours, t.suspect = now, 0, true
	have, err := t.conn.Contents(table)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	if err != nil || len(r.Links) == 0 {
		return t.sync(r)
	}
	p, repairs, err := t.planSync(r, have, false)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return t.sync(r)
	}
	if !p.empty() {
		if err := t.carryOut(p); err != nil {
			return t.sync(r)
		}
	}
	names := slices.Sorted(maps.Keys(r.state(t.mark, t.generation).sets))
	for _, name := range names {
		t.mu.Unlock()
		between()
		t.mu.Lock()
		if t.stale || !t.there {
			return repairs, nil // what is applied next is everything
		}
		set, want, ok := r.set(name)
		if !ok {
			continue
		}
		p, repair, err := t.planElements(set, want)
		if err != nil {
			return repairs, err
		}
		if p == nil {
			continue
		}
		p.hasInput, p.hasLogs = t.input, t.logs
		repairs = append(repairs, repair)
		if err := t.carryOut(p); err != nil {
			return repairs, err
		}
	}
	t.suspect = false
	return repairs, nil
}

// planElements is how to make a set's elements what they shall be; nil if they are.
func (t *Table) planElements(s nft.Set, want content) (*plan, datapath.Repair, error) {
	added, deleted, err := t.compareElements(s, want)
	if err != nil || len(added)+len(deleted) == 0 {
		return nil, datapath.Repair{}, err
	}
	p := newPlan()
	p.revokes = true // something may have passed that should not have
	p.delete(s, deleted...)
	p.add(s, added...)
	return p, repair("set "+s.String(), fmt.Sprintf("%d elements missing, %d stray", len(added), len(deleted))), nil
}

// sync does what Sync does, whatever was known of the table.
func (t *Table) sync(r *Ruleset) (repairs []datapath.Repair, err error) {
	t.stale = true
	before, err := t.conn.Generation()
	if err != nil {
		return nil, err
	}
	have, err := t.conn.Contents(table)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	t.there = err == nil
	t.unchanged, t.ours, t.suspect = before, 0, false
	switch {
	case !t.there && len(r.Links) == 0:
		t.stale, t.input, t.logs = false, false, false
		return nil, nil
	case len(r.Links) == 0:
		var b nft.Batch
		b.DelTable(table)
		if err := t.send(&b); err != nil {
			return nil, err
		}
		t.there, t.input, t.logs, t.stale = false, false, false, false
		return []datapath.Repair{repair("table "+table.String(), datapath.Stray)}, nil
	case !t.there:
		return []datapath.Repair{repair("table "+table.String(), datapath.Missing)}, t.build(r, false)
	}
	t.adopt(have)
	p, repairs, err := t.planSync(r, have, true)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return repairs, t.build(r, true)
	}
	if p.empty() {
		t.stale, t.input, t.logs = false, p.hasInput, p.hasLogs
		return nil, nil
	}
	if err := t.carryOut(p); err != nil {
		// Another's chain may use ours, or one changed under our hands.
		if err := t.build(r, true); err != nil {
			return nil, err
		}
	}
	return repairs, nil
}

var markOfRule = regexp.MustCompile(`^\[ct [^]]*\]\[bitwise [^]]*\]\[cmp [^]]*3=([0-9a-f]{8})\]`)

// adopt takes over the generation of a table that an earlier agent left, so that the
// connections that it judged are not judged again.
func (t *Table) adopt(have *nft.Contents) {
	rules := have.Rules[forward.Name]
	if len(rules) == 0 {
		return
	}
	found := markOfRule.FindStringSubmatch(rules[0])
	if found == nil {
		return
	}
	b, err := hex.DecodeString(found[1])
	if err != nil {
		return
	}
	t.generation = t.mark.generation(binary.NativeEndian.Uint32(b))
}

// MarkWriters finds the rules of other programs that write to this Table's bits of the
// ct mark.
func (t *Table) MarkWriters() ([]nft.MarkWriter, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all, err := t.conn.MarkWriters()
	return slices.DeleteFunc(all, func(w nft.MarkWriter) bool {
		return w.Chain.Table == table || w.Bits&uint32(t.mark) == 0
	}), err
}

func repair(object, found string) datapath.Repair {
	return datapath.Repair{Kind: kernel.NFTables, Object: object, Found: found}
}

// planSync compares the table with what it shall be, with or without what is in sets.
// The plan is nil if the table is to be built from nothing, because a set or a chain
// is another than its name says.
func (t *Table) planSync(r *Ruleset, have *nft.Contents, withElements bool) (*plan, []datapath.Repair, error) {
	want := r.state(t.mark, t.generation)
	p := newPlan()
	p.hasInput, p.hasLogs = r.judgesInput(), r.logs()
	var repairs []datapath.Repair
	found := func(object fmt.Stringer, kind, what string) {
		repairs = append(repairs, repair(kind+" "+object.String(), what))
	}
	if p.wakes = have.Dormant; p.wakes {
		found(table, "table", "dormant")
	}
	for _, name := range slices.Sorted(maps.Keys(want.sets)) {
		set := want.sets[name]
		switch definition, there := have.Sets[name]; {
		case !there:
			found(set, "set", datapath.Missing)
			p.newSets = append(p.newSets, set)
			p.fill[name] = want.elements[name].all
		case definition != set.Definition():
			found(set, "set", definition+", want "+set.Definition())
			return nil, repairs, nil
		case withElements:
			elements, repair, err := t.planElements(set, want.elements[name])
			if err != nil {
				return nil, nil, err
			}
			if elements != nil {
				repairs = append(repairs, repair)
				p.delete(set, elements.deleted[name]...)
				p.add(set, elements.added[name]...)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want.counters)) {
		if !have.Counters[name] {
			found(want.counters[name], "counter", datapath.Missing)
			p.newCounters = append(p.newCounters, want.counters[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want.chains)) {
		c := want.chains[name]
		switch definition, there := have.Chains[name]; {
		case !there && c.chain.Plain:
			found(c.chain, "chain", datapath.Missing)
			p.newChains = append(p.newChains, c)
		case !there:
			found(c.chain, "chain", datapath.Missing)
			p.addForward = p.addForward || name == forward.Name
			p.addInput = p.addInput || name == input.Name
		case definition != c.chain.Definition():
			found(c.chain, "chain", definition+", want "+c.chain.Definition())
			return nil, repairs, nil
		default:
			definitions := make([]string, len(c.rules))
			for i, rule := range c.rules {
				definitions[i] = rule.Definition()
			}
			if !slices.Equal(definitions, have.Rules[name]) {
				found(c.chain, "chain", "other rules")
				p.rules = append(p.rules, c)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.Chains)) {
		if _, wanted := want.chains[name]; !wanted {
			c := plainChain(name)
			found(c, "chain", datapath.Stray)
			p.goneChains = append(p.goneChains, c)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.Sets)) {
		if _, wanted := want.sets[name]; !wanted {
			s := nft.Set{Table: table, Name: name}
			found(s, "set", datapath.Stray)
			p.goneSets = append(p.goneSets, s)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.Counters)) {
		if _, wanted := want.counters[name]; !wanted {
			c := nft.Counter{Table: table, Name: name}
			found(c, "counter", datapath.Stray)
			p.goneCounters = append(p.goneCounters, c)
		}
	}
	// Something may have passed that should not have.
	p.revokes = len(repairs) > 0
	return p, repairs, nil
}

// compareElements says what a set lacks and what it has too much. An element with
// another end or verdict is both. Sets may be large: there is no copy of what is wanted.
func (t *Table) compareElements(s nft.Set, want content) (added, deleted []nft.Element, err error) {
	have, err := t.conn.Elements(s)
	if err != nil {
		return nil, nil, err
	}
	found := 0
	for _, e := range have {
		e.Count = nft.Count{}
		if want.has(e) {
			found++
		} else {
			deleted = append(deleted, e)
		}
	}
	if found == want.len() {
		return nil, deleted, nil
	}
	there := make(map[string]bool, len(have))
	for _, e := range have {
		e.Count = nft.Count{}
		there[e.Key] = want.has(e)
	}
	for _, e := range want.all() {
		if !there[e.Key] {
			added = append(added, e)
		}
	}
	slices.SortFunc(added, func(a, b nft.Element) int { return strings.Compare(a.Key, b.Key) })
	return added, deleted, nil
}
