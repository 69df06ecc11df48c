// Command flock-slice executes a program with short scheduler time slices, or with real-time
// priority. The DaemonSet starts BIRD with it. See docs/deploy.md.
package main

import (
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/timeslice"
)

const usage = `flock-slice runs a program with short slices of the processor's time.

  flock-slice [--realtime-priority=N] PROGRAM [ARGUMENT]...

It asks the kernel's scheduler for slices of 0.1 ms and becomes PROGRAM, which is
a path and keeps the process ID. On a busy node PROGRAM then need not wait until
others' slices are over, from Linux 6.12 on. It gets no more of the processor for
it, and all else is as if it had been started by itself. Where the kernel refuses,
PROGRAM runs all the same, and a line on standard error says so.

With a real-time priority from 1 to 99 (SCHED_RR) it runs before all programs that
have none. This needs CAP_SYS_NICE; where the kernel refuses, PROGRAM has short
slices. 0: none.
`

func main() {
	if err := run(os.Args[1:]); err != "" {
		os.Stderr.WriteString("flock-slice: " + err + "\n")
		os.Exit(1)
	}
}

// run returns only if there is nothing to run, or it cannot be run. It does without
// fmt and flag, which would be linked and started at each start of the program.
func run(args []string) (problem string) {
	if len(args) == 0 {
		return "no program: want its path; flock-slice --help says more"
	}
	priority := 0
	if value, ok := strings.CutPrefix(args[0], "--realtime-priority="); ok {
		var err error
		if priority, err = timeslice.ParsePriority(value); err != nil {
			return args[0] + ": " + err.Error()
		}
		if args = args[1:]; len(args) == 0 {
			return "no program: want its path; flock-slice --help says more"
		}
	}
	program := args[0]
	switch program {
	case "help", "--help", "-help", "-h":
		os.Stdout.WriteString(usage)
		return ""
	}
	if !strings.Contains(program, "/") {
		return program + ": want the path of a program, PATH is not searched; flock-slice --help says more"
	}
	runtime.LockOSThread() // the time slice belongs to the thread, so this thread must execute the program
	if err := timeslice.Shorten(0); err != nil {
		os.Stderr.WriteString("flock-slice: " + program + " runs with time slices of the default length: " + err.Error() +
			": have the seccomp profile allow sched_getattr and sched_setattr\n")
	}
	if priority > 0 {
		if err := timeslice.Raise(0, priority); err != nil {
			os.Stderr.WriteString("flock-slice: " + program + " runs without real-time priority: " + err.Error() + "\n")
		}
	}
	return program + ": " + unix.Exec(program, args, os.Environ()).Error()
}
