package agent

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/timeslice"
)

// takeShortTurns has all threads of the agent, and so those that they make, take
// their turns on a busy node as promptly as the kernel lets them.
func takeShortTurns() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := timeslice.Shorten(tid); err != nil && !errors.Is(err, unix.ESRCH) { // ended meanwhile
			return err
		}
	}
	return nil
}
