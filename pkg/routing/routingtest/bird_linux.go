package routingtest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/birdc"
)

// BIRD is a running daemon.
type BIRD struct {
	Socket string
	t      *testing.T
	cmd    *exec.Cmd
	log    lockedBuffer
}

// StartBIRD starts BIRD in ns with the file at conf, and returns when it answers.
// It ends with the test at the latest.
func StartBIRD(ns *NS, conf string, flags ...string) *BIRD {
	ns.t.Helper()
	b := &BIRD{Socket: filepath.Join(ns.Dir, "bird.ctl"), t: ns.t}
	os.Remove(b.Socket)
	b.cmd = ns.Command("bird", append([]string{"-f", "-c", conf, "-s", b.Socket, "-P", filepath.Join(ns.Dir, "bird.pid")}, flags...)...)
	b.cmd.Stdout, b.cmd.Stderr = &b.log, &b.log
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		b.Kill()
		if b.t.Failed() {
			b.t.Logf("bird in %s:\n%s", ns.Role, b.Log())
		}
	})
	Eventually(b.t, 5*time.Second, func() error {
		c, err := birdc.Dial(context.Background(), b.Socket)
		if err == nil {
			c.Close()
		}
		return err
	})
	return b
}

// StartBIRDWith is StartBIRD with a configuration in place of a file.
func StartBIRDWith(ns *NS, conf string, flags ...string) *BIRD {
	ns.t.Helper()
	file := filepath.Join(ns.Dir, "router.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		ns.t.Fatal(err)
	}
	return StartBIRD(ns, file, flags...)
}

// Kill ends BIRD at once, without a word to its peers.
func (b *BIRD) Kill() { b.end(syscall.SIGKILL) }

// Stop ends BIRD as an operator would.
func (b *BIRD) Stop() { b.end(syscall.SIGTERM) }

// Signal sends one.
func (b *BIRD) Signal(s os.Signal) { b.cmd.Process.Signal(s) }

func (b *BIRD) end(s os.Signal) {
	if b.cmd.ProcessState == nil {
		b.cmd.Process.Signal(s)
		b.Wait()
	}
}

// Wait waits for BIRD's end.
func (b *BIRD) Wait() { b.cmd.Wait() }

// Log is what BIRD has logged to its standard error.
func (b *BIRD) Log() string { return b.log.String() }

// Protocol returns BIRD's view of the protocol called name, and its zero value if
// there is none or BIRD does not answer.
func (b *BIRD) Protocol(name string) birdc.Protocol {
	c, err := birdc.Dial(context.Background(), b.Socket)
	if err != nil {
		return birdc.Protocol{}
	}
	defer c.Close()
	ps, _ := c.ShowProtocols(context.Background())
	for _, p := range ps {
		if p.Name == name {
			return p
		}
	}
	return birdc.Protocol{}
}

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
