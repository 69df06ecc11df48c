package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/timeslice"
)

// asChild has the test's program say how the scheduler treats it instead.
const asChild = "FLOCK_SLICE_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(asChild) == "" {
		os.Exit(m.Run())
	}
	attr, err := unix.SchedGetAttr(os.Getpid(), 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("process %d policy %d nice %d slice %v argv %q\n", os.Getpid(), attr.Policy, attr.Nice, time.Duration(attr.Runtime), os.Args)
	os.Exit(7)
}

// The program gets a short slice, and from a kernel that refuses the one that it
// would have had; the rest is as it was.
func TestSlice(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := build(t)
	// What a thread of this process has at first depends on what ran the test.
	const usual = 5 * time.Millisecond
	for name, c := range map[string]struct {
		refused []uint32 // system calls
		slice   time.Duration
		says    string
	}{
		"granted":             {nil, timeslice.Short, ""},
		"cannot be set":       {[]uint32{unix.SYS_SCHED_SETATTR}, usual, "flock-slice: " + self + " runs with time slices of the default length: operation not permitted: have the seccomp profile"},
		"cannot even be read": {[]uint32{unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_GETATTR}, 0, "flock-slice: " + self + " runs with time slices of the default length: operation not permitted: have the seccomp profile"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(path, self, "-f", "a b")
			cmd.Env = append(os.Environ(), asChild+"=1")
			var said, printed bytes.Buffer
			cmd.Stderr, cmd.Stdout = &said, &printed
			var had *unix.SchedAttr
			if err := fromOwnThread(func() (err error) {
				if had, err = unix.SchedGetAttr(0, 0); err != nil {
					return err
				}
				had.Runtime, had.Nice = uint64(usual.Nanoseconds()), min(had.Nice+1, 19)
				if err := unix.SchedSetAttr(0, had, 0); err != nil {
					return err
				}
				if err := refuse(c.refused); err != nil {
					return err
				}
				return cmd.Start()
			}); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			want, code := fmt.Sprintf("process %d policy %d nice %d slice %v argv %q\n", cmd.Process.Pid, had.Policy, had.Nice, c.slice, []string{self, "-f", "a b"}), 7
			if c.slice == 0 { // the child may not read it either
				want, code = "operation not permitted\n", 1
			}
			if printed.String() != want || cmd.ProcessState.ExitCode() != code {
				t.Errorf("the program said %q and ended with %v, want %q and %d", &printed, cmd.ProcessState, want, code)
			}
			if !strings.HasPrefix(said.String(), c.says) || strings.Count(said.String(), "\n") > 1 || c.says == "" && said.Len() > 0 {
				t.Errorf("flock-slice said %q, want %q", &said, c.says)
			}
		})
	}
}

// With a priority the program runs in real time, and where that is refused, with a short slice.
func TestRealtimePriority(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := build(t)
	for name, c := range map[string]struct {
		namespace uintptr
		want      string
		says      string
	}{
		"granted": {0, "policy 2 ", ""},
		"refused": {unix.CLONE_NEWUSER, "slice 100µs", "flock-slice: " + self + " runs without real-time priority: operation not permitted: give the container CAP_SYS_NICE"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(path, "--realtime-priority=2", self)
			cmd.Env = append(os.Environ(), asChild+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: c.namespace}
			if c.namespace != 0 { // there is no CAP_SYS_NICE of the host's in it
				root := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
				cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = root, root
			}
			var said, printed bytes.Buffer
			cmd.Stderr, cmd.Stdout = &said, &printed
			_ = cmd.Run()
			if !strings.Contains(printed.String(), c.want) || !strings.HasPrefix(said.String(), c.says) || c.says == "" && said.Len() > 0 {
				t.Errorf("the program said %q, and flock-slice %q; want %q and %q", &printed, &said, c.want, c.says)
			}
		})
	}
}

// A program of Go has signals and limits of its own; what it executes must not.
func TestAllElseIsAsWithoutIt(t *testing.T) {
	t.Parallel()
	path := build(t)
	state := func(argv ...string) (lines string) {
		t.Helper()
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", argv, err)
		}
		for line := range strings.Lines(string(out)) {
			for _, prefix := range []string{"SigPnd", "SigBlk", "SigIgn", "SigCgt", "Cap", "NoNewPrivs", "Seccomp:", "Max "} {
				if strings.HasPrefix(line, prefix) {
					lines += line
				}
			}
		}
		if !strings.Contains(lines, "SigIgn:") || !strings.Contains(lines, "Max open files") {
			t.Fatalf("%v: signals and limits are not in it: %s", argv, out)
		}
		return lines
	}
	show := []string{"/bin/cat", "/proc/self/status", "/proc/self/limits"}
	if with, without := state(append([]string{path}, show...)...), state(show...); with != without {
		t.Errorf("with flock-slice:\n%swithout:\n%s", with, without)
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	path := build(t)
	for name, c := range map[string]struct {
		args []string
		exit int
		says string
	}{
		"nothing":         {nil, 1, "flock-slice: no program: want its path; flock-slice --help says more\n"},
		"empty":           {[]string{""}, 1, "flock-slice: : want the path of a program"},
		"no path":         {[]string{"true"}, 1, "flock-slice: true: want the path of a program, PATH is not searched"},
		"no priority":     {[]string{"--realtime-priority=high", "/bin/true"}, 1, "flock-slice: --realtime-priority=high: want a number from 1 to 99, or 0 for none\n"},
		"too high":        {[]string{"--realtime-priority=100", "/bin/true"}, 1, "flock-slice: --realtime-priority=100: want a number"},
		"priority alone":  {[]string{"--realtime-priority=1"}, 1, "flock-slice: no program"},
		"priority 0":      {[]string{"--realtime-priority=0", "/bin/echo", "-n", "a"}, 0, "a"},
		"unknown flag":    {[]string{"--slice", "/bin/true"}, 1, "flock-slice: --slice: want the path of a program"},
		"not there":       {[]string{"/nonexistent/bird"}, 1, "flock-slice: /nonexistent/bird: no such file or directory\n"},
		"not a program":   {[]string{"/etc/passwd"}, 1, "flock-slice: /etc/passwd: permission denied\n"},
		"help":            {[]string{"--help"}, 0, "flock-slice runs a program with short slices"},
		"program's help":  {[]string{"/bin/echo", "--help"}, 0, "Usage: /bin/echo"},
		"program's error": {[]string{"/bin/false"}, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(path, c.args...)
			out, _ := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != c.exit || !strings.HasPrefix(string(out), c.says) || c.says == "" && len(out) > 0 {
				t.Errorf("%q: %v, said %q", c.args, cmd.ProcessState, out)
			}
		})
	}
}

// It delays each start of BIRD, for which the peers wait.
func TestLinksLittle(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{
		"golang.org/x/sys/unix":                       true,
		"flock.fritzlab.net/flock/cmd/flock-slice":    true,
		"flock.fritzlab.net/flock/internal/timeslice": true,
	}
	unwanted := map[string]bool{"fmt": true, "flag": true, "net": true, "context": true, "log/slog": true}
	for dep := range strings.FieldsSeq(string(out)) {
		first, _, _ := strings.Cut(dep, "/")
		if unwanted[dep] || strings.Contains(first, ".") && !allowed[dep] {
			t.Errorf("flock-slice links %s", dep)
		}
	}
	info, err := os.Stat(build(t))
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(1792 << 10); info.Size() > limit {
		t.Errorf("flock-slice has %d bytes, more than %d", info.Size(), limit)
	}
}

// fromOwnThread calls f on a thread that ends with it, and whatever f does to it.
func fromOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// refuse has a seccomp filter answer EPERM to the system calls of this thread and
// of the processes that it makes.
func refuse(calls []uint32) error {
	if len(calls) == 0 {
		return nil
	}
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // seccomp_data's nr
	for _, nr := range calls {
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

func build(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "flock-slice")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}
