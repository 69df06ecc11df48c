package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// DefaultBudget is how many elements the NetworkPolicies of one namespace may have in
// the sets of a node. A rule that allows all pods of a cluster of 100,000 pods on one
// port takes 200,000, if they have addresses of both families. So many elements take
// some 40 MiB of the agent's memory and 100 MiB of the kernel's.
const DefaultBudget = 500_000

// author is what a policy's parts remember of it.
type author struct {
	ref     PolicyRef
	uid     types.UID
	created time.Time
	dir     direction
}

// An account is what the NetworkPolicies of a namespace have in sets. Tenants write
// them, and a few lines can select all pods of a cluster on a thousand ports. What would
// be more than the budget is not held: policies have their turn by age, and each that
// does not fit any more is enforced as if it had no rules. So whoever exceeds the budget
// loses the newest of his own policies, and it depends on nothing but what there is.
//
// Costs are those before elements that several policies have in common are merged.
type account struct {
	namespace string
	cost      int // of all contributions
	held      int // of those that are not withheld
	// contributions are those to the bundles that pods of this node use.
	contributions map[*contribution]struct{}
	findings      []Finding
}

// charge takes in that a contribution costs so much more.
func (c *contribution) charge(x *Index, more int) {
	c.cost += more
	a := c.bundle.account
	if a == nil || more == 0 {
		return
	}
	before := a.cost
	if a.cost += more; max(before, a.cost) > x.budget {
		x.overdrawn[a] = struct{}{}
	}
	if c.withheld {
		return
	}
	if a.held += more; a.held > x.budget && !c.bundle.stale {
		// No more of it, until the next Flush finds who has to wait.
		c.bundle.stale = true
		x.unsettled[c.bundle] = struct{}{}
	}
}

// fits says whether a contribution can be held for now.
func (a *account) fits(x *Index, cost int) bool { return a == nil || a.held+cost <= x.budget }

func (x *Index) account(namespace string) *account {
	a := x.accounts[namespace]
	if a == nil {
		a = &account{namespace: namespace, contributions: map[*contribution]struct{}{}}
		x.accounts[namespace] = a
	}
	return a
}

// close takes a contribution off the account.
func (c *contribution) close(x *Index) {
	a := c.bundle.account
	if a == nil {
		return
	}
	c.charge(x, -c.cost)
	delete(a.contributions, c)
	if len(a.contributions) == 0 {
		if len(a.findings) > 0 {
			x.findings = nil
		}
		delete(x.accounts, a.namespace)
		delete(x.overdrawn, a)
	}
}

// judgeAccounts decides for each account that is or was over the budget which policies
// are withheld.
func (x *Index) judgeAccounts() {
	for a := range x.overdrawn {
		of := map[*member][]*contribution{}
		cost := map[*member]int{}
		for c := range a.contributions {
			of[c.member] = append(of[c.member], c)
			cost[c.member] += c.cost
		}
		members := make([]*member, 0, len(of))
		for m := range of {
			members = append(members, m)
		}
		slices.SortFunc(members, func(a, b *member) int {
			return cmp.Or(a.created.Compare(b.created), strings.Compare(a.ref.Name, b.ref.Name), cmp.Compare(a.dir, b.dir))
		})
		held := 0
		var findings []Finding
		for _, m := range members {
			if m.withheld = held+cost[m] > x.budget; m.withheld {
				findings = append(findings, m.overBudget(a.namespace, x.budget))
			} else {
				held += cost[m]
			}
		}
		// First what goes, so that never more is there than before or after.
		for _, withhold := range []bool{true, false} {
			for _, m := range members {
				for _, c := range of[m] {
					if m.withheld != withhold || c.withheld == withhold {
						continue
					}
					if withhold {
						c.bundle.retract(x, c)
					} else {
						c.bundle.admit(x, c)
					}
					c.withheld = withhold
					x.unsettled[c.bundle] = struct{}{}
				}
			}
		}
		a.held = held
		if !slices.Equal(a.findings, findings) {
			a.findings, x.findings = findings, nil
		}
	}
	clear(x.overdrawn)
}

// overBudget has no numbers that change with every pod: each new text is an Event.
func (m *member) overBudget(namespace string, budget int) Finding {
	return Finding{m.ref, m.uid, fmt.Sprintf(
		"spec.%s: with it, the policies of namespace %s would have more than %d elements (addresses of pods for each port, and blocks) on a node; it allows nothing there. "+
			"Select fewer peers, or fewer ports for each, or have the operator raise --policy-budget",
		m.dir.field(), namespace, budget), true}
}

// overBudget says of policies that they are.
func overBudget(withheld []PolicyRef) string {
	return "over the budget of their namespaces, so that they allow nothing: " + List(withheld)
}

// withheld are the policies that are over their namespace's budget, of sorted findings.
func withheld(findings []Finding) (out []PolicyRef) {
	for _, f := range findings {
		if f.OverBudget {
			out = append(out, f.Policy)
		}
	}
	return slices.Compact(out)
}
