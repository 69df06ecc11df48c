//go:build apiserver

package bench

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestFleet takes all steps of the benchmark with a few agents, for a moment.
func TestFleet(t *testing.T) {
	server, err := exec.LookPath("kube-apiserver")
	if err != nil {
		t.Fatalf("%v: put etcd, kube-apiserver and kubectl into PATH", err)
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin, "./cmd/flock-agent")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	size := fleetSize{nodes: 5, namespaces: 3, pods: 5, claims: 2, followers: 2, changes: 2, survivors: 2, idle: time.Second, quiet: 3 * time.Second}
	results, err := measureFleet(t.Context(), size, fleetPlaces{filepath.Dir(server), "../deploy", bin})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Result{}
	for _, r := range results {
		got[r.Name] = r
		t.Logf("%+v against %+v", r, r.Baseline)
	}
	for name, least := range map[string]float64{
		"fleet.start": 1, "fleet.start.received": 1, "fleet.start.reads": 6, "fleet.start.writes": 2,
		"fleet.template": 1, "fleet.template.writes": 4, "fleet.agent.rss": 10, "fleet.agent.start.reads": 6,
		"fleet.5000.start.received": 1, "fleet.overlaps": 1, "fleet.overlaps.received": 0.1, "fleet.namespace.received": 0.1,
	} {
		if r := got[name]; r.P50 < least {
			t.Errorf("%s: %+v, want %v at least", name, r, least)
		}
	}
	if r := got["fleet.namespace.received"]; r.Baseline == nil || r.P50 >= r.Baseline.P50 {
		t.Errorf("a namespace's change costs agents %+v, and clients that follow all %+v", r, r.Baseline)
	}
	if r := got["fleet.failures"]; r.Max != 0 {
		t.Errorf("requests failed: %+v", r)
	}
}
