package agent

import (
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// slice is how long the agent's threads want to run at a time. A kernel from 6.12
// on lets those that want little go ahead of those that want much: a withdrawal on
// a busy node takes its turn when it is due, not when others' milliseconds are
// over. The agent gets no more of the processor for it, and no privilege is needed.
// Older kernels take no notice.
const slice = 100 * time.Microsecond // the least that the kernel takes

// takeShortTurns asks for it for all threads, and so for those that they make.
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
		attr, err := unix.SchedGetAttr(tid, 0)
		if err == nil {
			attr.Runtime = uint64(slice.Nanoseconds())
			err = unix.SchedSetAttr(tid, attr, 0)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // ended meanwhile
			return err
		}
	}
	return nil
}
