package bench

import (
	"errors"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRaise(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	policy := func() uint32 {
		attr, err := unix.SchedGetAttr(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		return attr.Policy
	}
	back, err := raise(cmd.Process.Pid)
	if errors.Is(err, unix.EPERM) {
		t.Skipf("this process may not give real-time priority: %v", err)
	} else if err != nil || policy() != unix.SCHED_RR {
		t.Fatalf("policy %d, %v", policy(), err)
	}
	if err := back(); err != nil || policy() != unix.SCHED_NORMAL {
		t.Errorf("afterwards policy %d, %v", policy(), err)
	}
}
