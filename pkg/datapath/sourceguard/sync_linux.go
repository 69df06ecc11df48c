package sourceguard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

var _ datapath.Feature = (*Guard)(nil)

// Name implements [datapath.Feature].
func (g *Guard) Name() string { return "source guard" }

// Kinds implements [datapath.Feature].
func (g *Guard) Kinds() []kernel.Kind { return []kernel.Kind{kernel.NFTables} }

// Sync implements [datapath.Feature] for flock's tables, as far as they are the guard's. Where
// no program has changed nftables since the last look, it costs one question.
func (g *Guard) Sync(context.Context) ([]datapath.Repair, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.desired == nil {
		return nil, nil
	}
	if !g.stale && g.seen != 0 {
		if generation, err := g.conn.Generation(); err == nil && generation == g.seen {
			return nil, nil
		}
	}
	repairs, err := g.converge(g.desired)
	repairs = append(g.repaired, repairs...)
	g.repaired = nil
	return repairs, err
}

// inspection is how flock's tables, without bindings, differ from what they shall be.
type inspection struct {
	repairs    []datapath.Repair
	incomplete bool // something is to be added
	otherRules bool // the rules or the constants are to be set
	remake     map[nft.Chain]bool
	stray      []nft.Chain // in flock's tables, but hooked by others
}

func differs(what string, object fmt.Stringer, found string) datapath.Repair {
	return datapath.Repair{Kind: kernel.NFTables, Object: what + " " + object.String(), Found: found}
}

func (g *Guard) inspect() (is inspection, err error) {
	is.remake = map[nft.Chain]bool{}
	missing := func(what string, object fmt.Stringer, found string) {
		is.incomplete = true
		is.repairs = append(is.repairs, differs(what, object, found))
	}
	tables := map[nft.Table]*nft.Contents{}
	for _, t := range []nft.Table{ipTable, arpTable} {
		have, err := g.conn.Contents(t)
		switch {
		case errors.Is(err, unix.ENOENT):
			missing("table", t, datapath.Missing)
			is.otherRules = true
		case err != nil:
			return is, err
		case have.Dormant:
			missing("table", t, "dormant")
			fallthrough
		default:
			tables[t] = have
		}
	}
	all := slices.Clone(sets[:])
	for _, c := range constants {
		all = append(all, c.set)
	}
	for _, s := range all {
		if t := tables[s.Table]; t != nil && t.Sets[s.Name] == "" {
			missing("set", s, datapath.Missing)
		}
	}
	for _, c := range []nft.Counter{ipUnbound, arpUnbound} {
		if tables[c.Table] == nil {
			continue
		}
		if _, err := g.conn.Counter(c); errors.Is(err, unix.ENOENT) {
			missing("counter", c, datapath.Missing)
		} else if err != nil {
			return is, err
		}
	}
	for _, r := range chains() {
		t := tables[r.chain.Table]
		if t == nil {
			continue
		}
		var rules []string
		for _, rule := range r.rules {
			rules = append(rules, rule.Definition())
		}
		switch have := t.Chains[r.chain.Name]; {
		case have == "":
			missing("chain", r.chain, datapath.Missing)
		case have != r.chain.Definition():
			is.remake[r.chain] = true
			is.repairs = append(is.repairs, differs("chain", r.chain, have+", want "+r.chain.Definition()))
		case !slices.Equal(t.Rules[r.chain.Name], rules):
			is.repairs = append(is.repairs, differs("chain", r.chain, fmt.Sprintf("other rules (%d, want %d)", len(t.Rules[r.chain.Name]), len(rules))))
		default:
			continue
		}
		is.otherRules = true
	}
	for t, have := range tables {
		for _, name := range slices.Sorted(maps.Keys(have.Chains)) {
			// A chain without a hook sees no packet, as no rule of flock's jumps to it.
			hooked := strings.Contains(have.Chains[name], "hook")
			if hooked && !slices.ContainsFunc(chains(), func(r ruled) bool { return r.chain.Table == t && r.chain.Name == name }) {
				c := nft.Chain{Table: t, Name: name}
				is.stray, is.otherRules = append(is.stray, c), true
				is.repairs = append(is.repairs, differs("chain", c, datapath.Stray))
			}
		}
	}
	for _, c := range constants {
		if t := tables[c.set.Table]; t == nil || t.Sets[c.set.Name] == "" {
			is.otherRules = true
			continue
		}
		members, err := g.elements(c.set)
		if err != nil {
			return is, err
		}
		keys := make([]string, len(members))
		for i, m := range members {
			keys[i] = m.Key
		}
		if !slices.Equal(keys, c.keys) {
			is.otherRules = true
			is.repairs = append(is.repairs, differs("set", c.set, "other members"))
		}
	}
	return is, nil
}
