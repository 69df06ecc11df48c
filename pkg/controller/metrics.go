package controller

import (
	"math"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/service"
)

var (
	metricLeading = metric.New(metric.Gauge, "flock_controller_leading", "1 while this instance of flock-controller has the Lease and works, 0 while it stands by.",
		"The sum over all instances is 0 for longer than a minute: no Service gets an address. 2 for a moment does no harm.")
	metricServices = metric.New(metric.Gauge, "flock_controller_services", "Services of type LoadBalancer that are flock's, by the reason of their condition flock.fritzlab.net/AddressAssigned.",
		"Others than Assigned and PartlyAssigned: Services without an address. The condition's message says why.", "reason")
	metricAssigned = metric.New(metric.Counter, "flock_controller_addresses_assigned_total", "Addresses that were given to Services.",
		"Together with the releases: how much Services come and go.")
	metricReleased = metric.New(metric.Counter, "flock_controller_addresses_released_total", "Addresses that were taken from Services that exist: they wanted another one, or others had a better right. Those of deleted Services do not count.",
		"Rising without anybody changing Services: look for Events AddressLost.")
	metricFailures = metric.New(metric.Counter, "flock_controller_write_failures_total", "Writes of a Service's status or claim, of a node's turn to follow a NodeConfigTemplate or of a template's status that the API server refused or did not answer, other than because the object had changed.",
		"Rising: Services wait for their addresses, or nodes for their turns. The log has the error.")
	metricCapacity = metric.New(metric.Gauge, "flock_controller_pool_capacity_addresses", "Addresses in the CIDRs of an AddressPool, by family.",
		"Compare with flock_controller_pool_used_addresses.", "pool", "family")
	metricUsed = metric.New(metric.Gauge, "flock_controller_pool_used_addresses", "Addresses of an AddressPool in use, each once, by family and by use: static, anycast or service.",
		"Near the capacity: the next pod or Service gets none.", "pool", "family", "use")
	metricClaims = metric.New(metric.Counter, "flock_controller_claims_ended_total", "AddressClaims of pods that were ended because their node is gone or not heard of.",
		"Rising while all nodes are up: look at the log.")
	metricSealed = metric.New(metric.Counter, "flock_controller_passwords_encrypted_total", "Passwords shared with routers that were encrypted for a node.",
		"Rising while no Secret, NodeConfig or template changes and no node starts: something changes back and forth.")
	metricUnknown = metric.New(metric.Gauge, "flock_controller_nodes_unknown", "NodeConfigs whose conditions are Unknown because nothing is heard of their Node.",
		"Not 0: these nodes are down or cut off.")
	metricOverlapping = metric.New(metric.Gauge, "flock_controller_overlapping_nodes", "NodeConfigs with pod CIDRs that other NodeConfigs have as well, or have a part of.",
		"Not 0: two pods may get the same address. The condition PodCIDRsUnique of these NodeConfigs names the CIDRs.")
	metricExpected = metric.New(metric.Gauge, "flock_controller_agent_expected", "1 for each Node on which a DaemonSet of flock is to run an agent, by its node selector, affinity and tolerations.",
		"Prometheus has no target of the job flock-metrics on such a node: nobody sees what the agent there does.", "agent_node")
	metricStopped = metric.New(metric.Gauge, "flock_controller_rollouts_stopped", "NodeConfigTemplates whose change does not reach further nodes, because nodes of its last wave have not followed or are not available, or the API server refuses their turns.",
		"Not 0: the template's condition Progressing names the nodes, the reasons and the ways out.")
)

// poolFamilyUse is a use of a pool's addresses, by family ("IPv4", "IPv6") and use.
type poolFamilyUse struct{ pool, family, use string }

// metrics are what Prometheus is told.
type metrics struct {
	leading                                       atomic.Bool
	assigned, released, failures, collect, sealed prometheus.Counter
	unknown, stopped, overlapping                 atomic.Int64

	mu       sync.Mutex // guards below
	expected []string   // names of Nodes
	services map[string]int
	capacity map[poolFamilyUse]float64
	used     map[poolFamilyUse]int
}

func newMetrics() *metrics {
	counter := func(m *metric.Metric) prometheus.Counter { return m.NewCounter().WithLabelValues() }
	return &metrics{assigned: counter(metricAssigned), released: counter(metricReleased), failures: counter(metricFailures), collect: counter(metricClaims), sealed: counter(metricSealed)}
}

// decided notes the decisions of a pass.
func (m *metrics) decided(decisions map[service.Key]service.Decision) {
	by := map[string]int{}
	for _, d := range decisions {
		by[d.Reason]++
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.services = by
}

// pools notes how much of each pool is used.
func (m *metrics) pools(pools []config.Pool, used map[poolFamilyUse]int) {
	capacity := map[poolFamilyUse]float64{}
	for _, p := range pools {
		for _, c := range p.CIDRs {
			capacity[poolFamilyUse{pool: p.Name, family: family(c.Addr())}] += math.Exp2(float64(c.Addr().BitLen() - c.Bits()))
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity, m.used = capacity, used
}

// agents notes the Nodes that should run an agent.
func (m *metrics) agents(nodes []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expected = nodes
}

// forget drops what only the instance that works knows.
func (m *metrics) forget() {
	m.unknown.Store(0)
	m.stopped.Store(0)
	m.overlapping.Store(0)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.services, m.capacity, m.used, m.expected = nil, nil, nil, nil
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	metric.Describe(ch, metricLeading, metricServices, metricAssigned, metricReleased, metricFailures, metricCapacity, metricUsed, metricClaims, metricSealed, metricUnknown, metricStopped, metricOverlapping, metricExpected)
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	ch <- metricLeading.Bool(m.leading.Load())
	for _, c := range []prometheus.Counter{m.assigned, m.released, m.failures, m.collect, m.sealed} {
		c.Collect(ch)
	}
	if !m.leading.Load() {
		return
	}
	ch <- metricUnknown.Value(float64(m.unknown.Load()))
	ch <- metricStopped.Value(float64(m.stopped.Load()))
	ch <- metricOverlapping.Value(float64(m.overlapping.Load()))
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, node := range m.expected {
		ch <- metricExpected.Value(1, node)
	}
	for reason, n := range m.services {
		ch <- metricServices.Value(float64(n), reason)
	}
	for id, n := range m.capacity {
		ch <- metricCapacity.Value(n, id.pool, id.family)
	}
	for id, n := range m.used {
		ch <- metricUsed.Value(float64(n), id.pool, id.family, id.use)
	}
}
