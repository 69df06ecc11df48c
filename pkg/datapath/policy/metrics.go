package policy

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flock.fritzlab.net/flock/internal/metric"
)

var (
	decisionsMetric = metric.New(metric.Counter, "flock_policy_decisions_total",
		"Packets that a policy decided about on this node: the first of each connection, the first after a change that may revoke it, and all that are denied. namespace is empty for a ClusterNetworkPolicy. verdict is allow, deny or pass; with -shared behind it, the packets are counted for each of several policies: deny-shared for those that select a pod together, allow-shared for those whose peers are in one set.",
		"deny rising: a policy cuts off what tries to connect; flockctl trace says why. allow at 0 for weeks: the policy may not be needed. See docs/policy.md.",
		"namespace", "policy", "direction", "verdict")
	deniedMetric = metric.New(metric.Counter, "flock_pod_denied_packets_total",
		"Packets to a pod (ingress) and from it (egress) that its policies denied.",
		"Rising: somebody tries what the policies do not allow. The deny log of the namespace says who.",
		"namespace", "pod", "direction")
)

// scrapePatience is how long a scrape waits for the Enforcer, which may be at work.
const scrapePatience = 2 * time.Second

// collectDecisions gives the counters of policies and of pods, as the kernel has them
// now. Series that have counted nothing are left out: there are at most eight for each
// policy that selects a pod of the node.
func (e *Enforcer) collectDecisions(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapePatience)
	defer cancel()
	totals, denied, err := e.Counted(ctx)
	if err != nil {
		if ctx.Err() == nil {
			e.c.Log.Warn("cannot read the counters of network policies", "error", err)
		}
		return
	}
	for s, n := range totals {
		ch <- decisionsMetric.Value(float64(n), s.Policy.Namespace, s.Policy.Name, string(s.Direction), s.Verdict)
	}
	for _, d := range denied {
		ch <- deniedMetric.Value(float64(d.In), d.Namespace, d.Name, string(Ingress))
		ch <- deniedMetric.Value(float64(d.Out), d.Namespace, d.Name, string(Egress))
	}
}

// Counted are the packets that each policy of the node has decided about, and those that
// were denied of each pod, as the kernel has them now. It waits for an Enforcer that is at
// work, no longer than until ctx ends.
func (e *Enforcer) Counted(ctx context.Context) (totals map[Series]uint64, denied []PodDenied, err error) {
	var countErr error
	err = e.ask(ctx, func() {
		if denied, countErr = e.count(); countErr == nil {
			totals = maps.Clone(e.tally.Totals())
		}
	})
	return totals, denied, cmp.Or(err, countErr)
}

// ask has Run do something, and waits until it is done.
func (e *Enforcer) ask(ctx context.Context, do func()) error {
	done := make(chan struct{})
	e.post(func() {
		defer close(done)
		if ctx.Err() == nil {
			do()
		}
	})
	select {
	case <-done:
		return ctx.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// PodDenied is what has been denied of a pod's packets.
type PodDenied struct {
	Namespace, Name string
	In, Out         uint64
}

// count takes in the kernel's counters.
func (e *Enforcer) count() ([]PodDenied, error) {
	counts, err := e.c.Table.Counts()
	if err != nil {
		return nil, err
	}
	e.tally.Take(e.index.Ruleset().Counters, counts.Counters)
	e.tally.ForgetPolicies(func(ref PolicyRef) bool { return e.index.policies[ref] != nil })
	// Of two pods with a name, one of which is about to go, there is one series.
	byName := map[PolicyRef]*PodDenied{}
	for p := range e.index.localPods(&group{subject: *everyPod}) {
		if !slices.ContainsFunc(p.Links, func(l string) bool { return e.index.ruleset.Links[l] != (Link{}) }) {
			continue
		}
		ref := PolicyRef{p.Namespace, p.Name}
		d := byName[ref]
		if d == nil {
			d = &PodDenied{Namespace: p.Namespace, Name: p.Name}
			byName[ref] = d
		}
		for _, l := range p.Links {
			d.In += counts.DeniedIn[l]
			d.Out += counts.DeniedOut[l]
		}
	}
	var out []PodDenied
	for _, ref := range slices.SortedFunc(maps.Keys(byName), PolicyRef.compare) {
		out = append(out, *byName[ref])
	}
	return out, nil
}

// countLast takes in what counters have counted that are about to be deleted.
func (e *Enforcer) countLast(gone []*Counter) {
	if len(gone) == 0 {
		return
	}
	counts, err := e.c.Table.CountsOf(gone)
	if err != nil {
		e.c.Log.Debug("cannot read the last counts of rules that go", "error", err)
	}
	of := map[string]*Counter{}
	for _, c := range gone {
		of[c.Name] = c
	}
	e.tally.Take(of, counts)
	e.tally.Forget(gone)
}
