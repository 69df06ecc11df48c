package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// gathered are the series that a scrape gets.
func (r *rig) gathered() string {
	r.t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(r.e)
	families, err := registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		if f.GetName() != "flock_policy_decisions_total" && f.GetName() != "flock_pod_denied_packets_total" {
			continue
		}
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			out = append(out, fmt.Sprintf("%s{%s} %v", f.GetName(), strings.Join(labels, ","), m.Counter.GetValue()))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// Scrapes get what the kernel has counted; what has gone from the kernel stays counted
// as long as its policy is there.
func TestMetrics(t *testing.T) {
	inRig(t, func(r *rig) {
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.e.Set(r.web)
		r.complete()
		synctest.Wait()
		count := func(n uint64) {
			r.table.mu.Lock()
			defer r.table.mu.Unlock()
			r.table.counts = policy.Counts{Counters: map[string]uint64{}, DeniedIn: map[string]uint64{"flock1": n}, DeniedOut: map[string]uint64{"flock1": 1}}
			for name := range r.table.ruleset.Counters {
				r.table.counts.Counters[name] = n
			}
		}
		want := func(want ...string) {
			r.t.Helper()
			if got := r.gathered(); got != strings.Join(want, "\n") {
				r.t.Errorf("metrics are\n%s\nwant\n%s", got, strings.Join(want, "\n"))
			}
		}
		count(7)
		pod := []string{"flock_pod_denied_packets_total{direction=egress,namespace=shop,pod=web} 1", "flock_pod_denied_packets_total{direction=ingress,namespace=shop,pod=web} 7"}
		decisions := "flock_policy_decisions_total{direction=ingress,namespace=shop,policy=deny,verdict=deny} "
		want(append(pod, decisions+"7")...)
		// The pod goes, and with it the rule that has counted 2 more until then.
		count(9)
		r.e.Delete(r.web.Namespace, r.web.Name, r.web.UID)
		synctest.Wait()
		want(decisions + "9")
		r.policies.Delete(ingressPolicy("deny", "web", ""))
		synctest.Wait()
		want("")
	})
}
