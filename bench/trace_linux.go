package bench

import (
	"debug/elf"
	"debug/gosym"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A tracer records what the kernel sees of processes: their system calls, the programs that
// they execute, and calls of functions of one program. It uses tracefs, in an instance of
// its own, so that other tracers are not disturbed.
type tracer struct {
	root     string // of tracefs
	mounted  bool   // by this tracer
	instance string
	group    string // of the probes
}

// traceEvent is one line of a trace.
type traceEvent struct {
	thread int
	at     time.Duration // of the clock of monotonic
	name   string        // of the kernel's event, or the function of a probe
	text   string
}

// programs are the kernel's events of a program's begin and end.
var programs = []string{"sched/sched_process_exec", "sched/sched_process_exit"}

// What a tracer makes is named after its process, so that a later one can tell what is left of
// one that was killed.
const (
	tracerGroup = "flock_bench_%d_%d"
	tracerMount = "flock-bench-tracefs-%d-"
)

// newTracer makes a tracer that sees nothing yet. It removes what tracers of processes that
// have ended left.
func newTracer() (_ *tracer, err error) {
	t := &tracer{root: "/sys/kernel/tracing", group: fmt.Sprintf(tracerGroup, os.Getpid(), time.Now().UnixNano())}
	if err := removeDeadMounts(os.TempDir()); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(t.root, "trace")); err != nil {
		if t.root, err = os.MkdirTemp("", fmt.Sprintf(tracerMount, os.Getpid())); err != nil {
			return nil, err
		}
		if err := unix.Mount("tracefs", t.root, "tracefs", 0, ""); err != nil {
			return nil, errors.Join(fmt.Errorf("mount tracefs (CAP_SYS_ADMIN and CONFIG_FTRACE are needed): %w", err), os.Remove(t.root))
		}
		t.mounted = true
	}
	t.instance = filepath.Join(t.root, "instances", t.group)
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if err := removeDeadGroups(t.root); err != nil {
		return nil, err
	}
	if err := os.Mkdir(t.instance, 0o700); err != nil {
		return nil, err
	}
	for _, setting := range [][2]string{
		{"tracing_on", "0"}, {"trace_clock", "mono"}, {"buffer_size_kb", "4096"}, {"options/event-fork", "1"},
	} {
		if err := os.WriteFile(filepath.Join(t.instance, setting[0]), []byte(setting[1]), 0); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// probe attaches to the program at path a probe for each function, which are named as the
// Go linker names them.
func (t *tracer) probe(path string, functions []string) error {
	offsets, err := functionOffsets(path, functions)
	if err != nil {
		return err
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	for i, offset := range offsets {
		if err := t.append(filepath.Join(t.root, "uprobe_events"), fmt.Sprintf("p:%s/f%d %s:%#x\n", t.group, i, path, offset)); err != nil {
			return fmt.Errorf("probe of %s (CONFIG_UPROBE_EVENTS is needed): %w", functions[i], err)
		}
	}
	return t.see(t.group)
}

// see has it see the events from now on. Nothing is recorded before record.
func (t *tracer) see(events ...string) error {
	for _, event := range events {
		if err := os.WriteFile(filepath.Join(t.instance, "events", event, "enable"), []byte("1"), 0); err != nil {
			return err
		}
	}
	return nil
}

// only has it see the processes and those that they start, and no others.
func (t *tracer) only(processes ...int) error {
	for _, p := range processes {
		threads, err := threadsOf(p)
		if err != nil {
			return err
		}
		for _, thread := range threads {
			// One that has ended meanwhile is none.
			if err := t.append(filepath.Join(t.instance, "set_event_pid"), strconv.Itoa(thread)); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// record forgets what was recorded and records from now on.
func (t *tracer) record() error {
	return errors.Join(os.Truncate(filepath.Join(t.instance, "trace"), 0), t.on("1"))
}

// take stops recording and returns what was recorded. A process that reads its own trace
// while that grows comes to no end.
func (t *tracer) take() ([]traceEvent, error) {
	if err := t.on("0"); err != nil {
		return nil, err
	}
	content, err := os.ReadFile(filepath.Join(t.instance, "trace"))
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(content), "LOST") {
		return nil, errors.New("the trace has lost events: too much happened at once")
	}
	return parseTrace(string(content)), nil
}

func (t *tracer) on(value string) error {
	f, err := os.OpenFile(filepath.Join(t.instance, "tracing_on"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (t *tracer) close() error {
	errs := []error{t.removeGroup(t.group)}
	if t.mounted {
		errs = append(errs, unix.Unmount(t.root, unix.MNT_DETACH), os.Remove(t.root))
	}
	return errors.Join(errs...)
}

// removeGroup removes an instance and its probes.
func (t *tracer) removeGroup(group string) error {
	// A probe that an instance uses cannot be removed before.
	errs := []error{notThere(os.Remove(filepath.Join(t.root, "instances", group)))}
	probes, err := t.probes()
	errs = append(errs, err)
	for _, probe := range probes {
		if strings.HasPrefix(probe, group+"/") {
			errs = append(errs, t.append(filepath.Join(t.root, "uprobe_events"), "-:"+probe+"\n"))
		}
	}
	return errors.Join(errs...)
}

// probes are all that there are, by group and name.
func (t *tracer) probes() (names []string, err error) {
	events, err := os.ReadFile(filepath.Join(t.root, "uprobe_events"))
	for line := range strings.Lines(string(events)) {
		if fields := strings.Fields(line); len(fields) > 0 {
			names = append(names, strings.TrimPrefix(fields[0], "p:"))
		}
	}
	return names, err
}

// removeDeadGroups removes the instances and the probes of processes that have ended.
func removeDeadGroups(root string) error {
	t := &tracer{root: root}
	instances, err := os.ReadDir(filepath.Join(root, "instances"))
	if err != nil {
		return err
	}
	groups, err := t.probes()
	if err != nil {
		return err
	}
	for _, i := range instances {
		groups = append(groups, i.Name())
	}
	var errs []error
	done := map[string]bool{}
	for _, group := range groups {
		group, _, _ = strings.Cut(group, "/")
		if ofDeadProcess(tracerGroup, group) && !done[group] {
			done[group] = true
			errs = append(errs, t.removeGroup(group))
		}
	}
	return errors.Join(errs...)
}

// removeDeadMounts takes away the mounts of processes that have ended, in directory dir.
func removeDeadMounts(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !ofDeadProcess(tracerMount, e.Name()) {
			continue
		}
		mount := filepath.Join(dir, e.Name())
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // nothing is mounted there
			errs = append(errs, fmt.Errorf("unmount %s: %w", mount, err))
			continue
		}
		errs = append(errs, notThere(os.Remove(mount)))
	}
	return errors.Join(errs...)
}

// ofDeadProcess says whether a name has the form, whose first number is a process that has
// ended.
func ofDeadProcess(form, name string) bool {
	before, _, _ := strings.Cut(form, "%d")
	rest, ok := strings.CutPrefix(name, before)
	if !ok {
		return false
	}
	pid, err := strconv.Atoi(rest[:max(0, strings.IndexAny(rest, "_-"))])
	return err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

func notThere(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// append writes to a file of tracefs, which adds to what it has.
func (t *tracer) append(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

var traceLine = regexp.MustCompile(`-(\d+) +\[\d+\] +\S+ +(\d+)\.(\d{6}): (\w+): (.*)`)

// parseTrace reads the kernel's text. Probes keep their names.
func parseTrace(text string) (events []traceEvent) {
	for line := range strings.Lines(text) {
		m := traceLine.FindStringSubmatch(line)
		if m == nil {
			continue // a comment
		}
		thread, _ := strconv.Atoi(m[1])
		seconds, _ := strconv.Atoi(m[2])
		micros, _ := strconv.Atoi(m[3])
		at := time.Duration(seconds)*time.Second + time.Duration(micros)*time.Microsecond
		events = append(events, traceEvent{thread, at, m[4], m[5]})
	}
	return events
}

func threadsOf(process int) (threads []int, err error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", process))
	for _, e := range entries {
		thread, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		threads = append(threads, thread)
	}
	return threads, err
}

// functionOffsets returns where functions of a Go program begin in its file. It needs no
// symbol table, which a shipped program does not have.
func functionOffsets(path string, functions []string) (offsets []uint64, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, lines := f.Section(".text"), f.Section(".gopclntab")
	if text == nil || lines == nil {
		return nil, fmt.Errorf("%s: want a program of Go", path)
	}
	content, err := lines.Data()
	if err != nil {
		return nil, err
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(content, text.Addr))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range functions {
		function := table.LookupFunc(name)
		if function == nil {
			return nil, fmt.Errorf("%s: it has no function %s: use a build of this source", path, name)
		}
		offsets = append(offsets, function.Entry-text.Addr+text.Offset)
	}
	return offsets, nil
}
