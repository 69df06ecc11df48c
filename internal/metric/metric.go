// Package metric declares each of flock's metrics once: its description for Prometheus,
// and the text of the reference page docs/metrics.md.
package metric

import (
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Type is one of Prometheus' metric types.
type Type string

const (
	Counter   Type = "counter"
	Gauge     Type = "gauge"
	Histogram Type = "histogram"
)

// Metric is a declared metric. Make it with New, as a variable of a package.
type Metric struct {
	Name   string
	Type   Type
	Help   string // one sentence
	When   string // when an operator should care
	Labels []string
	Desc   *prometheus.Desc
}

var declared = map[string]*Metric{} // filled while packages are initialised, read after

// New declares a metric. It panics if the name breaks Prometheus' conventions or is
// declared twice: that is a programming error.
func New(t Type, name, help, when string, labels ...string) *Metric {
	m := &Metric{Name: name, Type: t, Help: help, When: when, Labels: labels, Desc: prometheus.NewDesc(name, help, labels, nil)}
	if fault := m.fault(); fault != "" {
		panic("metric " + name + ": " + fault)
	}
	declared[name] = m
	return m
}

func (m *Metric) fault() string {
	switch {
	case declared[m.Name] != nil:
		return "declared twice"
	case !strings.HasPrefix(m.Name, "flock_"):
		return "the name does not begin with flock_"
	case (m.Type == Counter) != strings.HasSuffix(m.Name, "_total"):
		return "counters end in _total, and nothing else does"
	case m.Type == Histogram && !strings.HasSuffix(m.Name, "_seconds") && !strings.HasSuffix(m.Name, "_bytes"):
		return "a histogram's name ends in its unit, seconds or bytes"
	case m.Help == "" || m.When == "":
		return "help or use is missing"
	}
	return ""
}

// All returns the declared metrics of all packages of the program, by name.
func All() []*Metric {
	var all []*Metric
	for _, m := range declared {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *Metric) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Describe is prometheus.Collector's Describe for ms.
func Describe(ch chan<- *prometheus.Desc, ms ...*Metric) {
	for _, m := range ms {
		ch <- m.Desc
	}
}

// Controller says whether flock-controller has the metric, and not the agent.
func (m *Metric) Controller() bool { return strings.HasPrefix(m.Name, "flock_controller_") }

// Value is the metric, a counter or a gauge, as it is when Prometheus asks.
func (m *Metric) Value(v float64, labels ...string) prometheus.Metric {
	t := prometheus.GaugeValue
	if m.Type == Counter {
		t = prometheus.CounterValue
	}
	return prometheus.MustNewConstMetric(m.Desc, t, v, labels...)
}

// Bool is 1 for true.
func (m *Metric) Bool(is bool, labels ...string) prometheus.Metric {
	if is {
		return m.Value(1, labels...)
	}
	return m.Value(0, labels...)
}

// NewHistogram makes the collector of a histogram.
func (m *Metric) NewHistogram(buckets []float64) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: m.Name, Help: m.Help, Buckets: buckets}, m.Labels)
}

// NewCounter makes the collector of a counter.
func (m *Metric) NewCounter() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help}, m.Labels)
}

// Page is the reference page of all declared metrics, in Markdown.
func Page() string {
	var b strings.Builder
	b.WriteString(pageHead)
	for _, m := range All() {
		fmt.Fprintf(&b, "\n## `%s`\n\n%s", m.Name, strings.ToUpper(string(m.Type[0]))+string(m.Type[1:]))
		if len(m.Labels) > 0 {
			fmt.Fprintf(&b, ", by `%s`", strings.Join(m.Labels, "`, `"))
		}
		fmt.Fprintf(&b, ". %s\n\nWhen it matters: %s\n", m.Help, m.When)
	}
	return b.String()
}

const pageHead = `# Metrics

The agent serves these at ` + "`/metrics`" + `, for Prometheus on port 9480 of the node ([how](deploy.md#prometheus-and-grafana))
and for programs on the node on ` + "`127.0.0.1:9479`" + `, with those of the Go runtime and of the process (` + "`go_*`, `process_*`" + `).
flock-controller serves those that begin with ` + "`flock_controller_`" + `, on port 9482 of its node, and for
programs on the node on ` + "`127.0.0.1:9478`" + `. ` + "`deploy/chart/monitoring`" + `
has alerts ([runbooks](runbooks.md)) and a dashboard of the agents'. ` + "`make generate`" + ` makes this page from the code.
`
