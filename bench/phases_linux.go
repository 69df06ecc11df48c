package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// phase is a part of a call. It ends where the next one begins.
type phase struct {
	name string
	// begins is a function of the agent, or one of the events below.
	begins string
	// inAgent says that the agent works, or the kernel for it.
	inAgent bool
}

// Where phases begin that no function of the agent begins.
const (
	atStart   = "start"   // of libcni's call
	atExec    = "exec"    // of the plugin
	atConnect = "connect" // by the plugin
	atWrite   = "write"   // of the answer, by the agent
	atRead    = "read"    // of the answer, by the plugin: its last one returns
	atExit    = "exit"    // of the plugin
	atEnd     = "end"     // of libcni's call
)

const module = "flock.fritzlab.net/flock/pkg/"

// The phases of a call of a pod that no pod of Kubernetes stands behind: its policies, its
// claims and its lookup cost nothing.
var (
	addPhases = []phase{
		{"libcni, fork and exec", atStart, false},
		{"plugin starts, reads, opens the pod's namespace", atExec, false},
		{"connection, until the agent has the request", atConnect, false},
		{"request parsed and checked", module + "cni.(*dispatcher).answer", true},
		{"what the pod may have is looked up", module + "agent.(*attacher).Add", true},
		{"addresses allocated, record written", module + "address/ledger.(*Ledger).Promise", true},
		{"network policies", module + "agent.(*policies).prepare", true},
		{"source guard (nftables)", module + "datapath/sourceguard.(*Guard).Set", true},
		{"socket in the pod's namespace", module + "datapath/wiring.(*Host).Attach", true},
		{"pair of links made", module + "datapath/wiring.(*wire).link", true},
		{"links set up, addresses, neighbours, routes", module + "datapath/wiring.wiringOf", true},
		{"wait until packets flow", module + "datapath/wiring.(*wire).awaitReady", true},
		{"ports of the node", module + "datapath/hostport.(*Ports).Set", true},
		{"record committed, log line", module + "address/ledger.(*Ledger).Commit", true},
		{"result written as JSON", module + "agent.result", true},
		{"answer, until the plugin has it", atWrite, false},
		{"plugin prints and ends", atRead, false},
		{"libcni reaps it and reads the result", atExit, false},
	}
	delPhases = []phase{
		{"libcni, fork and exec", atStart, false},
		{"plugin starts, reads, opens the pod's namespace", atExec, false},
		{"connection, until the agent has the request", atConnect, false},
		{"request parsed and checked", module + "cni.(*dispatcher).answer", true},
		{"release recorded", module + "agent.(*attacher).Del", true},
		{"link down, which removes its routes", module + "datapath/wiring.(*Host).TakeDown", true},
		{"ports of the node, policies, queue of the reaper", module + "datapath/hostport.(*Ports).Remove", true},
		{"answer, until the plugin has it", atWrite, false},
		{"plugin prints and ends", atRead, false},
		{"libcni reaps it", atExit, false},
	}
)

// span is what a phase took in one call.
type span struct {
	all    time.Duration
	kernel time.Duration // of it in the agent's system calls, waits apart
}

// Phases says where the time of an ADD and of a DEL goes, for one build and pods that come one
// after another. What it sees is the shipped program in the kernel's trace: the plugin's
// system calls, and the agent's with the entries of its functions.
func Phases(ctx context.Context, c Contestant, n int, out io.Writer) (err error) {
	temp, err := os.MkdirTemp("/dev/shm", "flock-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	r, stop, err := startLocal(ctx, c, filepath.Join(temp, c.Name))
	if err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	defer stop()
	untraced, err := inTurns(ctx, []runtimeOf{r}, 1, n)
	if err != nil {
		return err
	}
	t, err := newTracer()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if err := t.only(os.Getpid(), r.agent); err != nil {
		return err
	}
	if err := t.probe(filepath.Join(c.Bin, "flock-agent"), probed()); err != nil {
		return err
	}
	if err := t.see(append(programs, "raw_syscalls")...); err != nil {
		return err
	}
	var adds, dels [][]span
	for i := range warmUp + n {
		add, del, err := tracedPod(ctx, r, t, "traced-"+strconv.Itoa(i))
		if err != nil {
			return fmt.Errorf("traced pod %d: %w", i, err)
		}
		if i >= warmUp {
			adds, dels = append(adds, add), append(dels, del)
		}
	}
	err = phasesTable(out, "ADD", addPhases, adds, untraced[0].add)
	return errors.Join(err, phasesTable(out, "DEL", delPhases, dels, untraced[0].del))
}

// probed are the agent's functions at which phases begin.
func probed() (functions []string) {
	for _, p := range slices.Concat(addPhases, delPhases) {
		if strings.HasPrefix(p.begins, module) && !slices.Contains(functions, p.begins) {
			functions = append(functions, p.begins)
		}
	}
	return functions
}

// tracedPod adds a pod and deletes it.
func tracedPod(ctx context.Context, r runtimeOf, t *tracer, id string) (add, del []span, err error) {
	pod, err := newNetNS()
	if err != nil {
		return nil, nil, err
	}
	defer pod.Close()
	conf := conf(pod, id)
	traced := func(phases []phase, call func() error) ([]span, error) {
		if err := t.record(); err != nil {
			return nil, err
		}
		start := monotonic()
		err := call()
		end := monotonic()
		if err != nil {
			return nil, err
		}
		events, err := t.take()
		if err != nil {
			return nil, err
		}
		agent, err := threadsOf(r.agent)
		if err != nil {
			return nil, err
		}
		return spans(phases, probed(), events, agent, time.Duration(start), time.Duration(end))
	}
	err = r.host.Do(func() error {
		var link string
		add, err = traced(addPhases, func() (err error) { link, _, err = r.add(ctx, conf); return err })
		if link == "" {
			return err
		}
		var delErr error
		del, delErr = traced(delPhases, func() error { _, err := r.del(ctx, conf); return err })
		return errors.Join(err, delErr, awaitNoLink(link), awaitGracePeriod())
	})
	return add, del, errors.Join(err, ctx.Err())
}

// spans cuts one call's events into its phases.
func spans(phases []phase, probes []string, events []traceEvent, agent []int, start, end time.Duration) ([]span, error) {
	events = slices.DeleteFunc(slices.Clone(events), func(e traceEvent) bool { return e.at < start || e.at > end })
	slices.SortStableFunc(events, func(a, b traceEvent) int { return int(a.at - b.at) })
	at := boundaries(probes, events, agent)
	at[atStart], at[atEnd] = start, end
	calls := systemCalls(events, agent, end)
	result := make([]span, len(phases))
	began := start
	for i, p := range phases {
		next := atEnd
		if i+1 < len(phases) {
			next = phases[i+1].begins
		}
		until, ok := at[next]
		if !ok || until < began {
			return nil, fmt.Errorf("phase %q: the trace does not show its end, %s", p.name, next)
		}
		result[i] = span{until - began, during(calls, began, until)}
		began = until
	}
	return result, nil
}

// boundaries are where phases begin.
func boundaries(probes []string, events []traceEvent, agent []int) map[string]time.Duration {
	at := map[string]time.Duration{}
	first := func(what string, when time.Duration) {
		if _, seen := at[what]; !seen {
			at[what] = when
		}
	}
	plugin := 0
	for _, e := range events {
		number, isCall := systemCall(e)
		switch {
		case e.name == "sched_process_exec" && plugin == 0:
			plugin = e.thread
			at[atExec] = e.at
		case e.name == "sched_process_exit" && e.thread == plugin:
			first(atExit, e.at)
		case e.thread == plugin && e.name == "sys_enter" && isCall && number == unix.SYS_CONNECT:
			first(atConnect, e.at)
		case e.thread == plugin && e.name == "sys_exit" && isCall && number == unix.SYS_READ:
			at[atRead] = e.at // the last
		}
		if i, err := strconv.Atoi(strings.TrimPrefix(e.name, "f")); err == nil && i < len(probes) {
			first(probes[i], e.at)
		}
	}
	// The agent's last write before the plugin has the answer is the answer.
	for _, e := range events {
		if number, ok := systemCall(e); ok && e.name == "sys_enter" && number == unix.SYS_WRITE && slices.Contains(agent, e.thread) && e.at <= at[atRead] {
			at[atWrite] = e.at
		}
	}
	return at
}

// systemCall is the number in an event of one.
func systemCall(e traceEvent) (number int, ok bool) {
	if e.name != "sys_enter" && e.name != "sys_exit" {
		return 0, false
	}
	n, err := fmt.Sscanf(e.text, "NR %d", &number)
	return number, n == 1 && err == nil
}

// interval is a system call's time.
type interval struct{ from, to time.Duration }

// waiting are system calls in which a thread has nothing to do.
var waiting = []int{
	unix.SYS_FUTEX, unix.SYS_EPOLL_PWAIT, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP,
	unix.SYS_SCHED_YIELD, unix.SYS_RT_SIGRETURN, unix.SYS_RESTART_SYSCALL,
}

// systemCalls are those of the threads, in order, which overlap no more.
func systemCalls(events []traceEvent, threads []int, end time.Duration) (merged []interval) {
	var all []interval
	in := map[int]traceEvent{}
	for _, e := range events {
		number, ok := systemCall(e)
		if !ok || !slices.Contains(threads, e.thread) || slices.Contains(waiting, number) {
			continue
		}
		if e.name == "sys_enter" {
			in[e.thread] = e
		} else if began, ok := in[e.thread]; ok {
			all = append(all, interval{began.at, e.at})
			delete(in, e.thread)
		}
	}
	for _, e := range in {
		all = append(all, interval{e.at, end})
	}
	slices.SortFunc(all, func(a, b interval) int { return int(a.from - b.from) })
	for _, i := range all {
		if last := len(merged) - 1; last >= 0 && i.from <= merged[last].to {
			merged[last].to = max(merged[last].to, i.to)
		} else {
			merged = append(merged, i)
		}
	}
	return merged
}

// during is how much of the intervals is in from to until.
func during(intervals []interval, from, until time.Duration) (sum time.Duration) {
	for _, i := range intervals {
		sum += max(0, min(i.to, until)-max(i.from, from))
	}
	return sum
}

// phasesTable writes the medians. Their sum is not the median of the sum.
func phasesTable(out io.Writer, command string, phases []phase, calls [][]span, untraced []time.Duration) error {
	fmt.Fprintf(out, "%s, n=%d, in ms\n", command, len(calls))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "phase\tp50\tp99\tof it in the agent's system calls, p50")
	row := func(name string, pick func(call []span) span, kernel bool) {
		var all, inKernel []time.Duration
		for _, call := range calls {
			s := pick(call)
			all, inKernel = append(all, s.all), append(inKernel, s.kernel)
		}
		f := Milliseconds(all)
		fmt.Fprintf(w, "%s\t%.3f\t%.3f\t", name, f.P50, f.P99)
		if kernel {
			fmt.Fprintf(w, "%.3f", Milliseconds(inKernel).P50)
		}
		fmt.Fprintln(w)
	}
	for i, p := range phases {
		row(p.name, func(call []span) span { return call[i] }, p.inAgent)
	}
	sum := func(wanted func(phase) bool) func([]span) span {
		return func(call []span) (sum span) {
			for i, p := range phases {
				if wanted(p) {
					sum.all += call[i].all
					sum.kernel += call[i].kernel
				}
			}
			return sum
		}
	}
	row("the agent's phases together", sum(func(p phase) bool { return p.inAgent }), true)
	row("all", sum(func(phase) bool { return true }), false)
	f := Milliseconds(untraced)
	fmt.Fprintf(w, "all, without the trace\t%.3f\t%.3f\t\n", f.P50, f.P99)
	return w.Flush()
}
