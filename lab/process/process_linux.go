// Package process starts the lab's programs in its members, finds them again in a
// later run, and ends them. Nothing restarts a process that dies before
// the next `lab up`; `lab status` shows it.
//
// A process is known by its id and the time of its start together, so that an id
// which the kernel gave to someone else since is never taken for it.
package process

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/member"
)

// Spec says what is to run.
type Spec struct {
	Member member.Member
	// Name is unique in the member; the log is called so.
	Name string
	// Argv is the command; its program is found in Path, then among the
	// machine's own.
	Argv []string
	Path string
	Env  []string
	// Inputs are files that it reads when it starts. It is restarted when one of
	// them has changed.
	Inputs []string
}

// Process is one that was started.
type Process struct {
	Member string `json:"-"`
	Name   string `json:"-"`
	Log    string `json:"-"`

	PID int `json:"pid"`
	// Started is in clock ticks since the start of the machine.
	Started uint64 `json:"started"`
	// At is the time of the start by the machine's clock.
	At time.Time `json:"at"`
	// Fingerprint stands for the Spec and the content of its inputs.
	Fingerprint string `json:"fingerprint"`
}

// Ensure makes the process run according to the Spec. It leaves one that does so
// alone, and ends a different one first. It reports whether it started the process.
func Ensure(spec Spec) (p *Process, started bool, err error) {
	want, err := spec.fingerprint()
	if err != nil {
		return nil, false, fmt.Errorf("%s on %s: %w", spec.Name, spec.Member.Name(), err)
	}
	if old, err := load(spec.Member, spec.Name); err == nil {
		if old.Running() && old.Fingerprint == want {
			return old, false, nil
		}
		if err := old.Stop(10 * time.Second); err != nil {
			return nil, false, err
		}
	}
	p, err = start(spec, want)
	if err != nil {
		return nil, false, fmt.Errorf("start %s on %s: %w", spec.Name, spec.Member.Name(), err)
	}
	return p, true, nil
}

func start(spec Spec, fingerprint string) (*Process, error) {
	m := spec.Member
	log := m.Dir().Log(m.Name(), spec.Name)
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return nil, err
	}
	if err := os.Rename(log, log+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()

	cmd := m.Command(spec.Path, spec.Argv...)
	cmd.Env = append(cmd.Env, spec.Env...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	if err := member.Start(cmd); err != nil {
		return nil, err
	}
	p := &Process{Member: m.Name(), Name: spec.Name, Log: log, PID: cmd.Process.Pid, At: time.Now(), Fingerprint: fingerprint}
	p.Started, _, err = startTime(p.PID)
	go cmd.Wait() // what ends while this program runs is not to stay a zombie
	if err != nil {
		return nil, err
	}
	note, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	_, err = m.Dir().Write(notePath(m, spec.Name), note, 0o644)
	return p, err
}

// Running reports whether the process still exists.
func (p *Process) Running() bool {
	started, ended, err := startTime(p.PID)
	return err == nil && !ended && started == p.Started
}

// Stop ends the process by SIGTERM, after patience by SIGKILL. One that has
// ended already is no error.
func (p *Process) Stop(patience time.Duration) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop %s (%d): %w", p.Name, p.PID, err)
	}
	defer unix.Close(fd)
	// The descriptor holds on to who has the id now; that may be another.
	if !p.Running() {
		return nil
	}
	for _, s := range []struct {
		signal   unix.Signal
		patience time.Duration
	}{{unix.SIGTERM, patience}, {unix.SIGKILL, 10 * time.Second}} {
		if err := unix.PidfdSendSignal(fd, s.signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop %s (%d): %w", p.Name, p.PID, err)
		}
		if ended(fd, s.patience) {
			return nil
		}
	}
	return fmt.Errorf("%s on %s (%d) does not end after SIGKILL", p.Name, p.Member, p.PID)
}

// ended waits for the process behind a pidfd to end.
func ended(pidfd int, patience time.Duration) bool {
	deadline := time.Now().Add(patience)
	for {
		left := time.Until(deadline)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(max(left, 0)/time.Millisecond))
		if errors.Is(err, unix.EINTR) && left > 0 {
			continue
		}
		return err == nil && n > 0
	}
}

// List are the processes that were started in the member, running or not.
func List(m member.Member) ([]*Process, error) {
	notes, err := filepath.Glob(notePath(m, "*"))
	if err != nil {
		return nil, err
	}
	slices.Sort(notes)
	var all []*Process
	for _, n := range notes {
		p, err := load(m, strings.TrimSuffix(filepath.Base(n), ".json"))
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// Await polls ready until it returns nil. It gives up when the context ends or
// one of the processes that it depends on does, and then says why, with the last
// lines of that one's log.
func Await(ctx context.Context, what string, depends []*Process, ready func(context.Context) error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last error // that says more than that there was no time left
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if deadline, ok := ctx.Deadline(); last == nil || ctx.Err() == nil && (!ok || time.Until(deadline) > time.Second) {
			last = err
		}
		for _, p := range depends {
			if !p.Running() {
				return fmt.Errorf("%s: %s on %s ended; the end of %s:\n%s", what, p.Name, p.Member, p.Log, tail(p.Log, 12))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up waiting for %s: %w", what, errors.Join(last, context.Cause(ctx)))
		case <-tick.C:
		}
	}
}

// tail is the last lines of a file, or why there are none.
func tail(file string, lines int) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
	return "  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}

func notePath(m member.Member, name string) string {
	return m.Dir().Member(m.Name(), "run", name+".json")
}

func load(m member.Member, name string) (*Process, error) {
	note, err := os.ReadFile(notePath(m, name))
	if err != nil {
		return nil, err
	}
	p := &Process{Member: m.Name(), Name: name, Log: m.Dir().Log(m.Name(), name)}
	if err := json.Unmarshal(note, p); err != nil {
		return nil, fmt.Errorf("%s: %w: remove it, and lab up starts the process again", notePath(m, name), err)
	}
	return p, nil
}

// fingerprint changes when the process would run differently after a restart: other
// arguments, environment, inputs, program or member.
func (s Spec) fingerprint() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q\n", s.Argv, s.Env)
	ns, err := os.Stat(s.Member.NetNS())
	if err != nil {
		return "", err
	}
	fmt.Fprintln(h, ns.Sys().(*syscall.Stat_t).Ino)
	program, err := lookPath(s.Argv[0], s.Path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(program)
	if err != nil {
		return "", err
	}
	if !slices.Contains(s.Inputs, program) {
		fmt.Fprintln(h, program, info.Size(), info.ModTime().UnixNano())
	}
	for _, in := range s.Inputs {
		content, err := os.ReadFile(in)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %x\n", in, sha256.Sum256(content))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func lookPath(program, path string) (string, error) {
	if in := filepath.Join(path, program); path != "" {
		if _, err := os.Stat(in); err == nil {
			return in, nil
		}
	}
	return exec.LookPath(program)
}

// startTime is field 22 of proc_pid_stat(5), in clock ticks since the start of
// the machine; ended reports a zombie: its parent has not waited for it yet.
func startTime(pid int) (ticks uint64, ended bool, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false, err
	}
	// The command's name, field 2, may hold blanks and parentheses.
	s := string(stat)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 20 {
		return 0, false, fmt.Errorf("/proc/%d/stat: %q: unexpected form", pid, s)
	}
	ticks, err = strconv.ParseUint(fields[19], 10, 64)
	return ticks, fields[0] == "Z" || fields[0] == "X", err
}
