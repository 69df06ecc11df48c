//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// As process 1 of a PID namespace pause must reap what it inherits, and end at
// SIGTERM, which the kernel keeps from a process 1 that has no handler for it.
func TestReapsAndEnds(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "pause")
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	// The inner shell's child is an orphan when the outer one becomes pause, and
	// lives until its input is closed.
	cmd := exec.Command("sh", "-c", `exec 3<&0; sh -c 'cat <&3 &'; exec "$0"`, bin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })

	proc := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
	children := fmt.Sprintf("%stask/%d/children", proc, cmd.Process.Pid)
	until(t, "the shell has become pause", func() bool { return read(t, proc+"comm") == "pause" })
	if read(t, children) == "" {
		t.Fatal("pause has inherited no child: nothing to reap")
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, "the orphan is reaped", func() bool { return read(t, children) == "" })

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("still there 5 s after SIGTERM")
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 5 s not yet: %s", what)
		}
	}
}
