package bench

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
)

func TestMilliseconds(t *testing.T) {
	upTo := func(n int) (all []time.Duration) {
		for i := n; i >= 1; i-- { // not sorted
			all = append(all, time.Duration(i)*time.Millisecond)
		}
		return all
	}
	for _, tc := range []struct {
		samples []time.Duration
		want    Figures
	}{
		{nil, Figures{}},
		{upTo(1), Figures{1, 1, 1, 1}},
		{upTo(2), Figures{2, 1, 2, 2}},
		{upTo(100), Figures{100, 50, 99, 100}},
		{upTo(200), Figures{200, 100, 198, 200}},
		{[]time.Duration{1234567}, Figures{1, 1.234, 1.234, 1.234}},
	} {
		if got := Milliseconds(tc.samples); got != tc.want {
			t.Errorf("%d samples: %+v, want %+v", len(tc.samples), got, tc.want)
		}
	}
}

func TestRun(t *testing.T) {
	defer func(before []Bench) { All = before }(All)
	two := func(_ context.Context, _ *cluster.Lab, n int) ([]Result, error) {
		return []Result{
			{Name: "a.x", Unit: "ms", Figures: Figures{n, 1, 2, 3}, Baseline: &Result{Name: "b.x", Unit: "ms", Figures: Figures{n, 4, 5, 6.5}}},
			{Name: "a.y", Unit: "ms", Figures: Figures{n, 7, 8, 9}},
		}, nil
	}
	All = []Bench{{Name: "a", About: "a against b", Run: two}, {Name: "c", About: "nothing", Run: func(context.Context, *cluster.Lab, int) ([]Result, error) {
		t.Error("c was not asked for and ran")
		return nil, nil
	}}}

	file := filepath.Join(t.TempDir(), "out", "bench.json")
	var table strings.Builder
	if err := Run(t.Context(), nil, 7, []string{"a"}, &table, file); err != nil {
		t.Fatal(err)
	}
	if want := `a: a against b

               n    p50    p99    max  unit
          a.x  7  1.000  2.000  3.000    ms
  against b.x  7  4.000  5.000  6.500    ms
          a.y  7  7.000  8.000  9.000    ms
`; table.String() != want {
		t.Errorf("table:\n%s\nwant:\n%s", &table, want)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"name":"a.x","unit":"ms","n":7,"p50":1,"p99":2,"max":3,"baseline":{"name":"b.x","unit":"ms","n":7,"p50":4,"p99":5,"max":6.5}}
{"name":"a.y","unit":"ms","n":7,"p50":7,"p99":8,"max":9}
`; string(content) != want {
		t.Errorf("%s:\n%s\nwant:\n%s", file, content, want)
	}

	err = Run(t.Context(), nil, 7, []string{"d"}, &table, file)
	if err == nil || err.Error() != `bench "d": want one of a, c` {
		t.Errorf("unknown bench: %v", err)
	}
}

func TestRunKeepsWhatWasMeasured(t *testing.T) {
	defer func(before []Bench) { All = before }(All)
	result := func(name string, fails error) Bench {
		return Bench{Name: name, Run: func(context.Context, *cluster.Lab, int) ([]Result, error) {
			return []Result{{Name: name, Unit: "ms"}}, fails
		}}
	}
	broken := errors.New("no lab")
	All = []Bench{result("a", nil), result("b", broken), {Name: "c", Run: func(context.Context, *cluster.Lab, int) ([]Result, error) { return nil, broken }}, result("d", nil)}
	file := filepath.Join(t.TempDir(), "bench.json")
	err := Run(t.Context(), nil, 1, nil, io.Discard, file)
	if err == nil || err.Error() != "b: no lab\nc: no lab" {
		t.Errorf("%v; want the errors of b and c", err)
	}
	content, readErr := os.ReadFile(file)
	if got := strings.Count(string(content), "\n"); readErr != nil || got != 3 {
		t.Errorf("%v; want the results of a, b and d in\n%s", readErr, content)
	}

	// What was measured before is not replaced by nothing.
	if err := Run(t.Context(), nil, 1, []string{"c"}, io.Discard, file); err == nil {
		t.Error("c failed, and there is no error")
	}
	if again, _ := os.ReadFile(file); string(again) != string(content) {
		t.Errorf("the file has become\n%s", again)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := Run(ended, nil, 1, []string{"a", "d"}, io.Discard, file); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted run: %v", err)
	}
}

func TestRunNeedsFlock(t *testing.T) {
	_, err := cniSerial.Run(t.Context(), &cluster.Lab{Settings: cluster.Settings{CNI: cluster.PTP}}, 1)
	if err == nil || !strings.Contains(err.Error(), "--cni flock") {
		t.Errorf("lab with another CNI: %v", err)
	}
}

func TestServeNode(t *testing.T) {
	defer func(before []Bench) { All = before }(All)
	All = []Bench{{Name: "a", OnNode: func(_ context.Context, in json.RawMessage) (any, error) {
		return map[string]string{"got": string(in)}, nil
	}}}
	var out strings.Builder
	if err := ServeNode(t.Context(), "a", strings.NewReader(`{"N":1}`), &out); err != nil || out.String() != `{"got":"{\"N\":1}"}`+"\n" {
		t.Errorf("%v, %s", err, &out)
	}
}
