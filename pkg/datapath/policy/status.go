package policy

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"flock.fritzlab.net/flock/internal/metric"
)

// Status is whether the table is what the policies say.
type Status struct {
	// Missing says what has to be known before anything is enforced; empty if nothing
	// is missing. Until then, the table of the agent before this one stays in force,
	// and no pod starts.
	Missing string
	// Stale says what the API server refuses to tell, so that what is in force gets out
	// of date; empty if it refuses nothing. That it cannot be reached is not a refusal.
	Stale string
	// Pending says what of the cluster is not known that the newest policies need, so that
	// they are not enforced; empty if they are, or if there has been no error so far.
	Pending string
	// Refusal is why the kernel does not take the last change; nil if it did.
	Refusal error
	// OverBudget says which policies are, so that they allow nothing; empty if none is.
	OverBudget string
}

// Status returns the status as it is now.
func (e *Enforcer) Status() Status { return e.status.Get() }

// Notify wakes whoever receives from ch when the status has changed.
func (e *Enforcer) Notify(ch chan<- struct{}) { e.status.Notify(ch) }

func (e *Enforcer) setStatus() {
	var missing, stale, pending []string
	counts := counts{kinds: map[string]count{}, links: len(e.index.Ruleset().Links), findings: len(e.findings), refusals: e.refusals}
	for _, w := range e.watches {
		counts.kinds[w.name] = count{len(w.objects), w.synced && w.current}
		switch {
		case w.synced && refused(w.err):
			stale = append(stale, fmt.Sprintf("%s (%v)", w.name, w.err))
		case w.synced:
		case !w.isPolicy:
			if w.needed() && w.err != nil && !e.pressed {
				pending = append(pending, fmt.Sprintf("%s (%v)", w.name, w.err))
			}
		case w.err != nil:
			missing = append(missing, fmt.Sprintf("%s from the API server (%v)", w.name, w.err))
		default:
			missing = append(missing, w.name+" from the API server")
		}
	}
	if !e.localKnown() {
		missing = append(missing, "the labels of the pods that ran before the agent started")
	}
	s := Status{Refusal: e.refusal}
	if withheld := withheld(e.findings); len(withheld) > 0 {
		s.OverBudget = overBudget(withheld)
		counts.withheld = len(withheld)
	}
	if len(missing) > 0 {
		s.Missing = "waiting for " + strings.Join(missing, ", ")
	}
	if len(stale) > 0 {
		s.Stale = "the API server refuses, and what it sent last is in force: " + strings.Join(stale, ", ")
	}
	if len(pending) > 0 {
		s.Pending = "the newest policies are not enforced, because the API server does not tell what they need: " + strings.Join(pending, ", ")
	}
	e.counts.Store(&counts)
	e.status.Set(s)
}

// refused says that the API server has answered that the agent may not know, or cannot
// ask so.
func refused(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	code := status.Status().Code
	return code >= http.StatusBadRequest && code < http.StatusInternalServerError &&
		code != http.StatusGone && code != http.StatusTooManyRequests && code != http.StatusRequestTimeout
}

// counts is what metrics say. It is not changed.
type counts struct {
	kinds           map[string]count
	links, findings int
	withheld        int
	refusals        uint64
}

type count struct {
	objects int
	current bool
}

var (
	objectsMetric = metric.New(metric.Gauge, "flock_policy_objects",
		"Objects that the network policies of the node are made of, by kind: policies, and while policies need them the pods, namespaces and nodes of the cluster, and the pods of the node for their labels (nodepods).",
		"networkpolicies differs from what the API server has: see flock_policy_source_up.", "kind")
	sourceMetric = metric.New(metric.Gauge, "flock_policy_source_up",
		"1 while the API server reports the objects of the kind; 0 while what it reported last is in force, and for kinds that no policy needs.",
		"0 for networkpolicies for longer than a minute: changes of policies are not enforced on the node. The agent's log says why.", "kind")
	linksMetric = metric.New(metric.Gauge, "flock_policy_pods",
		"Pods' links on the node that a network policy selects.",
		"0 on a node that should have isolated pods.")
	findingsMetric = metric.New(metric.Gauge, "flock_policy_unenforced",
		"Parts of network policies that the node cannot enforce as they are written.",
		"Above 0: a policy has a mistake. Its Events say which: kubectl get events -A --field-selector reason=PolicyNotEnforced.")
	withheldMetric = metric.New(metric.Gauge, "flock_policy_over_budget",
		"NetworkPolicies that allow nothing on the node, because their namespace has more elements than it may have (--policy-budget).",
		"Above 0: the condition PoliciesEnforced and the policies' Events say which. Its author selects too many pods on too many ports, or the budget is too small for the cluster. See docs/policy.md.")
	refusalsMetric = metric.New(metric.Counter, "flock_policy_refused_changes_total",
		"Changes of network policies that the kernel refused. Each is tried again.",
		"Rising: policies are not enforced, and no pod starts. The condition PoliciesEnforced says why.")
	changeMetric = metric.New(metric.Histogram, "flock_policy_change_duration_seconds",
		"Time from the event that the agent received to the change in force in the kernel, for existing connections too.",
		"Above 0.1 s: the node is overloaded, or a policy has very many blocks of addresses.")
)

// Describe implements prometheus.Collector.
func (e *Enforcer) Describe(ch chan<- *prometheus.Desc) {
	metric.Describe(ch, objectsMetric, sourceMetric, linksMetric, findingsMetric, withheldMetric, refusalsMetric, decisionsMetric, deniedMetric)
	e.changes.Describe(ch)
}

// Collect implements prometheus.Collector.
func (e *Enforcer) Collect(ch chan<- prometheus.Metric) {
	e.changes.Collect(ch)
	now := e.counts.Load()
	for kind, c := range now.kinds {
		ch <- objectsMetric.Value(float64(c.objects), kind)
		ch <- sourceMetric.Bool(c.current, kind)
	}
	ch <- linksMetric.Value(float64(now.links))
	ch <- findingsMetric.Value(float64(now.findings))
	ch <- withheldMetric.Value(float64(now.withheld))
	ch <- refusalsMetric.Value(float64(now.refusals))
	e.collectDecisions(ch)
}
