//go:build cluster

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
)

// cause makes an alert fire, for real.
type cause struct {
	alerts []string // all that fire because of it, on node; others may too
	node   string   // empty: the alert is about no single node
	begin  func(t *testing.T)
	again  func(t *testing.T) // repeated until the alert fires; may be nil
	last   bool               // it begins when the alerts of the others have fired, which it would keep from that
	end    func(t *testing.T)
}

// faster is by how much the times in the rules are divided, and causes are what is caused
// with that. make test-alerts has a longer list, and more time.
var (
	faster = 60
	causes = []func(*testing.T) cause{routerDisabled, podsRouteShadowed, agentStopped}
	// all that the dashboard asks about has happened once the causes have their alerts
	everything = false
)

// alertsFire: a real Prometheus reads the agents over TLS, as docs/deploy.md says, with a
// token that the API server knows. Nothing fires; each fault makes its alerts fire, all
// faults at the same time; and they end with the faults.
func alertsFire(t *testing.T) {
	prometheus := startPrometheus(t)
	prometheus.reads(t)
	prometheus.answersDashboard(t, mayBeEmpty)
	prometheus.fires(t)

	var all []cause
	for _, make := range causes {
		all = append(all, make(t))
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			for _, c := range slices.Backward(all) {
				c.end(t)
			}
		}
	}
	t.Cleanup(end)
	began := time.Now()
	for _, c := range all {
		if !c.last {
			c.begin(t)
		}
	}
	seen, begun := map[alert]bool{}, map[int]bool{}
	eventually(t, 5*time.Minute, func() error {
		for _, c := range all {
			if c.again != nil {
				c.again(t)
			}
		}
		for a := range prometheus.firing(t) {
			if !seen[a] {
				t.Logf("after %s: %s %s", time.Since(began).Round(time.Second), a.name, a.node)
			}
			seen[a] = true
		}
		fires := func(c cause) error {
			for _, name := range c.alerts {
				if a := (alert{name, c.node}); !seen[a] {
					return fmt.Errorf("%v does not fire; those that did: %v", a, slices.Collect(maps.Keys(seen)))
				}
			}
			return nil
		}
		for _, c := range all {
			if err := fires(c); err != nil && !c.last {
				return err
			}
		}
		for i, c := range all {
			if c.last && !begun[i] {
				begun[i] = true
				c.begin(t)
			}
			if err := fires(c); err != nil {
				return err
			}
		}
		return nil
	})
	if everything {
		prometheus.answersDashboard(t, nil)
	}
	began = time.Now()
	end()
	eventually(t, 4*time.Minute, func() error {
		if firing := prometheus.firing(t); len(firing) > 0 {
			return fmt.Errorf("still firing: %v", slices.Collect(maps.Keys(firing)))
		}
		return nil
	})
	t.Logf("%d alerts fired, and ended %s after their faults", len(seen), time.Since(began).Round(time.Second))
	sessionsUp(t)
	mustKubectl(t, "wait", "--for=condition=Ready", "node", "--all", "--timeout=120s")
}

// atRouter disables or enables the router's sessions with a node.
func atRouter(t *testing.T, command string, node string) {
	t.Helper()
	for _, family := range []string{"ipv6", "ipv4"} {
		mustLab(t, "exec", plan.Tor, "--", "birdc", command, node+"_"+family)
	}
}

func routerDisabled(*testing.T) cause {
	const node = "node1"
	return cause{
		alerts: []string{"FlockNoSession", "FlockSessionDown"}, node: node,
		begin: func(t *testing.T) { atRouter(t, "disable", node) },
		end:   func(t *testing.T) { atRouter(t, "enable", node) },
	}
}

// podsAddress is that of one of prove's two pods on node2.
func podsAddress(t *testing.T, number int) string {
	t.Helper()
	ip := mustKubectl(t, "--namespace=demo", "get", "pods", "--field-selector=status.phase=Running,spec.nodeName=node2",
		fmt.Sprintf("--output=jsonpath={.items[%d].status.podIPs[0].ip}", number))
	if !strings.Contains(ip, ":") {
		t.Fatalf("a pod on node2 has %q, want an IPv6 address first", ip)
	}
	return ip
}

func podsRouteShadowed(t *testing.T) cause {
	route := []string{"blackhole", podsAddress(t, 0) + "/128", "proto", "static", "metric", "32"}
	ip := func(t *testing.T, command string) {
		t.Helper()
		mustLab(t, append([]string{"exec", "node2", "--", "ip", "-6", "route", command}, route...)...)
	}
	return cause{
		alerts: []string{"FlockKernelFault"}, node: "node2",
		begin: func(t *testing.T) { ip(t, "replace") },
		end:   func(t *testing.T) { ip(t, "del") },
	}
}

// agentStopped: an agent that hangs.
func agentStopped(*testing.T) cause {
	send := func(t *testing.T, s syscall.Signal) {
		t.Helper()
		pids := running(t, "node3", "/usr/local/bin/flock-agent")
		if len(pids) == 0 {
			t.Fatal("node3 runs no agent")
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	return cause{
		alerts: []string{"FlockAgentDown"}, node: "node3",
		begin: func(t *testing.T) { send(t, syscall.SIGSTOP) },
		end:   func(t *testing.T) { send(t, syscall.SIGCONT) },
	}
}

// prometheus runs where the API server is.
type prometheus struct {
	background
	rules string // the file
}

const prometheusAddress = "127.0.0.1:9090"

// startPrometheus starts it with the scrape configuration of docs/deploy.md, but for the
// discovery of the agents, which Debian's Prometheus is built without.
func startPrometheus(t *testing.T) *prometheus {
	apply(t, `
apiVersion: v1
kind: Namespace
metadata: {name: monitoring}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: prometheus, namespace: monitoring}
`)
	mustKubectl(t, "create", "clusterrolebinding", "flock-metrics", "--clusterrole=flock-metrics", "--serviceaccount=monitoring:prometheus")
	t.Cleanup(func() {
		mustKubectl(t, "delete", "clusterrolebinding", "flock-metrics")
		mustKubectl(t, "delete", "namespace", "monitoring", "--wait=false")
	})
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	token := write("token", strings.TrimSpace(mustKubectl(t, "--namespace=monitoring", "create", "token", "prometheus")))
	rules, err := os.ReadFile("../../deploy/chart/monitoring/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/deploy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\nscrape_configs:")
	documented, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("docs/deploy.md has no scrape configuration")
	}
	var config map[string]any
	if err := yaml.Unmarshal([]byte("scrape_configs:"+documented), &config); err != nil {
		t.Fatal(err)
	}
	job := config["scrape_configs"].([]any)[0].(map[string]any)
	delete(job, "kubernetes_sd_configs")
	delete(job, "relabel_configs")
	job["authorization"].(map[string]any)["credentials_file"] = token
	var targets []any
	target := func(n plan.Node, port int, service string) {
		targets = append(targets, map[string]any{
			"targets": []string{fmt.Sprintf("[%s]:%d", n.LAN().IPv6.Addr(), port)},
			"labels":  map[string]string{"node": n.Name(), "job": service},
		})
	}
	for _, n := range plan.Nodes(3) {
		target(n, 9480, "flock-metrics")
		target(n, 9482, "flock-controller-metrics") // it is on two of them
	}
	job["static_configs"] = targets
	config["global"] = map[string]string{"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
	p := &prometheus{rules: write("alerts.yaml", quicken(t, string(rules), faster))}
	config["rule_files"] = []string{p.rules}
	content, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	p.start(t, plan.ControlPlane, "prometheus", "--config.file="+write("prometheus.yaml", string(content)),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+prometheusAddress, "--log.level=warn")
	return p
}

var ruleTimes = regexp.MustCompile(`(for: |\[)(\d+[smh])`)

// quicken divides the times of the rules.
func quicken(t *testing.T, rules string, by int) string {
	t.Helper()
	n := 0
	quick := ruleTimes.ReplaceAllStringFunc(rules, func(s string) string {
		m := ruleTimes.FindStringSubmatch(s)
		d, err := time.ParseDuration(m[2])
		if err != nil {
			t.Fatal(err)
		}
		n++
		least := time.Second
		if m[1] == "[" {
			least = 4 * time.Second // a rate needs two samples
		}
		return fmt.Sprintf("%s%ds", m[1], int(max(d/time.Duration(by), least).Seconds()))
	})
	if n < 20 {
		t.Fatalf("only %d times in the rules", n)
	}
	return quick
}

// query asks Prometheus.
func (p *prometheus) query(t *testing.T, expr string) (samples []sample, err error) {
	t.Helper()
	body, err := getFrom(t, member.Of(labDir(t), plan.ControlPlane).NetNS(), "http://"+prometheusAddress+"/api/v1/query?query="+url.QueryEscape(expr))
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, p.said())
	}
	var answer struct {
		Status, Error string
		Data          struct{ Result []sample }
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("%w: %s", err, body)
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("%s: %s", expr, answer.Error)
	}
	return answer.Data.Result, nil
}

type sample struct{ Metric map[string]string }

// reads waits until it has read each agent, and each flock-controller.
func (p *prometheus) reads(t *testing.T) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		for job, want := range map[string]int{"flock-metrics": 3, "flock-controller-metrics": 2} {
			up, err := p.query(t, fmt.Sprintf(`up{job=%q} == 1`, job))
			if err == nil && len(up) != want {
				err = fmt.Errorf("%d of %d of %s can be read: %v: %s", len(up), want, job, up, p.said())
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

type alert struct{ name, node string }

// firing are the alerts that fire now.
func (p *prometheus) firing(t *testing.T) map[alert]bool {
	t.Helper()
	samples, err := p.query(t, `ALERTS{alertstate="firing"}`)
	if err != nil {
		t.Fatal(err)
	}
	all := map[alert]bool{}
	for _, s := range samples {
		all[alert{s.Metric["alertname"], s.Metric["node"]}] = true
	}
	return all
}

// fires fails if an alert does, once what earlier parts did is too old to count.
func (p *prometheus) fires(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		if firing := p.firing(t); len(firing) > 0 {
			return fmt.Errorf("without a fault, there fire %v", slices.Collect(maps.Keys(firing)))
		}
		return nil
	})
}

// mayBeEmpty are queries of the dashboard that have no answer in a cluster where nothing
// has happened yet, by the metrics in them: no anycast address was announced or withdrawn,
// and no pod forged a source. make test-alerts asks them after that.
var mayBeEmpty = []string{"flock_anycast_transition", "flock_pod_spoofed"}

// answersDashboard asks each query of the dashboard, as Grafana would. Only those with the
// metrics of excused may have no answer.
func (p *prometheus) answersDashboard(t *testing.T, excused []string) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/chart/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Templating struct {
			List []struct{ Name, Type string }
		}
		Panels []dashboardPanel
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	asked := 0
	var visit func([]dashboardPanel)
	visit = func(panels []dashboardPanel) {
		for _, panel := range panels {
			for _, target := range panel.Targets {
				expr := strings.NewReplacer("$__rate_interval", "5s", "${__rate_interval}", "5s", "$__range", "60s", "$__interval", "5s").Replace(target.Expr)
				for _, v := range dashboard.Templating.List {
					expr = strings.NewReplacer("$"+v.Name, ".*", "${"+v.Name+"}", ".*").Replace(expr)
				}
				asked++
				eventually(t, 30*time.Second, func() error {
					samples, err := p.query(t, expr)
					if err == nil && len(samples) == 0 && !slices.ContainsFunc(excused, func(m string) bool { return strings.Contains(expr, m) }) {
						err = fmt.Errorf("panel %q: %s has no answer", panel.Title, expr)
					}
					return err
				})
			}
			visit(panel.Panels)
		}
	}
	visit(dashboard.Panels)
	if asked < 15 {
		t.Errorf("the dashboard has only %d queries", asked)
	}
	t.Logf("%d queries of the dashboard have answers", asked)
}

type dashboardPanel struct {
	Title   string
	Panels  []dashboardPanel
	Targets []struct{ Expr string }
}
