package policy

import (
	"context"
	"slices"

	"flock.fritzlab.net/flock/internal/cell"
)

// A PodReport is what the node has in force about a pod.
type PodReport struct {
	// InForce: the table is what the policies say, as far as this node knows them.
	InForce bool `json:"inForce"`
	// Why says why it is not; empty if it is.
	Why string `json:"why,omitempty"`
	// Links are the host ends of the pod's interfaces. A pod that the node does not
	// have has none.
	Links []string `json:"links,omitempty"`
	// DeniedIn and DeniedOut are the packets that were denied of what the pod gets and
	// of what it sends.
	DeniedIn  uint64 `json:"deniedIn"`
	DeniedOut uint64 `json:"deniedOut"`
	// Decisions are those on this node of the policies that are about the pod, for all
	// pods together.
	Decisions []Decisions `json:"decisions,omitempty"`
	// Verdicts are the answers to the questions.
	Verdicts []Verdict `json:"verdicts,omitempty"`
}

// Decisions is what a policy has decided.
type Decisions struct {
	Series
	Packets uint64 `json:"packets"`
}

// About says what is in force about a pod of this node, and answers questions about
// it. Their UIDs may be left out.
func (e *Enforcer) About(ctx context.Context, namespace, name string, questions ...Question) (r PodReport, err error) {
	askErr := e.ask(ctx, func() {
		var denied []PodDenied
		if denied, err = e.count(); err != nil {
			return
		}
		for _, d := range denied {
			if d.Namespace == namespace && d.Name == name {
				r.DeniedIn, r.DeniedOut = d.In, d.Out
			}
		}
		status := e.status.Get()
		switch {
		case status.Missing != "":
			r.Why = status.Missing
		case status.Refusal != nil:
			r.Why = status.Refusal.Error()
		case status.Stale != "":
			r.Why = status.Stale
		case status.Pending != "":
			r.Why = status.Pending
		case e.dirty:
			r.Why = "a change is about to be put into force"
		}
		r.InForce = r.Why == ""
		var found *pod
		for p := range e.index.namespace(namespace).local {
			if p.Name == name && (found == nil || len(p.groups) > len(found.groups)) {
				found = p
			}
		}
		e.index.forgetNamespace(e.index.namespace(namespace))
		if found == nil {
			return
		}
		r.Links = slices.Clone(found.Links)
		about := map[PolicyRef]bool{}
		var withheld []PolicyRef
		for g := range found.groups {
			for ref, m := range g.members {
				about[ref] = true
				if m.withheld {
					withheld = append(withheld, ref)
				}
			}
		}
		if len(withheld) > 0 && r.InForce {
			slices.SortFunc(withheld, PolicyRef.compare)
			r.InForce, r.Why = false, overBudget(slices.Compact(withheld))
		}
		for s, n := range e.tally.Totals() {
			if about[s.Policy] {
				r.Decisions = append(r.Decisions, Decisions{s, n})
			}
		}
		slices.SortFunc(r.Decisions, func(a, b Decisions) int { return a.compare(b.Series) })
		for i := range questions {
			questions[i].Namespace, questions[i].Name, questions[i].UID = found.Namespace, found.Name, found.UID
		}
		r.Verdicts = e.index.Explain(questions...)
	})
	if askErr != nil {
		return r, askErr
	}
	return r, err
}

// Selected are the namespaces of the pods of this node that a policy selects, in order.
func (e *Enforcer) Selected() cell.Reader[[]string] { return &e.selected }

func (x *Index) selectedNamespaces() (out []string) {
	for name, ns := range x.namespaces {
		for p := range ns.local {
			if len(p.profiles) > 0 {
				out = append(out, name)
				break
			}
		}
	}
	slices.Sort(out)
	return out
}

// SetLogged says of which namespaces' pods denied packets are logged. It does not wait.
func (e *Enforcer) SetLogged(namespaces ...string) {
	e.change(func() { e.index.SetLogged(namespaces...) })
}
