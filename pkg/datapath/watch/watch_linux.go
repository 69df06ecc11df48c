package watch

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// Config is what a Watcher needs.
type Config struct {
	Features []datapath.Feature
	// OnRepair is called once for each burst of repairs of a feature, about a second after its
	// begin. It must not wait. Optional.
	OnRepair func(Burst)
	// OnStatus is called when Status has changed. It must not wait. Optional.
	OnStatus func()
	Log      *slog.Logger
}

// Burst is what was repaired of a feature's objects within about a second.
type Burst struct {
	Feature string
	Repairs []datapath.Repair
	// By are the processes that made changes meanwhile, as far as the kernel names them: "ip (pid
	// 4711)". It may be empty.
	By []string
}

// Status is what is wrong with the kernel's state now.
type Status struct {
	// Faults are what could not be repaired at the last try, and what another program keeps
	// changing: sentences for people. Empty: the kernel is what the features want it to be.
	Faults []string
	// Notes are what may do harm, but does not yet: sentences for people.
	Notes []string
	// Repairs are counted since the agent's start.
	Repairs map[kernel.Kind]uint64
}

// Watcher calls the features' Sync when the kernel may differ from what they want.
type Watcher struct {
	cfg     Config
	runners []*runner
	events  events

	mu      sync.Mutex // guards all below
	repairs map[kernel.Kind]uint64
	faults  map[string][]string // by feature
	notes   map[string][]string // by feature
	bursts  map[string]*Burst   // by feature; they are reported in a moment
}

// burstTime is for how long repairs are collected before they are reported together.
const burstTime = time.Second

// foreignRest is the least time between two looks of a feature that looks at other programs'
// objects: they change more often than flock's, and nothing is repaired by it.
const foreignRest = time.Second

func newWatcher(c Config) *Watcher {
	if c.OnRepair == nil {
		c.OnRepair = func(Burst) {}
	}
	if c.OnStatus == nil {
		c.OnStatus = func() {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{cfg: c, repairs: map[kernel.Kind]uint64{}, faults: map[string][]string{}, notes: map[string][]string{}, bursts: map[string]*Burst{}}
	for _, f := range c.Features {
		r := &runner{feature: f, wake: make(chan struct{}, 1), done: w.note, strikes: map[string]*strike{}, lookEvery: lookEvery, fightAfter: fightAfter, cpuTime: cpuTime}
		if slices.Contains(f.Kinds(), kernel.Foreign) {
			r.minRest = foreignRest
		}
		w.runners = append(w.runners, r)
	}
	return w
}

// Status is what is wrong now, and what was repaired so far.
func (w *Watcher) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := Status{Repairs: map[kernel.Kind]uint64{}}
	for _, r := range w.runners {
		s.Faults = append(s.Faults, w.faults[r.feature.Name()]...)
		s.Notes = append(s.Notes, w.notes[r.feature.Name()]...)
	}
	for _, k := range kernel.Kinds {
		s.Repairs[k] = w.repairs[k]
	}
	return s
}

// changed wakes the features that have objects of a kind.
func (w *Watcher) changed(kind kernel.Kind, by string) {
	for _, r := range w.runners {
		if slices.Contains(r.feature.Kinds(), kind) {
			r.notify(by)
		}
	}
}

// result is what came of one Sync.
type result struct {
	feature string
	repairs []datapath.Repair
	fresh   []datapath.Repair // those that are not part of a fight
	by      []string
	faults  []string
	notes   []string
}

// noter is a feature that has something to say which is no error.
type noter interface{ Notes() []string }

// note takes a result in.
func (w *Watcher) note(r result) {
	w.mu.Lock()
	for _, repair := range r.repairs {
		w.repairs[repair.Kind]++
	}
	if len(r.fresh) > 0 {
		b := w.bursts[r.feature]
		if b == nil {
			b = &Burst{Feature: r.feature}
			w.bursts[r.feature] = b
			time.AfterFunc(burstTime, func() { w.reportBurst(r.feature) })
		}
		b.Repairs = append(b.Repairs, r.fresh...)
		for _, by := range r.by {
			if !slices.Contains(b.By, by) {
				b.By = append(b.By, by)
			}
		}
	}
	before, noted := w.faults[r.feature], w.notes[r.feature]
	w.faults[r.feature], w.notes[r.feature] = r.faults, r.notes
	w.mu.Unlock()
	for _, note := range r.notes {
		if !slices.Contains(noted, note) {
			w.cfg.Log.Warn("found a risk in the kernel's state", "feature", r.feature, "finding", note)
		}
	}
	if slices.Equal(before, r.faults) {
		if !slices.Equal(noted, r.notes) {
			w.cfg.OnStatus()
		}
		return
	}
	for _, fault := range r.faults {
		if !slices.Contains(before, fault) {
			w.cfg.Log.Error("cannot restore the kernel's state, will retry", "feature", r.feature, "error", fault)
		}
	}
	if len(r.faults) == 0 {
		w.cfg.Log.Info("the kernel's state is restored", "feature", r.feature)
	}
	w.cfg.OnStatus()
}

func (w *Watcher) reportBurst(feature string) {
	w.mu.Lock()
	b := w.bursts[feature]
	delete(w.bursts, feature)
	w.mu.Unlock()
	w.cfg.Log.Warn("repaired kernel state that another program changed",
		"feature", feature, "repairs", len(b.Repairs), "first", b.Repairs[0].String(), "by", b.By)
	w.cfg.OnRepair(*b)
}
