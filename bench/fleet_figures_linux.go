package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// fleetFigures are what a run has measured.
type fleetFigures struct {
	fleetSize
	flock, naive  clientCost
	overlaps      timedCost
	lists         cost
	atOnce, waves timedCost
	quiet         cost

	realStart, realQuiet usage // of the one agent that is a process
	agentRSS, naiveRSS   []float64
	failures             int // of the agents' requests
}

// clientCost is what as many clients as there are nodes have cost.
type clientCost struct {
	start     cost
	idle      cost            // of the time after it, in which nothing is done
	took      []time.Duration // each, from the start of all
	heap      float64         // of all, in this process
	namespace cost            // of all changes
}

type timedCost struct {
	cost
	took []time.Duration // of each node, from a change to its report
}

// largeFleet is the number of nodes for which figures are extrapolated.
const largeFleet = 5000

// results are the figures. Those of a node are the mean of all nodes.
func (m fleetFigures) results() []Result {
	nodes, changes := float64(m.nodes), float64(m.changes)
	survivors, minutes := float64(m.survivors), m.quiet.took.Minutes()
	overlaps, lists := m.overlaps.less(m.flock.idle), m.lists.less(m.flock.idle)
	namespace, naiveNamespace := m.flock.namespace.less(m.flock.idle), m.naive.namespace.less(m.naive.idle)
	cpu := func(c cost, by float64) float64 { return c.cpu.Seconds() * 1000 / by }
	kilobytes := func(u usage, by float64) float64 { return float64(u.bytes) / 1000 / by }
	reads := func(u usage, by float64) float64 { return float64(u.reads) / by }
	writes := func(u usage, by float64) float64 { return float64(u.writes) / by }
	both := usage{writes: m.waves.agents.writes + m.waves.control.writes}
	atOnce := usage{writes: m.atOnce.agents.writes + m.atOnce.control.writes}

	all := []Result{
		{Name: "fleet.start", Unit: "ms", Figures: Milliseconds(m.flock.took), Goal: &Goal{Max: 60000},
			Baseline: &Result{Name: "naive.start", Unit: "ms", Figures: Milliseconds(m.naive.took)}},
		m.mean("fleet.start.cpu", "ms", cpu(m.flock.start, nodes), 44).against("naive.start.cpu", cpu(m.naive.start, nodes)),
		m.mean("fleet.start.received", "KB", kilobytes(m.flock.start.agents, nodes), 40).against("naive.start.received", kilobytes(m.naive.start.others, nodes)),
		m.mean("fleet.start.reads", "requests", reads(m.flock.start.agents, nodes), 30).against("naive.start.reads", reads(m.naive.start.others, nodes)),
		m.mean("fleet.start.writes", "requests", writes(m.flock.start.agents, nodes), 3),
		{Name: "fleet.overlaps", Unit: "ms", Figures: Milliseconds(m.overlaps.took)},
		m.mean("fleet.overlaps.cpu", "ms", cpu(overlaps, nodes), 20).against("lists.cpu", cpu(lists, changes)),
		m.mean("fleet.overlaps.received", "KB", kilobytes(overlaps.agents, nodes), 20).against("lists.received", kilobytes(lists.others, changes)),
		m.mean("fleet.namespace.cpu", "ms", cpu(namespace, changes), 0).against("naive.namespace.cpu", cpu(naiveNamespace, changes)),
		m.mean("fleet.namespace.received", "KB", kilobytes(namespace.agents, changes), 60).against("naive.namespace.received", kilobytes(naiveNamespace.others, changes)),
		{Name: "fleet.template", Unit: "ms", Figures: Milliseconds(m.waves.took),
			Baseline: &Result{Name: "at-once.template", Unit: "ms", Figures: Milliseconds(m.atOnce.took)}},
		m.mean("fleet.template.cpu", "ms", cpu(m.waves.cost, nodes), 44).against("at-once.template.cpu", cpu(m.atOnce.cost, nodes)),
		m.mean("fleet.template.received", "KB", kilobytes(m.waves.agents, nodes), 60).against("at-once.template.received", kilobytes(m.atOnce.agents, nodes)),
		m.mean("fleet.template.writes", "requests", writes(both, nodes), 5).against("at-once.template.writes", writes(atOnce, nodes)),
		m.mean("fleet.steady.reads", "a minute", reads(m.quiet.agents, nodes*minutes), 2).against("naive.steady.reads", reads(m.quiet.others, survivors*minutes)),
		m.mean("fleet.steady.writes", "a minute", writes(m.quiet.agents, nodes*minutes), 0.1),
		m.mean("fleet.steady.received", "KB a minute", kilobytes(m.quiet.agents, nodes*minutes), 5).against("naive.steady.received", kilobytes(m.quiet.others, survivors*minutes)),
		m.mean("fleet.steady.cpu", "ms a minute", cpu(m.quiet, nodes*minutes), 10),
		m.mean("fleet.heap", "KiB", m.flock.heap/1024/nodes, 0).against("naive.heap", m.naive.heap/1024/nodes),
		{Name: "fleet.agent.rss", Unit: "MiB", Figures: figuresOf(m.agentRSS), Goal: &Goal{Max: 64},
			Baseline: &Result{Name: "naive.rss", Unit: "MiB", Figures: figuresOf(m.naiveRSS)}},
		single("fleet.agent.start.reads", "requests", float64(m.realStart.reads)).hollow(m.nodes, reads(m.flock.start.agents, nodes)),
		single("fleet.agent.start.writes", "requests", float64(m.realStart.writes)).hollow(m.nodes, writes(m.flock.start.agents, nodes)),
		single("fleet.agent.steady.reads", "a minute", reads(m.realQuiet, minutes)).hollow(m.nodes, reads(m.quiet.agents, nodes*minutes)),
		single("fleet.agent.steady.writes", "a minute", writes(m.realQuiet, minutes)).hollow(m.nodes, writes(m.quiet.agents, nodes*minutes)),
		{Name: "fleet.failures", Unit: "requests", Figures: Counts([]int{m.failures})},
	}
	return append(all, m.extrapolated()...)
}

// extrapolated are figures for more nodes. What a node costs is taken to stay the same.
func (m fleetFigures) extrapolated() []Result {
	nodes, changes, minutes := float64(m.nodes), float64(m.changes), m.quiet.took.Minutes()
	each := func(name, unit string, of, divided float64, shown string) Result {
		value := largeFleet * of / divided
		r := single(fmt.Sprintf("fleet.%d.%s", largeFleet, name), unit, value)
		r.Arithmetic = fmt.Sprintf("%d × %s = %.3f %s", largeFleet, fmt.Sprintf(shown, of), value, unit)
		return r
	}
	const ms, kB = "%.3f ms / 1000", "%.3f KB / 1000"
	overlaps := m.overlaps.less(m.flock.idle)
	namespace := each("namespace.received", "MB", float64(m.flock.namespace.less(m.flock.idle).agents.bytes)/1000/changes/nodes, 1000, kB)
	base := each("namespace.received", "MB", float64(m.naive.namespace.less(m.naive.idle).others.bytes)/1000/changes/nodes, 1000, kB)
	base.Name = fmt.Sprintf("naive.%d.namespace.received", largeFleet)
	namespace.Baseline = &base
	perMinute := func(v float64) float64 { return v / nodes / minutes }
	return []Result{
		each("start.cpu", "s", m.flock.start.cpu.Seconds()*1000/nodes, 1000, ms),
		each("start.received", "MB", float64(m.flock.start.agents.bytes)/1000/nodes, 1000, kB),
		each("overlaps.cpu", "s", overlaps.cpu.Seconds()*1000/nodes, 1000, ms),
		each("overlaps.received", "MB", float64(overlaps.agents.bytes)/1000/nodes, 1000, kB),
		namespace,
		each("template.cpu", "s", m.waves.cpu.Seconds()*1000/nodes, 1000, ms),
		each("template.received", "MB", float64(m.waves.agents.bytes)/1000/nodes, 1000, kB),
		each("steady.reads", "a second", perMinute(float64(m.quiet.agents.reads)), 60, "%.3f / 60 s"),
		each("steady.writes", "a second", perMinute(float64(m.quiet.agents.writes)), 60, "%.3f / 60 s"),
		each("steady.cpu", "% of a processor", perMinute(m.quiet.cpu.Seconds()*1000), 600, "%.3f ms / 60,000 ms × 100"),
	}
}

// mean is one number for all nodes: the same in all columns.
func (m fleetFigures) mean(name, unit string, value, goal float64) Result {
	return Result{Name: name, Unit: unit, Figures: Figures{N: m.nodes, P50: value, P99: value, Max: value}, Goal: goalP50(goal)}
}

// single is one number.
func single(name, unit string, value float64) Result {
	return Result{Name: name, Unit: unit, Figures: Figures{N: 1, P50: value, P99: value, Max: value}}
}

// hollow gives a figure of the agent that is a process the mean of the hollow ones as baseline.
func (r Result) hollow(nodes int, value float64) Result {
	r = r.against(strings.Replace(r.Name, "fleet.agent", "fleet", 1), value)
	r.Baseline.N = nodes
	return r
}

// against gives a figure a baseline in the same unit.
func (r Result) against(name string, value float64) Result {
	r.Baseline = &Result{Name: name, Unit: r.Unit, Figures: Figures{N: r.N, P50: value, P99: value, Max: value}}
	return r
}

// figuresOf are the figures of numbers.
func figuresOf(samples []float64) Figures {
	if len(samples) == 0 {
		return Figures{}
	}
	s := slices.Sorted(slices.Values(samples))
	return Figures{N: len(s), P50: percentile(s, 0.5), P99: percentile(s, 0.99), Max: percentile(s, 1)}
}
