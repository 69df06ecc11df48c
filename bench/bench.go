// Package bench measures flock in a running lab, beside baselines that are taken in
// the same run, turn by turn where that can be, so that what disturbs the machine
// disturbs both.
//
// A measurement is a Bench in All. Those that have to run on a node do so in
// OnNode, in the node's own namespaces. The package starts no lab, and what it
// changes in one it puts back.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
)

// Bench is a measurement. It may yield several results.
type Bench struct {
	// Name selects it: "cni.serial".
	Name string
	// About says in a line what is measured against what.
	About string
	// Run measures in lab l, n times.
	Run func(ctx context.Context, l *cluster.Lab, n int) ([]Result, error)
	// OnNode is what Run has run on a node by way of [OnNode].
	OnNode func(ctx context.Context, input json.RawMessage) (any, error)
}

// All are the benches, in the order in which they run. The last leaves most of a node's IPv4
// addresses in quarantine.
var All = []Bench{cniSerial, anycastFlips, anycastCrash, anycastThousand, serviceFlips, routingNodefail, routingRestart, repair, policyPacket, policyTable, policyEnforce, policyAPI, fleetCost, cniBurst}

// Figures are what n measurements came to, in a result's unit. A percentile is
// the smallest value that at least that part of all does not exceed.
type Figures struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Result is a line of bench.json.
type Result struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	Figures
	Baseline *Result `json:"baseline,omitempty"`
	Goal     *Goal   `json:"goal,omitempty"`
	// Arithmetic says how the figure was computed from others of the run.
	Arithmetic string `json:"arithmetic,omitempty"`
}

// Goal is what figures should not exceed.
type Goal struct {
	P50 float64 `json:"p50,omitempty"`
	P99 float64 `json:"p99,omitempty"`
	Max float64 `json:"max,omitempty"`
}

// goalP50 is a goal for the median; none if it is 0.
func goalP50(p50 float64) *Goal {
	if p50 == 0 {
		return nil
	}
	return &Goal{P50: p50}
}

// Milliseconds are the figures of durations.
func Milliseconds(samples []time.Duration) Figures {
	if len(samples) == 0 {
		return Figures{}
	}
	s := slices.Sorted(slices.Values(samples))
	at := func(part float64) float64 { return float64(percentile(s, part).Microseconds()) / 1000 }
	return Figures{N: len(s), P50: at(0.50), P99: at(0.99), Max: at(1)}
}

// percentile is the smallest of the values, which are in order, that at least that part
// of all does not exceed.
func percentile[T any](sorted []T, part float64) T {
	return sorted[int(math.Ceil(part*float64(len(sorted))))-1]
}

// Counts are the figures of numbers.
func Counts(samples []int) Figures {
	asTime := make([]time.Duration, len(samples))
	for i, n := range samples {
		asTime[i] = time.Duration(n) * time.Millisecond
	}
	return Milliseconds(asTime)
}

// Run runs the benches that are named, all if none is, prints a table of what
// they found and replaces the file out by it, a JSON object a line. A bench that
// fails costs the others nothing: what was measured is printed and written, and
// the error names those that failed.
func Run(ctx context.Context, l *cluster.Lab, n int, names []string, table io.Writer, out string) error {
	benches, err := named(names)
	if err != nil {
		return err
	}
	var results []Result
	var failed []error
	for _, b := range benches {
		if ctx.Err() != nil {
			failed = append(failed, fmt.Errorf("%s: %w", b.Name, context.Cause(ctx)))
			continue
		}
		fmt.Fprintf(table, "%s: %s\n", b.Name, b.About)
		r, err := b.Run(ctx, l, n)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", b.Name, err))
		}
		results = append(results, r...)
	}
	if len(results) > 0 {
		fmt.Fprintln(table)
		failed = append(failed, writeTable(table, results), writeFile(out, results))
	}
	return errors.Join(failed...)
}

func named(names []string) ([]Bench, error) {
	if len(names) == 0 {
		return All, nil
	}
	var known []string
	for _, b := range All {
		known = append(known, b.Name)
	}
	var benches []Bench
	for _, name := range names {
		i := slices.Index(known, name)
		if i < 0 {
			return nil, fmt.Errorf("bench %q: want one of %s", name, strings.Join(known, ", "))
		}
		benches = append(benches, All[i])
	}
	return benches, nil
}

func writeTable(w io.Writer, results []Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tn\tp50\tp99\tmax\tunit\t")
	for _, r := range results {
		row(t, r.Name, r)
		if b := r.Baseline; b != nil {
			row(t, "against "+b.Name, *b)
		}
		if r.Goal != nil {
			fmt.Fprintf(t, "goal\t\t%s\t%s\t%s\t%s\t\n", figure(r.Goal.P50), figure(r.Goal.P99), figure(r.Goal.Max), r.Unit)
		}
		if r.Arithmetic != "" {
			fmt.Fprintf(t, "%s\t\t\t\t\t\t\n", r.Arithmetic)
		}
	}
	return t.Flush()
}

// figure is empty for a goal that there is not.
func figure(v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%.3f", v)
}

func row(w io.Writer, name string, r Result) {
	fmt.Fprintf(w, "%s\t%d\t%.3f\t%.3f\t%.3f\t%s\t\n", name, r.N, r.P50, r.P99, r.Max, r.Unit)
}

func writeFile(name string, results []Result) error {
	var content strings.Builder
	enc := json.NewEncoder(&content)
	enc.SetEscapeHTML(false)
	for _, r := range results {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	temp := name + ".new"
	if err := os.WriteFile(temp, []byte(content.String()), 0o644); err != nil {
		return err
	}
	return os.Rename(temp, name)
}

// OnNode runs the named benchmark's OnNode on a node of the lab, in another process
// of this program, and decodes its result into output. That process's main calls
// [ServeNode].
func OnNode(ctx context.Context, l *cluster.Lab, node, bench string, input, output any) error {
	in, err := json.Marshal(input)
	if err != nil {
		return err
	}
	cmd, err := l.Command(node, "/proc/self/exe", NodeCommand, bench)
	if err != nil {
		return err
	}
	var out strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(string(in)), &out, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	// A signal that it can act on, so that it can take away what it made.
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(os.Interrupt) })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return errors.Join(context.Cause(ctx), fmt.Errorf("on %s: %w", node, err))
	}
	return json.Unmarshal([]byte(out.String()), output)
}

// NodeCommand is the program's first argument where it is to call [ServeNode].
const NodeCommand = "on-node"

// ServeNode runs the named bench's OnNode with the input on in.
func ServeNode(ctx context.Context, name string, in io.Reader, out io.Writer) error {
	benches, err := named([]string{name})
	if err != nil {
		return err
	}
	input, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	output, err := benches[0].OnNode(ctx, input)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(output)
}
