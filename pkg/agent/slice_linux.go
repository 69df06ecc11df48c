package agent

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/internal/timeslice"
)

// shortenTimeslices gives all threads of the agent, and those that they make, the
// shortest time slice of the kernel's scheduler: on a busy node they wait less. A thread
// may make another one just before it is its turn, so it looks until there is no new one.
func shortenTimeslices() error {
	done := map[string]bool{}
	for {
		threads, err := sys.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		before := len(done)
		for _, t := range threads {
			if done[t.Name()] {
				continue
			}
			done[t.Name()] = true
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			if err := timeslice.Shorten(tid); err != nil && !errors.Is(err, unix.ESRCH) { // ended meanwhile
				return err
			}
		}
		if len(done) == before {
			return nil
		}
	}
}
