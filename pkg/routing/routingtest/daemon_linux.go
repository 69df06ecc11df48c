package routingtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// Daemon is a program that runs in a namespace. It ends with the test at the
// latest; what it logged is shown if the test failed.
type Daemon struct {
	cmd *exec.Cmd
	log lockedBuffer
}

// StartDaemon starts program in ns. It must stay in the foreground.
func StartDaemon(ns *NS, program string, args ...string) *Daemon {
	ns.t.Helper()
	d := &Daemon{cmd: ns.Command(program, args...)}
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	if err := d.cmd.Start(); err != nil {
		ns.t.Fatal(err)
	}
	t := ns.t
	t.Cleanup(func() {
		d.Kill()
		if t.Failed() {
			t.Logf("%s of %s:\n%s", filepath.Base(program), ns.Role, d.Log())
		}
	})
	return d
}

// Kill ends the daemon at once, without a word to its peers.
func (d *Daemon) Kill() { d.end(syscall.SIGKILL) }

// Stop ends the daemon as an operator would.
func (d *Daemon) Stop() { d.end(syscall.SIGTERM) }

// Signal sends one.
func (d *Daemon) Signal(s os.Signal) { d.cmd.Process.Signal(s) }

func (d *Daemon) end(s os.Signal) {
	if d.cmd.ProcessState == nil {
		d.cmd.Process.Signal(s)
		d.Wait()
	}
}

// Wait waits for the daemon's end.
func (d *Daemon) Wait() { d.cmd.Wait() }

// Log is what the daemon has written to its outputs.
func (d *Daemon) Log() string { return d.log.String() }

type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
