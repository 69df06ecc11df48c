package watch

import (
	"github.com/prometheus/client_golang/prometheus"

	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

var _ prometheus.Collector = (*Watcher)(nil)

var (
	repairsMetric = metric.New(metric.Counter, "flock_kernel_repairs_total",
		"Objects of flock's in the kernel that another program had changed and that were repaired, by kind.",
		"Rising: another program changes flock's routes, links, settings or tables. The Events of the Node and the log name it.", "kind")
	faultsMetric = metric.New(metric.Gauge, "flock_kernel_faults",
		"Differences between flock's state in the kernel and what it should be that cannot be repaired, or that another program makes again and again.",
		"Above 0 for longer than a few seconds: pods may be unreachable. The condition of the NodeConfig has the reason and the remedy.")
)

// Describe implements [prometheus.Collector].
func (w *Watcher) Describe(ch chan<- *prometheus.Desc) {
	metric.Describe(ch, repairsMetric, faultsMetric)
}

// Collect implements [prometheus.Collector].
func (w *Watcher) Collect(ch chan<- prometheus.Metric) {
	s := w.Status()
	for _, k := range kernel.Kinds {
		ch <- repairsMetric.Value(float64(s.Repairs[k]), string(k))
	}
	ch <- faultsMetric.Value(float64(len(s.Faults)))
}
