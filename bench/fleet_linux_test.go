package bench

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// A server that does not start says why, and leaves nothing.
func TestAPIServerThatEnds(t *testing.T) {
	programs, temp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temp)
	if err := os.WriteFile(filepath.Join(programs, "kube-apiserver"), []byte("#!/bin/sh\necho unknown flag >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err := measureFleet(t.Context(), fullFleet, fleetPlaces{programs: programs})
	if err == nil || !strings.Contains(err.Error(), "kube-apiserver has ended: exit status 3") || !strings.Contains(err.Error(), "unknown flag") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took >= fleetPatience {
		t.Errorf("it took %s", took)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	_, err = measureFleet(t.Context(), fullFleet, fleetPlaces{programs: temp})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the program: %v", err)
	}
}

func TestAwaitFleet(t *testing.T) {
	t.Parallel()
	f := &fleetRun{progress: make(chan struct{}, 1), reports: map[int64]map[string]time.Duration{}}
	f.fail(errors.New("refused"))
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("etcd has ended"))
	err := f.await(ctx, "all", func() bool { return false })
	if want := "waited for all: etcd has ended\nrefused"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	f.nodes = 2
	f.timeReports()
	f.report("a", 1)
	first := f.reports[1]["a"]
	f.report("a", 1)
	f.report("b", 1)
	var took []time.Duration
	if err := f.awaitReports(t.Context(), 1, &took); err != nil || len(took) != 2 || f.reports[1]["a"] != first {
		t.Errorf("%v, %v, %v: want the first report of each", took, f.reports, err)
	}
}

// What goes over a connection, and what is asked, is counted.
func TestTraffic(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("x"), 5000)) }))
	defer server.Close()
	var counted traffic
	client := &http.Client{Transport: countedRequests{&http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return countedConn{conn, &counted.bytes}, err
	}}, &counted}}
	before := counted.now()
	for _, method := range []string{http.MethodGet, http.MethodGet, http.MethodPatch} {
		r, err := http.NewRequestWithContext(t.Context(), method, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	if got := counted.now().since(before); got.reads != 2 || got.writes != 1 || got.bytes < 15000 || got.bytes > 20000 {
		t.Errorf("got %+v", got)
	}
}

func TestCPUOf(t *testing.T) {
	t.Parallel()
	got, err := cpuOf("42 (a (strange) name) S 1 42 42 0 -1 4194560 1 0 0 0 150 25 0 0 20 0 9 0 100 0 0")
	if err != nil || got != 1750*time.Millisecond {
		t.Errorf("got %s, %v", got, err)
	}
	for _, broken := range []string{"", "42 (a) S 1", "42 (a) S 1 42 42 0 -1 4194560 1 0 0 0 x 25 0"} {
		if _, err := cpuOf(broken); err == nil {
			t.Errorf("%q: no error", broken)
		}
	}
}

func TestResidentMiB(t *testing.T) {
	t.Parallel()
	if got, err := residentMiB(os.Getpid()); err != nil || got < 1 {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := residentMiB(999999999); !errors.Is(err, os.ErrNotExist) { // more than the kernel gives
		t.Errorf("a process that cannot be: %v", err)
	}
}

// TestListedClaims: an agent has its claims when the API server has sent them, and not when
// that failed.
func TestListedClaims(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 1 {
			http.Error(w, "away", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"kind":"AddressClaimList","apiVersion":"flock.fritzlab.net/v1alpha1","items":[]}`)
	}))
	defer server.Close()
	h, err := newHollow("hollow0", &rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		_, err := h.listed.CachedClaimsOf(t.Context(), "hollow0")
		done := false
		select {
		case <-h.listed.done:
			done = true
		default:
		}
		if want := i > 0; done != want || (err == nil) != want {
			t.Errorf("list %d: %v, done %v", i, err, done)
		}
	}
}

// TestLess: what passes in as much time is taken away, of everything.
func TestLess(t *testing.T) {
	t.Parallel()
	all := func(n int64) usage { return usage{n, 2 * n, 3 * n} }
	got := cost{took: 30 * time.Second, cpu: 9 * time.Second, agents: all(10), control: all(20), others: all(30)}.
		less(cost{took: time.Minute, cpu: 8 * time.Second, agents: all(2), control: all(4), others: all(6)})
	if want := (cost{took: 30 * time.Second, cpu: 5 * time.Second, agents: all(9), control: all(18), others: all(27)}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if c := (cost{took: time.Second, cpu: time.Second}); c.less(cost{}) != c {
		t.Error("something is taken away where nothing was measured")
	}
}

func TestFleetFigures(t *testing.T) {
	t.Parallel()
	m := fleetFigures{fleetSize: fleetSize{nodes: 1000, changes: 20, survivors: 100}, agentRSS: []float64{30, 40}, naiveRSS: []float64{60}}
	m.flock.start = cost{cpu: 20 * time.Second, agents: usage{reads: 12000, writes: 2000, bytes: 32e6}}
	m.naive.start = cost{cpu: 10 * time.Second, others: usage{reads: 5000, bytes: 96e6}}
	// What passes anyhow is taken away: in the time of the namespace's changes half of it.
	m.naive.idle = cost{took: time.Minute, cpu: 2 * time.Second, others: usage{reads: 1000, bytes: 2e6}}
	m.naive.namespace = cost{took: 30 * time.Second, cpu: 3 * time.Second, others: usage{bytes: 9e6}}
	m.flock.idle = cost{took: time.Minute, cpu: 4 * time.Second, agents: usage{bytes: 1e6}}
	m.flock.namespace = cost{took: 30 * time.Second, cpu: 2200 * time.Millisecond, agents: usage{bytes: 14e5}}
	m.overlaps = timedCost{cost: cost{took: 75 * time.Second, cpu: 25 * time.Second, agents: usage{bytes: 10125e3}}, took: []time.Duration{3 * time.Second}}
	m.lists = cost{took: 15 * time.Second, cpu: 5 * time.Second, others: usage{bytes: 4e6}}
	m.waves.cost = cost{agents: usage{writes: 3000}, control: usage{writes: 1100}}
	m.quiet = cost{took: 2 * time.Minute, cpu: 6 * time.Second, agents: usage{reads: 2400}, others: usage{reads: 300}}
	got := map[string]Result{}
	for _, r := range m.results() {
		got[r.Name] = r
	}
	for name, want := range map[string][2]float64{ // and the baseline
		"fleet.start.cpu": {20, 10}, "fleet.start.received": {32, 96}, "fleet.start.reads": {12, 5}, "fleet.start.writes": {2, 0},
		"fleet.overlaps": {3000, 0}, "fleet.overlaps.cpu": {20, 200}, "fleet.overlaps.received": {8.875, 200},
		"fleet.namespace.received": {45, 400}, "fleet.namespace.cpu": {10, 100}, "fleet.template.writes": {4.1, 0}, "fleet.steady.reads": {1.2, 1.5},
		"fleet.steady.cpu": {3, 0}, "fleet.agent.rss": {30, 60},
		"fleet.5000.start.cpu": {100, 0}, "fleet.5000.overlaps.received": {44.375, 0}, "fleet.5000.overlaps.cpu": {100, 0}, "fleet.5000.namespace.received": {0.225, 2},
		"fleet.5000.steady.reads": {100, 0}, "fleet.5000.steady.cpu": {25, 0},
	} {
		r, base := got[name], 0.0
		if r.Baseline != nil {
			base = r.Baseline.P50
		}
		if d := r.P50 - want[0]; d*d > 1e-12 || base != want[1] {
			t.Errorf("%s: %v against %v, want %v", name, r.P50, base, want)
		}
	}
	if got, want := got["fleet.5000.start.cpu"].Arithmetic, "5000 × 20.000 ms / 1000 = 100.000 s"; got != want {
		t.Errorf("arithmetic %q, want %q", got, want)
	}
	var table strings.Builder
	if err := writeTable(&table, m.results()); err != nil || !strings.Contains(table.String(), "5000 × 8.875 KB / 1000 = 44.375 MB") {
		t.Errorf("%v\n%s", err, table.String())
	}
	if r := m.results(); r[0].Goal == nil {
		t.Errorf("%s has no goal", r[0].Name)
	}
}
