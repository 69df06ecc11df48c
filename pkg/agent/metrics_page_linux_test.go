package agent

import (
	"flag"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"flock.fritzlab.net/flock/internal/metric"
	_ "flock.fritzlab.net/flock/pkg/controller" // its metrics are on the page too
)

var update = flag.Bool("update", false, "write docs/metrics.md")

// The page and the metrics of an agent are the same, in both directions.
func TestMetricsPage(t *testing.T) {
	const page = "../../docs/metrics.md"
	if *update {
		if err := os.WriteFile(page, []byte(metric.Page()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(page); err != nil || string(got) != metric.Page() {
		t.Errorf("docs/metrics.md is not what the code declares (%v): run make generate", err)
	}

	all, _ := composed(t, slog.New(slog.DiscardHandler))
	registry := prometheus.NewPedanticRegistry()
	described := map[string]bool{}
	for _, c := range all.collectors() {
		registry.MustRegister(c)
		descs := make(chan *prometheus.Desc, 100)
		c.Describe(descs)
		close(descs)
		for d := range descs {
			described[d.String()] = true
		}
	}
	declared := map[string]*metric.Metric{}
	for _, m := range metric.All() {
		declared[m.Name] = m
		if !m.Controller() && !described[m.Desc.String()] {
			t.Errorf("%s is declared, but no part of the agent has it", m.Name)
		}
		delete(described, m.Desc.String())
	}
	for d := range described {
		t.Errorf("a part of the agent has a metric that is not declared by metric.New: %s", d)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Error(err)
	}
	for _, f := range families {
		if m := declared[f.GetName()]; m == nil || strings.ToLower(f.GetType().String()) != string(m.Type) {
			t.Errorf("the agent has %s of type %s, declared is %+v", f.GetName(), f.GetType(), m)
		}
	}
}
