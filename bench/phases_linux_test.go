package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// traced is a DEL in the words of the kernel: the plugin has thread 30, the agent 10 and 11.
const traced = `# tracer: nop
           bench-20      [000] .....     1.000050: sys_enter: NR 1 (1, 0, 0, 0, 0, 0)
           flock-30      [000] .....     1.000100: sched_process_exec: filename=/x/flock pid=30 old_pid=30
           flock-30      [000] .....     1.000120: sys_enter: NR 0 (0, 0, 0, 0, 0, 0)
           flock-30      [000] .....     1.000130: sys_exit: NR 0 = 80
           flock-30      [000] .....     1.000150: sys_enter: NR 42 (3, 0, 0, 0, 0, 0)
     flock agent-10      [001] .....     1.000200: f0: (0x5a2b40)
     flock agent-10      [001] .....     1.000210: sys_enter: NR 1 (5, 0, 0, 0, 0, 0)
     flock agent-11      [000] .....     1.000215: sys_enter: NR 202 (0, 0, 0, 0, 0, 0)
     flock agent-10      [001] .....     1.000220: f1: (0x5a2b50)
     flock agent-10      [001] .....     1.000230: sys_exit: NR 1 = 20
     flock agent-10      [001] .....     1.000240: f1: (0x5a2b50)
     flock agent-10      [001] .....     1.000300: sys_enter: NR 1 (7, 0, 0, 0, 0, 0)
           flock-30      [000] .....     1.000320: sys_exit: NR 0 = 5
           flock-30      [000] .....     1.000340: sched_process_exit: comm=flock pid=30 prio=120
     flock agent-10      [001] .....     1.000345: sys_exit: NR 1 = 20
     flock agent-11      [001] .....     1.000350: sys_enter: NR 1 (7, 0, 0, 0, 0, 0)
`

var tracedPhases = []phase{
	{"fork", atStart, false},
	{"plugin", atExec, false},
	{"connection", atConnect, false},
	{"parse", "parse", true},
	{"work", "work", true},
	{"answer", atWrite, false},
	{"print", atRead, false},
	{"reap", atExit, false},
}

func TestSpans(t *testing.T) {
	t.Parallel()
	got, err := spans(tracedPhases, []string{"parse", "work"}, parseTrace(traced), []int{10, 11}, time.Second, time.Second+400*time.Microsecond)
	if err != nil {
		t.Fatal(err)
	}
	µs := time.Microsecond
	// Of the agent's first write 10 µs are in the phase that begins meanwhile.
	want := []span{{100 * µs, 0}, {50 * µs, 0}, {50 * µs, 0}, {20 * µs, 10 * µs}, {80 * µs, 10 * µs}, {20 * µs, 20 * µs}, {20 * µs, 20 * µs}, {60 * µs, 55 * µs}}
	for i, p := range tracedPhases {
		if got[i] != want[i] {
			t.Errorf("%s: %v, want %v", p.name, got[i], want[i])
		}
	}

	var table strings.Builder
	if err := phasesTable(&table, "DEL", tracedPhases, [][]span{got, got}, []time.Duration{time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"DEL, n=2, in ms", "fork 0.100 0.100", "work 0.080 0.080 0.010", "the agent's phases together 0.100 0.100 0.020", "all 0.400 0.400", "all, without the trace 1.000 1.000"} {
		if !strings.Contains(squeezed(table.String()), line+"\n") {
			t.Errorf("no line %q in\n%s", line, table.String())
		}
	}
}

func squeezed(s string) string {
	var lines strings.Builder
	for line := range strings.Lines(s) {
		lines.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	}
	return lines.String()
}

func TestSpansOfATraceThatLacksAnEvent(t *testing.T) {
	t.Parallel()
	without := strings.ReplaceAll(traced, "NR 42", "NR 43")
	_, err := spans(tracedPhases, []string{"parse", "work"}, parseTrace(without), []int{10, 11}, time.Second, time.Second+400*time.Microsecond)
	if want := `phase "plugin": the trace does not show its end, connect`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// called has no check of its stack: one that was asked to give its thread away there, as
// happens on a busy machine, begins again at its entry and would be seen twice.
//
//go:noinline
//go:nosplit
func called() int { return os.Getpid() }

// The tracer sees this program: the call of a function, and the system call in it.
func TestTracer(t *testing.T) {
	const function = "flock.fritzlab.net/flock/bench.called"
	tr, err := newTracer()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		group := tr.group
		if err := tr.close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadFile("/sys/kernel/tracing/uprobe_events"); err == nil && strings.Contains(string(left), group) {
			t.Errorf("probes are left:\n%s", left)
		}
	}()
	if err := errors.Join(tr.only(os.Getpid()), tr.probe("/proc/self/exe", []string{function}), tr.see("raw_syscalls")); err != nil {
		t.Fatal(err)
	}
	if err := tr.record(); err != nil {
		t.Fatal(err)
	}
	before := time.Duration(monotonic())
	called()
	after := time.Duration(monotonic())
	events, err := tr.take()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, e := range events {
		if e.name == "f0" && e.at >= before.Truncate(time.Microsecond) && e.at <= after+time.Microsecond {
			seen++
		}
	}
	if seen != 1 {
		t.Errorf("the call was seen %d times among %d events", seen, len(events))
	}
}

// What a tracer that was killed has left is removed by the next one; what a living process has
// is not, nor what others have.
func TestTracerOfADeadProcess(t *testing.T) {
	sh := exec.Command("true")
	if err := sh.Run(); err != nil {
		t.Fatal(err)
	}
	dead := sh.Process.Pid // it has been waited for
	killed, err := newTracer()
	if err != nil {
		t.Fatal(err)
	}
	killed.group = fmt.Sprintf(tracerGroup, dead, 1)
	if err := os.Remove(killed.instance); err != nil {
		t.Fatal(err)
	}
	killed.instance = filepath.Join(killed.root, "instances", killed.group)
	foreign := filepath.Join(killed.root, "instances", "flock_other_"+strconv.Itoa(dead))
	mount := filepath.Join(os.TempDir(), fmt.Sprintf(tracerMount, dead)+"test")
	defer func() {
		if err := errors.Join(os.Remove(foreign), killed.close(), notThere(os.Remove(mount))); err != nil {
			t.Error(err)
		}
	}()
	for _, dir := range []string{killed.instance, foreign, mount} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(unix.Mount("tracefs", mount, "tracefs", 0, ""), killed.probe("/proc/self/exe", []string{"flock.fritzlab.net/flock/bench.called"})); err != nil {
		t.Fatal(err)
	}
	living, err := newTracer()
	if err != nil {
		t.Fatal(err)
	}
	next, err := newTracer()
	if err != nil {
		t.Fatal(err)
	}
	probes, err := next.probes()
	if err != nil {
		t.Error(err)
	}
	if slices.ContainsFunc(probes, func(p string) bool { return strings.HasPrefix(p, killed.group+"/") }) {
		t.Errorf("its probes are left: %q", probes)
	}
	for path, want := range map[string]bool{killed.instance: false, mount: false, living.instance: true, foreign: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v; it is to be there: %t", path, err, want)
		}
	}
	if err := errors.Join(next.close(), living.close()); err != nil {
		t.Error(err)
	}
}

// A name that is not quite a tracer's is none of a process.
func TestOfDeadProcess(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"flock_bench_", "flock_bench_x_1", "flock_bench_12", "flock_bench__", "other_999999999_1", fmt.Sprintf(tracerGroup, os.Getpid(), 1)} {
		if ofDeadProcess(tracerGroup, name) {
			t.Errorf("%s is of a dead process", name)
		}
	}
	if !ofDeadProcess(tracerGroup, fmt.Sprintf(tracerGroup, 999999999, 1)) { // more than the kernel gives
		t.Error("a process that cannot be is alive")
	}
}

func TestProbeOfAnotherProgram(t *testing.T) {
	t.Parallel()
	for program, want := range map[string]string{"/bin/true": "want a program of Go", "/proc/self/exe": "it has no function none"} {
		if err := new(tracer).probe(program, []string{"none"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", program, err, want)
		}
	}
}

func TestTraceThatLostEvents(t *testing.T) {
	t.Parallel()
	tr := &tracer{instance: t.TempDir()}
	if err := os.WriteFile(filepath.Join(tr.instance, "trace"), []byte("CPU:1 [LOST 12 EVENTS]\n"+traced), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.take(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of what is no instance of tracefs: %v", err)
	}
	if err := os.WriteFile(filepath.Join(tr.instance, "tracing_on"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.take(); err == nil || !strings.Contains(err.Error(), "lost events") {
		t.Errorf("got %v", err)
	}
}
