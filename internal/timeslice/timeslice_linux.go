package timeslice

import (
	"errors"
	"io/fs"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Short is the least that the kernel takes.
const Short = 100 * time.Microsecond

// maxPriority is the highest real-time priority (sched(7)).
const maxPriority = 99

// ParsePriority reads a real-time priority, from 1 to 99; 0: none.
func ParsePriority(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > maxPriority {
		return 0, errors.New("want a number from 1 to " + strconv.Itoa(maxPriority) + ", or 0 for none")
	}
	return n, nil
}

// Shorten makes Short the slice of a thread, 0 for the one that calls, and leaves its policy
// as it is. Threads that it makes from then on, child processes and the program that it
// executes have it too. The error is that of sched_getattr(2) or sched_setattr(2), which a
// seccomp profile may refuse.
func Shorten(tid int) error {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return err
	}
	if attr.Policy == unix.SCHED_RR || attr.Policy == unix.SCHED_FIFO || attr.Runtime == uint64(Short.Nanoseconds()) {
		return nil
	}
	attr.Runtime = uint64(Short.Nanoseconds())
	return unix.SchedSetAttr(tid, attr, 0)
}

// Raise gives a thread, 0 for the one that calls, a real-time priority from 1 to 99, with
// SCHED_RR. What the thread makes or executes from then on has it too. The error is EPERM, with
// the remedy, without CAP_SYS_NICE or in a cgroup without a share of real time.
func Raise(tid, priority int) error {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return err
	}
	if attr.Policy == unix.SCHED_RR && attr.Priority == uint32(priority) {
		return nil
	}
	attr.Policy, attr.Priority, attr.Runtime = unix.SCHED_RR, uint32(priority), 0
	if err := unix.SchedSetAttr(tid, attr, 0); err != unix.EPERM {
		return err
	}
	return forbidden{}
}

// forbidden is EPERM for a real-time priority.
type forbidden struct{}

func (forbidden) Error() string {
	return unix.EPERM.Error() + ": give the container CAP_SYS_NICE; a kernel with RT_GROUP_SCHED also wants a share of real time for its cgroup"
}

func (forbidden) Unwrap() error { return unix.EPERM }

// Lower takes the real-time priority of a thread back, if it has one: SCHED_OTHER with the
// nice value that it had, and Short as its slice.
func Lower(tid int) error {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil || attr.Policy != unix.SCHED_RR {
		return err
	}
	nice, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err != nil {
		return err
	}
	// The system call returns 20 less the nice value (getpriority(2)).
	attr.Policy, attr.Priority, attr.Nice, attr.Runtime = unix.SCHED_NORMAL, 0, int32(20-nice), uint64(Short.Nanoseconds())
	return unix.SchedSetAttr(tid, attr, 0)
}

// LimitBursts has the kernel send SIGXCPU when a thread has run with real-time priority for
// this long without ever waiting for anything (RLIMIT_RTTIME, getrlimit(2)). It moves the limit
// on by a second each time, so it is to be set again then. It is an error if the process has a hard
// limit, at which the kernel would kill it.
func LimitBursts(most time.Duration) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_RTTIME, &limit); err != nil {
		return err
	}
	if limit.Max != unix.RLIM_INFINITY {
		return errors.New("the process has a hard limit of RLIMIT_RTTIME, at which the kernel kills it: " + strconv.FormatUint(limit.Max, 10) + " µs: take it away")
	}
	limit.Cur = uint64(most.Microseconds())
	return unix.Setrlimit(unix.RLIMIT_RTTIME, &limit)
}

// Release takes from a child process what it has of its parent's: real-time priority, and the limit
// of LimitBursts, at which a program without a handler ends.
func Release(pid int) error {
	limit := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	return errors.Join(Lower(pid), unix.Prlimit(pid, unix.RLIMIT_RTTIME, &limit, nil))
}

// Self is the ID of the thread that calls. It is good while the goroutine is locked to it.
func Self() int { return unix.Gettid() }

// EachThread does something to each thread of a process ("self", or its ID), whose directory in
// /proc readDir reads. A thread may make another just before it is its turn, so it looks until there
// is no new one. Threads that have ended are none. The error is that of one of them.
func EachThread(process string, readDir func(string) ([]fs.DirEntry, error), do func(tid int) error) (failed error) {
	done := map[string]bool{}
	for {
		threads, err := readDir("/proc/" + process + "/task")
		if err != nil {
			return err
		}
		before := len(done)
		for _, thread := range threads {
			if done[thread.Name()] {
				continue
			}
			done[thread.Name()] = true
			tid, err := strconv.Atoi(thread.Name())
			if err != nil {
				return err
			}
			if err := do(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				failed = err
			}
		}
		if len(done) == before {
			return failed
		}
	}
}
