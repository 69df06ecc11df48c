package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// Policies are those that the counter may count for: one, unless several allow their
// peers by one lookup, or select the pods together. Sorted.
func (c *Counter) Policies() (out []PolicyRef) {
	if c.bundle == nil {
		for _, g := range c.isolating {
			for ref := range g.members {
				out = append(out, ref)
			}
		}
	} else {
		for _, p := range c.bundle.parts {
			for ref, m := range p.group.members {
				if contributed := c.bundle.contributed[m]; contributed != nil && contributed.has(c.lookup) {
					out = append(out, ref)
				}
			}
		}
	}
	slices.SortFunc(out, PolicyRef.compare)
	return slices.Compact(out)
}

// has says whether the contribution is a reason for the lookup.
func (c *contribution) has(l lookup) bool {
	if c.withheld {
		return false
	}
	if !l.interval() {
		return slices.Contains(c.lookups, l)
	}
	return slices.ContainsFunc(c.nets, func(t netTerm) bool {
		return (l.kind == kindNetPort && !t.port.isAll() || l.guard == t.port.guard()) && slices.ContainsFunc(t.spans, func(s span) bool { return familyOf(s.from) == l.family })
	})
}

// Counts is what the table's counters have counted.
type Counts struct {
	// Counters are packets by the counter's name.
	Counters map[string]uint64
	// DeniedIn and DeniedOut are what was denied of what a pod got and sent, in packets
	// by the pod's link.
	DeniedIn, DeniedOut map[string]uint64
}

// A Series is what is counted together: what a policy decides in one direction.
type Series struct {
	Policy    PolicyRef `json:"policy"`
	Direction Direction `json:"direction"`
	// Verdict is allow, deny or pass. With "-shared" behind it, the packets are those
	// of several policies, and counted for each: deny-shared, of the NetworkPolicies
	// that select a pod together; allow-shared, of those of one namespace whose peers
	// are in one set.
	Verdict string `json:"verdict"`
}

func (s Series) compare(o Series) int {
	return cmp.Or(s.Policy.compare(o.Policy), strings.Compare(string(s.Direction), string(o.Direction)), strings.Compare(s.Verdict, o.Verdict))
}

// series are those that the counter counts for.
func (c *Counter) series() (out []Series) {
	verdict := "deny"
	if c.bundle != nil {
		verdict = [...]string{allows: "allow", denies: "deny", passes: "pass"}[c.bundle.effect]
	}
	policies := c.Policies()
	if len(policies) > 1 {
		verdict += "-shared"
	}
	for _, ref := range policies {
		out = append(out, Series{ref, c.dir.field(), verdict})
	}
	return out
}

// A Tally adds up what the kernel's counters count, which come and go with the rules.
// The zero value is one of nothing. It is for one goroutine.
type Tally struct {
	last   map[string]uint64 // by counter
	totals map[Series]uint64
}

// Take takes in the kernel's counts. Those of counters that the Ruleset does not have
// are passed over.
func (t *Tally) Take(counters map[string]*Counter, counts map[string]uint64) {
	if t.last == nil {
		t.last, t.totals = map[string]uint64{}, map[Series]uint64{}
	}
	for name, now := range counts {
		c := counters[name]
		if c == nil {
			continue
		}
		delta := now
		if last := t.last[name]; last <= now {
			delta -= last // else somebody has reset it
		}
		t.last[name] = now
		if delta == 0 {
			continue
		}
		for _, s := range c.series() {
			t.totals[s] += delta
		}
	}
}

// Forget takes in that counters have gone. One that comes again begins at 0.
func (t *Tally) Forget(counters []*Counter) {
	for _, c := range counters {
		delete(t.last, c.Name)
	}
}

// ForgetPolicies drops the totals of policies that are not there.
func (t *Tally) ForgetPolicies(exists func(PolicyRef) bool) {
	maps.DeleteFunc(t.totals, func(s Series, _ uint64) bool { return !exists(s.Policy) })
}

// Totals are the sums so far, of all series that have counted something.
func (t *Tally) Totals() map[Series]uint64 { return t.totals }
