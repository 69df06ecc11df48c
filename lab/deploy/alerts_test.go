package deploy

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const monitoring = checkout + "/deploy/chart/monitoring"

// rules is a rules file of Prometheus.
type rules struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	} `json:"groups"`
}

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func alerts(t *testing.T) (all []rule) {
	t.Helper()
	text, err := os.ReadFile(monitoring + "/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var r rules
	if err := yaml.UnmarshalStrict(text, &r); err != nil {
		t.Fatal(err)
	}
	for _, g := range r.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func TestAlertsAreValid(t *testing.T) {
	promtool(t, "check", "rules", monitoring+"/alerts.yaml")
	runbooks, err := os.ReadFile(checkout + "/docs/runbooks.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^## (Flock\w+)$`).FindAllStringSubmatch(string(runbooks), -1) {
		documented[m[1]] = true
	}
	for _, a := range alerts(t) {
		if !documented[a.Alert] {
			t.Errorf("docs/runbooks.md says nothing of %s", a.Alert)
		}
		delete(documented, a.Alert)
		if s := a.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s has the severity %q", a.Alert, s)
		}
		if !strings.HasSuffix(a.Annotations["runbook_url"], "/docs/runbooks.md#"+strings.ToLower(a.Alert)) || a.Annotations["summary"] == "" || a.Annotations["description"] == "" {
			t.Errorf("%s: annotations %v", a.Alert, a.Annotations)
		}
	}
	for name := range documented {
		t.Errorf("docs/runbooks.md has %s, which is no alert", name)
	}
}

// healthy are the metrics of two nodes where nothing is wrong, for two hours: a value, or
// what promtool reads as values a minute.
var healthy = map[string]string{
	`up{job="flock-metrics",instance="a",node="node1"}`:                                                                  "1x120",
	`up{job="flock-metrics",instance="b",node="node2"}`:                                                                  "1x120",
	`flock_build_info{instance="a",node="node1",version="v1"}`:                                                           "1x120",
	`flock_build_info{instance="b",node="node2",version="v1"}`:                                                           "1x120",
	`flock_serving{instance="a",node="node1"}`:                                                                           "1x120",
	`flock_taking_pods{instance="a",node="node1"}`:                                                                       "1x120",
	`flock_session_up{instance="a",node="node1",protocol="bgp",peer="left"}`:                                             "1x120",
	`flock_session_up{instance="a",node="node1",protocol="bgp",peer="right"}`:                                            "1x120",
	`flock_bird_configured{instance="a",node="node1"}`:                                                                   "1x120",
	`flock_bird_applies_total{instance="a",node="node1"}`:                                                                "3x120",
	`flock_kernel_faults{instance="a",node="node1"}`:                                                                     "0x120",
	`flock_kernel_repairs_total{instance="a",node="node1",kind="route"}`:                                                 "2x120",
	`flock_addresses{instance="a",node="node1",cidr="10.0.0.0/24",state="held"}`:                                         "100x120",
	`flock_addresses{instance="a",node="node1",cidr="10.0.0.0/24",state="quarantine"}`:                                   "20x120",
	`flock_addresses{instance="a",node="node1",cidr="2001:db8::/64",state="held"}`:                                       "100x120",
	`flock_address_capacity{instance="a",node="node1",cidr="10.0.0.0/24"}`:                                               "256x120",
	`flock_address_capacity{instance="a",node="node1",cidr="2001:db8::/64"}`:                                             "18446744073709551616x120",
	`flock_cni_call_duration_seconds_count{instance="a",node="node1",command="ADD",code="0"}`:                            "0+6x120",
	`flock_cni_call_duration_seconds_count{instance="a",node="node1",command="ADD",code="11"}`:                           "0+1x120",
	`flock_cni_call_duration_seconds_count{instance="a",node="node1",command="ADD",code="100"}`:                          "7x120",
	`flock_cni_call_duration_seconds_bucket{instance="a",node="node1",command="ADD",code="0",le="0.1"}`:                  "0+6x120",
	`flock_cni_call_duration_seconds_bucket{instance="a",node="node1",command="ADD",code="0",le="1.6"}`:                  "0+6x120",
	`flock_cni_call_duration_seconds_bucket{instance="a",node="node1",command="ADD",code="0",le="+Inf"}`:                 "0+6x120",
	`flock_attachments{instance="a",node="node1",state="pending"}`:                                                       "1 0x119",
	`flock_attachments{instance="a",node="node1",state="released"}`:                                                      "0x120",
	`flock_attachments{instance="a",node="node1",state="committed"}`:                                                     "100x120",
	`flock_pod_source{instance="a",node="node1",source="kubelet"}`:                                                       "1x120",
	`flock_pod_source{instance="a",node="node1",source="none"}`:                                                          "0x120",
	`flock_anycast_paths{instance="a",node="node1",announced="true"}`:                                                    "2x120",
	`flock_anycast_paths{instance="a",node="node1",announced="false"}`:                                                   "1x120",
	`flock_anycast_transition_duration_seconds_count{instance="a",node="node1",change="withdraw",reason="NotReady"}`:     "0+1x120",
	`flock_anycast_transition_duration_seconds_bucket{instance="a",node="node1",change="withdraw",reason="x",le="0.01"}`: "0+1x120",
	`flock_anycast_transition_duration_seconds_bucket{instance="a",node="node1",change="withdraw",reason="x",le="1"}`:    "0+1x120",
	`flock_anycast_transition_duration_seconds_bucket{instance="a",node="node1",change="withdraw",reason="x",le="+Inf"}`: "0+1x120",
	`flock_pod_spoofed_packets_total{instance="a",node="node1",namespace="shop",pod="web"}`:                              "9x120",
	`flock_policy_refused_changes_total{instance="a",node="node1"}`:                                                      "2x120",
	`flock_policy_source_up{instance="a",node="node1",kind="networkpolicies"}`:                                           "1x120",
	`flock_policy_source_up{instance="a",node="node1",kind="nodes"}`:                                                     "0x120",
	`flock_policy_unenforced{instance="a",node="node1"}`:                                                                 "0x120",
	`flock_service_proxy{instance="a",node="node1",mode="none"}`:                                                         "0x120",
	`flock_service_addresses{instance="a",node="node1",announced="true"}`:                                                "2x120",
	`flock_controller_leading{instance="c",node="node1"}`:                                                                "1x120",
	`flock_controller_leading{instance="d",node="node2"}`:                                                                "0x120",
	`flock_controller_agent_expected{instance="c",node="node1",agent_node="node1"}`:                                      "1x120",
	`flock_controller_agent_expected{instance="c",node="node1",agent_node="node2"}`:                                      "1x120",
	`flock_controller_write_failures_total{instance="c",node="node1"}`:                                                   "5x120",
	`flock_controller_rollouts_stopped{instance="c",node="node1"}`:                                                       "0x120",
	`flock_controller_overlapping_nodes{instance="c",node="node1"}`:                                                      "0x120",
	`flock_controller_pool_used_addresses{instance="c",pool="web",family="IPv4",use="service"}`:                          "100x120",
	`flock_controller_pool_used_addresses{instance="c",pool="web",family="IPv4",use="anycast"}`:                          "20x120",
	`flock_controller_pool_used_addresses{instance="d",pool="web",family="IPv4",use="service"}`:                          "100x120",
	`flock_controller_pool_capacity_addresses{instance="c",pool="web",family="IPv4"}`:                                    "256x120",
	`flock_controller_pool_capacity_addresses{instance="d",pool="web",family="IPv4"}`:                                    "256x120",
	`flock_events_dropped_total{instance="a",node="node1"}`:                                                              "4x120",
}

// faults are what makes each alert fire: other values of series, of which the fault lasts
// from the 10th minute, at which nothing fires yet, until the 80th.
var faults = map[string]struct {
	with map[string]string // by the name of a series, or the beginning of its name and labels
	also []string          // other alerts that fire then
}{
	"FlockAgentDown":                 {with: map[string]string{`up{`: "1x9 0x70 1x40"}},
	"FlockAgentMissing":              {with: map[string]string{`up{job="flock-metrics",instance="b"`: "1x9 _x70 1x40"}},
	"FlockNotScraped":                {with: map[string]string{`up{`: "1x9 _x70 1x40"}},
	"FlockPoolNearlyUsedUp":          {with: map[string]string{`flock_controller_pool_used_addresses{instance="c",pool="web",family="IPv4",use="service"`: "100x9 220x70 100x40"}},
	"FlockPodCIDRsOverlap":           {with: map[string]string{`flock_controller_overlapping_nodes{`: "0x9 2x70 0x40"}},
	"FlockNotServing":                {with: map[string]string{`flock_serving{`: "1x9 0x70 1x40"}},
	"FlockTakesNoPods":               {with: map[string]string{`flock_taking_pods{`: "1x9 0x70 1x40"}},
	"FlockNoSession":                 {with: map[string]string{`flock_session_up{`: "1x9 0x70 1x40"}, also: []string{"FlockSessionDown"}},
	"FlockSessionDown":               {with: map[string]string{`flock_session_up{instance="a",node="node1",protocol="bgp",peer="left"`: "1x9 0x70 1x40"}},
	"FlockBIRDNotConfigured":         {with: map[string]string{`flock_bird_configured{`: "1x9 0x70 1x40"}},
	"FlockBIRDReloads":               {with: map[string]string{`flock_bird_applies_total{`: "3x9 4+2x70 144x40"}},
	"FlockKernelFault":               {with: map[string]string{`flock_kernel_faults{`: "0x9 2x70 0x40"}},
	"FlockKernelRepairs":             {with: map[string]string{`flock_kernel_repairs_total{`: "2x9 3+1x70 73x40"}},
	"FlockAddressesNearlyUsedUp":     {with: map[string]string{`flock_addresses{instance="a",node="node1",cidr="10.0.0.0/24",state="held"`: "100x9 220x70 100x40"}},
	"FlockADDFails":                  {with: map[string]string{`flock_cni_call_duration_seconds_count{instance="a",node="node1",command="ADD",code="100"`: "7x9 8+1x70 78x40"}},
	"FlockADDSlow":                   {with: map[string]string{`flock_cni_call_duration_seconds_bucket{instance="a",node="node1",command="ADD",code="0",le="0.1"`: "0+6x9 54x70 54+6x40"}},
	"FlockAttachmentsStuck":          {with: map[string]string{`flock_attachments{instance="a",node="node1",state="released"`: "0x9 3x70 0x40"}},
	"FlockNoPodSource":               {with: map[string]string{`flock_pod_source{instance="a",node="node1",source="none"`: "0x9 1x70 0x40"}},
	"FlockAnycastAddressesWithdrawn": {with: map[string]string{`flock_anycast_paths{instance="a",node="node1",announced="true"`: "2x9 0x70 2x40"}},
	"FlockAnycastFlaps":              {with: map[string]string{`flock_anycast_transition_duration_seconds_count{`: "0+1x9 12+4x70 292+1x40"}},
	"FlockWithdrawalSlow":            {with: map[string]string{`flock_anycast_transition_duration_seconds_bucket{instance="a",node="node1",change="withdraw",reason="x",le="0.01"`: "0+1x9 9x70 9+1x40"}},
	"FlockPodSpoofs":                 {with: map[string]string{`flock_pod_spoofed_packets_total{`: "9x9 10+100x70 7010x40"}},
	"FlockEventsDropped":             {with: map[string]string{`flock_events_dropped_total{`: "4x9 5+1x70 75x40"}},
	"FlockPoliciesRefused":           {with: map[string]string{`flock_policy_refused_changes_total{`: "2x9 3+1x70 73x40"}},
	"FlockPolicySourceDown":          {with: map[string]string{`flock_policy_source_up{instance="a",node="node1",kind="networkpolicies"`: "1x9 0x70 1x40"}},
	"FlockPolicyUnenforced":          {with: map[string]string{`flock_policy_unenforced{`: "0x9 1x70 0x40"}},
	"FlockNoServiceProxy":            {with: map[string]string{`flock_service_proxy{`: "0x9 1x70 0x40"}},
	"FlockNoController":              {with: map[string]string{`flock_controller_leading{instance="c"`: "1x9 _x70 1x40"}},
	"FlockControllerWritesFail":      {with: map[string]string{`flock_controller_write_failures_total{`: "5x9 6+1x70 76x40"}},
	"FlockRolloutStopped":            {with: map[string]string{`flock_controller_rollouts_stopped{`: "0x9 1x70 0x40"}},
	"FlockVersionsDiffer":            {with: map[string]string{`flock_build_info{instance="b"`: "1x9 _x70 1x40", `flock_build_info{instance="b",node="node2",version="v2"}`: "_x9 1x70 _x40"}},
}

// TestAlertsFireAndEnd: nothing fires on healthy nodes; each fault makes its alert fire,
// and no other; and it ends with the fault.
func TestAlertsFireAndEnd(t *testing.T) {
	type series struct {
		Series string `json:"series"`
		Values string `json:"values"`
	}
	type sample struct {
		Labels string  `json:"labels"`
		Value  float64 `json:"value"`
	}
	type expectation struct {
		Expr     string   `json:"expr"`
		EvalTime string   `json:"eval_time"`
		Samples  []sample `json:"exp_samples"`
	}
	type group struct {
		Name     string        `json:"name"`
		Interval string        `json:"interval"`
		Input    []series      `json:"input_series"`
		Tests    []expectation `json:"promql_expr_test"`
	}
	firing := func(at string, names ...string) expectation {
		e := expectation{Expr: `sum by (alertname) (clamp_max(ALERTS{alertstate="firing"}, 0)) + 1`, EvalTime: at, Samples: []sample{}}
		for _, n := range names {
			e.Samples = append(e.Samples, sample{fmt.Sprintf("{alertname=%q}", n), 1})
		}
		return e
	}
	input := func(with map[string]string) (all []series) {
		used := map[string]bool{}
		for _, name := range slices.Sorted(maps.Keys(healthy)) {
			s := series{name, healthy[name]}
			for prefix, values := range with {
				if strings.HasPrefix(name, prefix) {
					s.Values, used[prefix] = values, true
				}
			}
			all = append(all, s)
		}
		for name, values := range with {
			if !used[name] {
				all = append(all, series{name, values})
			}
		}
		return all
	}
	groups := []group{{Name: "healthy", Interval: "1m", Input: input(nil), Tests: []expectation{firing("5m"), firing("60m"), firing("119m")}}}
	for _, a := range alerts(t) {
		f, ok := faults[a.Alert]
		if !ok {
			t.Errorf("nothing here makes %s fire", a.Alert)
			continue
		}
		names := append([]string{a.Alert}, f.also...)
		groups = append(groups, group{Name: a.Alert, Interval: "1m", Input: input(f.with), Tests: []expectation{firing("9m"), firing("79m", names...), firing("115m")}})
	}
	if len(groups) != len(faults)+1 {
		t.Errorf("%d alerts and %d faults", len(groups)-1, len(faults))
	}
	file, err := filepath.Abs(monitoring + "/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	content, err := json.Marshal(map[string]any{"rule_files": []string{file}, "evaluation_interval": "1m", "tests": groups})
	if err != nil {
		t.Fatal(err)
	}
	test := filepath.Join(t.TempDir(), "test.yaml")
	if err := os.WriteFile(test, content, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "test", "rules", test)
}

// metricNames are the metrics that an expression uses.
func metricNames(expr string) []string {
	var all []string
	for _, name := range regexp.MustCompile(`\bflock_\w+`).FindAllString(expr, -1) {
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && strings.HasSuffix(base, "_seconds") {
				name = base
			}
		}
		all = append(all, name)
	}
	return all
}

// existing are the metrics with their labels, as docs/metrics.md has them, which is made
// from the code.
func existing(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile(checkout + "/docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	of := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^## `(flock_\\w+)`\n\n\\w+(, by ([^.]*))?\\.").FindAllStringSubmatch(string(page), -1) {
		of[m[1]] = strings.Split(strings.NewReplacer("`", "", " ", "").Replace(m[3]), ",")
	}
	return of
}

// TestMonitoringUsesMetricsThatExist: the alerts and the dashboard name metrics and labels
// that the agent has.
func TestMonitoringUsesMetricsThatExist(t *testing.T) {
	metrics := existing(t)
	if len(metrics) < 15 {
		t.Fatalf("only %d metrics in docs/metrics.md", len(metrics))
	}
	fromScrape := []string{"job", "instance", "node", "le"}
	check := func(where, expr string) {
		t.Helper()
		for _, name := range metricNames(expr) {
			if metrics[name] == nil {
				t.Errorf("%s: there is no metric %s", where, name)
			}
		}
		for _, m := range regexp.MustCompile(`(flock_\w+)\{([^}]*)\}`).FindAllStringSubmatch(expr, -1) {
			name := metricNames(m[1])[0]
			for _, l := range regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)`).FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(metrics[name], l[1]) && !slices.Contains(fromScrape, l[1]) {
					t.Errorf("%s: %s has no label %s", where, name, l[1])
				}
			}
		}
	}
	for _, a := range alerts(t) {
		check(a.Alert, a.Expr)
	}
	// A query groups by labels that its metrics have, and its legend shows no others.
	groups := func(where, expr, legend string) {
		t.Helper()
		var by, has []string
		for _, m := range regexp.MustCompile(`\bby \(([^)]*)\)`).FindAllStringSubmatch(expr, -1) {
			by = append(by, strings.Split(strings.ReplaceAll(m[1], " ", ""), ",")...)
		}
		for _, name := range metricNames(expr) {
			has = append(has, metrics[name]...)
		}
		for _, l := range by {
			if !slices.Contains(has, l) && !slices.Contains(fromScrape, l) {
				t.Errorf("%s: groups by %s, which no metric in it has", where, l)
			}
		}
		for _, m := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(legend, -1) {
			if !slices.Contains(by, m[1]) {
				t.Errorf("%s: the legend shows %s, by which the query does not group", where, m[1])
			}
		}
	}
	shown := map[string]bool{}
	ids := map[int]bool{}
	var visit func([]panel)
	visit = func(panels []panel) {
		for _, p := range panels {
			if ids[p.ID] {
				t.Errorf("two panels have the ID %d", p.ID)
			}
			ids[p.ID] = true
			if p.Type != "row" && (p.Title == "" || len(p.Targets) == 0 || p.Description == "") {
				t.Errorf("panel %d %q has no title, description or query", p.ID, p.Title)
			}
			for _, target := range p.Targets {
				check("panel "+p.Title, target.Expr)
				groups("panel "+p.Title, target.Expr, target.LegendFormat)
				for _, name := range metricNames(target.Expr) {
					shown[name] = true
				}
			}
			visit(p.Panels)
		}
	}
	visit(panels(t))
	if len(shown) < 15 {
		t.Errorf("the dashboard shows only %d metrics", len(shown))
	}
}

type panel struct {
	ID          int
	Type        string
	Title       string
	Description string
	Panels      []panel
	Targets     []struct{ Expr, LegendFormat string }
}

// panels are those of the dashboard.
func panels(t *testing.T) []panel {
	t.Helper()
	text, err := os.ReadFile(monitoring + "/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct{ Panels []panel }
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	return dashboard.Panels
}

// TestPanelsOfPhases: a real Prometheus answers the queries about the phases of ADD and DEL with
// what the nodes' histograms have.
func TestPanelsOfPhases(t *testing.T) {
	want := map[string]map[string]int{ // 10 µs, by phase
		"Phases of ADD: median": {"link": 160, "record": 5}, "Phases of ADD: 99th percentile": {"link": 630, "record": 10},
		"Phases of DEL: median": {"link": 320}, "Phases of DEL: 99th percentile": {"link": 634},
	}
	type object map[string]any
	var series, tests []object
	for _, node := range []string{"node1", "node2"} {
		for labels, values := range map[string]string{
			`command="ADD",phase="link",le="0.0016"`: "0+6x20", `command="ADD",phase="link",le="0.0064"`: "0+12x20", `command="ADD",phase="link",le="+Inf"`: "0+12x20",
			`command="ADD",phase="record",le="0.0001"`: "0+12x20", `command="ADD",phase="record",le="+Inf"`: "0+12x20",
			`command="DEL",phase="link",le="0.0064"`: "0+9x20", `command="DEL",phase="link",le="+Inf"`: "0+9x20",
		} {
			series = append(series, object{"series": fmt.Sprintf("flock_cni_phase_duration_seconds_bucket{node=%q,%s}", node, labels), "values": values})
		}
	}
	for _, p := range panels(t) {
		phases := want[p.Title]
		if phases == nil {
			continue
		}
		delete(want, p.Title)
		var samples []object
		for phase, value := range phases {
			samples = append(samples, object{"labels": fmt.Sprintf("{phase=%q}", phase), "value": value})
		}
		for _, target := range p.Targets {
			expr := "round(100000 * " + strings.ReplaceAll(target.Expr, "$node", ".*") + ")"
			tests = append(tests, object{"expr": expr, "eval_time": "15m", "exp_samples": samples})
		}
	}
	for title := range want {
		t.Errorf("the dashboard has no panel %q", title)
	}
	content, err := json.Marshal(object{"evaluation_interval": "1m", "tests": []object{{"interval": "1m", "input_series": series, "promql_expr_test": tests}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "phases.yaml") // JSON is YAML
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "test", "rules", file)
}
