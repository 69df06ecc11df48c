package agent

import (
	"log/slog"
	"testing"

	"flock.fritzlab.net/flock/pkg/cni"
)

// Without a collector, to measure a call allocates nothing.
func TestStopwatchIsFree(t *testing.T) {
	w := newStopwatch(Config{NodeName: "node1", Log: slog.New(slog.DiscardHandler)})
	call := &cni.Call{Command: cni.CommandAdd, ContainerID: "a"}
	measure := func() (err error) {
		timing := w.start(call)
		defer timing.end(&err)
		for _, p := range addPhases {
			timing.enter(p)
		}
		return nil
	}
	if n := testing.AllocsPerRun(1000, func() { _ = measure() }); n != 0 {
		t.Errorf("%v allocations a call, want none", n)
	}
}

// BenchmarkStopwatch is what it costs to measure an ADD without a collector.
func BenchmarkStopwatch(b *testing.B) {
	w := newStopwatch(Config{NodeName: "node1", Log: slog.New(slog.DiscardHandler)})
	call := &cni.Call{Command: cni.CommandAdd, ContainerID: "a"}
	b.ReportAllocs()
	for b.Loop() {
		func() (err error) {
			timing := w.start(call)
			defer timing.end(&err)
			for _, p := range addPhases {
				timing.enter(p)
			}
			return nil
		}()
	}
}
