package threads

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/internal/timeslice"
)

// asChild names the case that the test's program plays, in a process of its own: what a case
// does to its threads must not stay with the other tests.
const asChild = "FLOCK_THREADS_TEST_CHILD"

func TestMain(m *testing.M) {
	name := os.Getenv(asChild)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := cases[name](); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

var cases = map[string]func() error{
	"short slices without a priority": func() error {
		t, said := open(0)
		if _, err := expect(unix.SCHED_NORMAL, 0, timeslice.Short); err != nil {
			return err
		}
		if t.granted || said.Len() > 0 {
			return fmt.Errorf("priority granted: %v; it said %q", t.granted, said)
		}
		return nil
	},
	"all threads, and those to come": func() error {
		t, said := open(3)
		before, err := expect(unix.SCHED_RR, 3, 0)
		if err != nil {
			return err
		}
		const more = 8
		locked, end := make(chan struct{}), make(chan struct{})
		defer close(end)
		for range more {
			go func() {
				runtime.LockOSThread()
				locked <- struct{}{}
				<-end
			}()
		}
		for range more {
			<-locked
		}
		after, err := expect(unix.SCHED_RR, 3, 0)
		if err != nil {
			return err
		}
		if after <= before || !t.granted || !strings.Contains(said.String(), "have real-time priority") {
			return fmt.Errorf("%d threads, then %d; granted: %v; it said %q", before, after, t.granted, said)
		}
		return nil
	},
	"somebody else changes a thread": func() error {
		t, _ := open(3)
		if err := unix.SchedSetAttr(os.Getpid(), &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH, Nice: 5}, 0); err != nil {
			return err
		}
		t.set()
		_, err := expect(unix.SCHED_RR, 3, 0)
		return err
	},
	"one that does not wait costs all their priority for a while": func() error {
		t, _ := open(3)
		go t.Run(context.Background()) // ends with the process
		work := make([]byte, 1<<20)
		for range 2 { // the kernel moves its limit on: the second time must be like the first
			lowered := func() bool {
				attr, err := unix.SchedGetAttr(0, 0)
				return err == nil && attr.Policy == unix.SCHED_NORMAL
			}
			for began := time.Now(); !lowered(); {
				if time.Since(began) > 10*time.Second {
					return errors.New("a thread ran with real-time priority for 10 s")
				}
				for i := range work { // a system call may be a wait
					work[i]++
				}
			}
			for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				_, err := expect(unix.SCHED_RR, 3, 0)
				if err == nil {
					break
				}
				if time.Since(began) > 10*time.Second {
					return fmt.Errorf("the priority did not come back: %w", err)
				}
			}
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.pauses < 2 {
			return fmt.Errorf("%d pauses, want at least 2", t.pauses)
		}
		return nil
	},
	"the nice value is what it was": func() error {
		if err := all(func(tid int) error { return unix.Setpriority(unix.PRIO_PROCESS, tid, 7) }); err != nil {
			return err
		}
		t, _ := open(3)
		t.paused = true
		t.set()
		if _, err := expect(unix.SCHED_NORMAL, 0, timeslice.Short); err != nil {
			return err
		}
		attr, err := unix.SchedGetAttr(0, 0)
		if err != nil || attr.Nice != 7 || t.granted {
			return fmt.Errorf("%+v, %v; granted: %v: want a nice value of 7", attr, err, t.granted)
		}
		return nil
	},
	"a program that the agent executes has none of it": func() error {
		if _, said := open(3); timeslice.LimitBursts(burst) != nil {
			return fmt.Errorf("it said %q", said)
		}
		out, err := sys.CombinedOutput(exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; grep -h 'Max realtime timeout' /proc/self/limits; grep -h '^policy' /proc/self/sched"))
		if fields := strings.Fields(string(out)); err != nil || len(fields) < 5 || fields[3] != "unlimited" || !strings.HasSuffix(strings.TrimSpace(string(out)), " 0") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	},
	"a hard limit, at which the kernel would kill": func() error {
		limit := unix.Rlimit{Cur: 1e6, Max: 1e6}
		if err := unix.Setrlimit(unix.RLIMIT_RTTIME, &limit); err != nil {
			return err
		}
		t, said := open(3)
		if t.granted || !strings.Contains(said.String(), "RLIMIT_RTTIME") {
			return fmt.Errorf("granted: %v; it said %q", t.granted, said)
		}
		_, err := expect(unix.SCHED_NORMAL, 0, timeslice.Short)
		return err
	},
	"refused": func() error {
		t, said := open(3)
		if t.granted || !strings.Contains(said.String(), "operation not permitted") || !strings.Contains(said.String(), "CAP_SYS_NICE") {
			return fmt.Errorf("granted: %v; it said %q", t.granted, said)
		}
		if _, err := expect(unix.SCHED_NORMAL, 0, timeslice.Short); err != nil {
			return err
		}
		said.Reset()
		if t.set(); said.Len() > 0 {
			return fmt.Errorf("it says %q each time", said)
		}
		return nil
	},
}

func TestThreads(t *testing.T) {
	if err := mayRaise(); err != nil {
		t.Skipf("this process may not have real-time priority (CAP_SYS_NICE; with RT_GROUP_SCHED a share of real time): %v", err)
	}
	for name := range cases {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), asChild+"="+name)
			if name == "refused" {
				// As a container without the capability: in a user namespace of its own.
				root := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
				cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: root, GidMappings: root}
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func TestParsePriority(t *testing.T) {
	for s, want := range map[string]int{"0": 0, "1": 1, "99": 99, "100": -1, "-1": -1, "": -1, "high": -1} {
		got, err := ParsePriority(s)
		if want < 0 != (err != nil) || err == nil && got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
}

// mayRaise tries it with a thread that ends with it.
func mayRaise() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- timeslice.Raise(0, 1)
	}()
	return <-done
}

func open(priority int) (*Threads, *bytes.Buffer) {
	var said bytes.Buffer
	t := New(priority, slog.New(slog.NewTextHandler(&said, nil)))
	t.set()
	return t, &said
}

// expect returns how many threads there are, all of which the kernel treats like this.
func expect(policy, priority uint32, slice time.Duration) (threads int, err error) {
	return threads, all(func(tid int) error {
		threads++
		attr, err := unix.SchedGetAttr(tid, 0)
		if err == nil && (attr.Policy != policy || attr.Priority != priority || attr.Runtime != uint64(slice.Nanoseconds())) {
			err = fmt.Errorf("thread %d: %+v, want policy %d, priority %d, slice %v", tid, attr, policy, priority, slice)
		}
		return err
	})
}
