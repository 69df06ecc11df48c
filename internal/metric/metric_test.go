package metric

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestNew(t *testing.T) {
	refused := func(want string, declare func()) {
		t.Helper()
		defer func() {
			if got, _ := recover().(string); !strings.Contains(got, want) {
				t.Errorf("panic %q, want %q", got, want)
			}
		}()
		declare()
	}
	things := New(Gauge, "flock_things", "Things.", "Never.", "kind")
	defer func() { delete(declared, "flock_things") }()
	refused("declared twice", func() { New(Gauge, "flock_things", "Things.", "Never.") })
	refused("does not begin", func() { New(Gauge, "things", "Things.", "Never.") })
	refused("_total", func() { New(Counter, "flock_some", "Things.", "Never.") })
	refused("_total", func() { New(Gauge, "flock_some_total", "Things.", "Never.") })
	refused("unit", func() { New(Histogram, "flock_some_duration", "Things.", "Never.") })
	refused("missing", func() { New(Gauge, "flock_some", "Things.", "") })

	if want := "## `flock_things`\n\nGauge, by `kind`. Things.\n\nWhen it matters: Never.\n"; !strings.Contains(Page(), want) {
		t.Errorf("the page has no\n%s:\n%s", want, Page())
	}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(one{things})
	families, err := r.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "flock_things" || families[0].Metric[0].Gauge.GetValue() != 1 {
		t.Errorf("%v, %v", families, err)
	}
}

type one struct{ *Metric }

func (o one) Describe(ch chan<- *prometheus.Desc) { ch <- o.Desc }
func (o one) Collect(ch chan<- prometheus.Metric) { ch <- o.Bool(true, "a") }
