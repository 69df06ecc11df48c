package bird

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// node is an Applier and the namespace in which its BIRD runs.
type node struct {
	*routingtest.NS
	*Applier
	t      *testing.T
	stop   func()
	states atomic.Int32 // how many were published
}

type testLog struct{ *testing.T }

func (l testLog) Write(p []byte) (int, error) { l.Logf("agent: %s", p); return len(p), nil }

func newNode(t *testing.T) *node {
	n := &node{NS: routingtest.NewNS(t, "node"), t: t}
	n.start()
	return n
}

// start runs an Applier as an agent that starts would.
func (n *node) start() {
	n.Applier = NewApplier(ApplierConfig{
		Dir:      n.Dir,
		Socket:   filepath.Join(n.Dir, "bird.ctl"),
		Check:    checkFile,
		OnChange: func(State) { n.states.Add(1) },
		Log:      slog.New(slog.NewTextHandler(testLog{n.t}, nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); n.Run(ctx) }()
	n.stop = func() { cancel(); <-done }
	n.t.Cleanup(n.stop)
}

func (n *node) conf() string { return n.path(confName) }

// await waits for a State.
func (n *node) await(what string, ok func(State) bool) State {
	n.t.Helper()
	routingtest.Eventually(n.t, 15*time.Second, func() error {
		if s := n.State(); !ok(s) {
			return fmt.Errorf("want %s, have %+v", what, s)
		}
		return nil
	})
	return n.State()
}

func loaded(s State) bool { return s.Loaded }

// intent is one that differs from others by its number of peers.
func intent(t *testing.T, more int) routing.Intent {
	in := intentOf(t, readFile(t, "testdata/one-peer.yaml"))
	for i := range more {
		p := in.BGP.Peers[0]
		p.Name = fmt.Sprintf("more%d", i)
		in.BGP.Peers = append(in.BGP.Peers, p)
	}
	return in
}

func TestApplier(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	one, two := Render(intent(t, 0)), Render(intent(t, 1))

	// BIRD is absent: the file is there for it all the same.
	n.set(one)
	n.await("bird to be missed", func(s State) bool { return errors.Is(s.Err, birdc.ErrAbsent) })
	wantFile(t, n.conf(), one)
	if fi, err := os.Stat(n.conf()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("bird.conf: %v, %v: want only its owner to read it", fi.Mode(), err)
	}

	// BIRD comes up with that file: nothing to apply.
	daemon := routingtest.StartBIRD(n.NS, n.conf())
	s := n.await("bird to be found", loaded)
	if s.Applies != 0 || s.BIRD.Version == "" || time.Since(s.BIRD.Boot).Abs() > time.Minute {
		t.Errorf("%+v: want no apply of what BIRD has loaded itself, its version and the time of its start", s)
	}

	// A new configuration, then the same again.
	n.set(two)
	s = n.await("the second configuration", func(s State) bool { return s.Loaded && s.Applies == 1 })
	wantFile(t, n.conf(), two)
	wantLoaded(t, n, two)
	seen := n.states.Load()
	n.set(bytes.Clone(two))
	n.await("it looked at", func(State) bool { return n.states.Load() > seen })
	n.stop()
	if s := n.State(); s.Applies != 1 {
		t.Errorf("applied %d times, want once: the same was set again", s.Applies)
	}
	if c := dial(t, n); c.Confirm(t.Context()) == nil {
		t.Error("BIRD waited for a confirmation: it would have gone back")
	}

	// The agent restarts: nothing to apply either.
	n.start()
	n.set(two)
	if s := n.await("bird to be found again", loaded); s.Applies != 0 {
		t.Errorf("applied %d times after the agent's restart, want never", s.Applies)
	}
	if got := strings.Count(daemon.Log(), "<INFO> Reconfigured"); got != 1 {
		t.Errorf("BIRD was reconfigured %d times, want once:\n%s", got, daemon.Log())
	}

	// BIRD restarts: noticed, nothing to apply.
	boot := s.BIRD.Boot
	daemon.Kill()
	n.await("bird to be missed", func(s State) bool { return errors.Is(s.Err, birdc.ErrAbsent) })
	routingtest.StartBIRD(n.NS, n.conf())
	s = n.await("the new bird", loaded)
	if !s.BIRD.Boot.After(boot) || s.Applies != 0 {
		t.Errorf("%+v: want a start later than %s and nothing applied", s, boot)
	}

	if routingtest.BIRD3() {
		return // it does not say that it was configured
	}

	// Somebody loads another file into BIRD: undone.
	other := filepath.Join(n.Dir, "other.conf")
	if err := os.WriteFile(other, one, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, n).Configure(t.Context(), birdc.Options{File: other}); err != nil {
		t.Fatal(err)
	}
	n.await("it undone", func(s State) bool { return s.Loaded && s.Applies == 1 })
	wantLoaded(t, n, two)

	// Somebody deletes the file: back, and nothing applied.
	if err := os.Remove(n.conf()); err != nil {
		t.Fatal(err)
	}
	n.set(two)
	routingtest.Eventually(t, 5*time.Second, func() error { _, err := os.Stat(n.conf()); return err })
	wantFile(t, n.conf(), two)
	if s := n.await("no change", loaded); s.Applies != 1 {
		t.Errorf("applied %d times, want once: only the file was lost", s.Applies)
	}
}

// unconfigured is what BIRD starts from in its container while there is no bird.conf.
const unconfigured = "log stderr all;\nrouter id 192.0.0.8;\nprotocol static unconfigured { ipv6; }\n"

// TestApplierFirstOSPF: a BIRD that has never run on the node starts without OSPF and
// is given it then. So it does not take that for a restart, in which OSPF would
// announce nothing for two minutes.
func TestApplierFirstOSPF(t *testing.T) {
	t.Parallel()
	ns, tor := pair(t)
	n := &node{NS: ns, t: t}
	n.IP("-6 route add unreachable 2001:db8:100:1::/64 proto 85 metric 512")
	routingtest.StartBIRDWith(tor, fmt.Sprintf(ospfRouter, "0.0.0.0", "", "", "v2", ""))

	n.start()
	want := ospfNode(t, "    interfaces: [{name: eth0, helloSeconds: 1, deadSeconds: 4}]")
	n.set(want)
	n.await("bird to be missed", func(s State) bool { return errors.Is(s.Err, birdc.ErrAbsent) })
	if _, err := os.Stat(n.conf()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("bird.conf is there (%v): BIRD would start from it", err)
	}
	routingtest.StartBIRDWith(n.NS, unconfigured, "-R")
	if s := n.await("the configuration", loaded); s.Applies != 1 {
		t.Errorf("applied %d times, want once", s.Applies)
	}
	wantFile(t, n.conf(), want)
	wantExternal(t, tor, "2001:db8:100:1::/64")
}

// TestApplierRefused: what BIRD refuses neither runs nor is started from, by the
// running BIRD's judgement or by that of bird -p.
func TestApplierRefused(t *testing.T) {
	t.Parallel()
	good := Render(intent(t, 0))
	bad := bytes.Replace(good, []byte("hold time 9"), []byte("hold time 9 }"), 1)
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running=%t", running), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.set(good)
			n.await("bird to be missed", func(s State) bool { return errors.Is(s.Err, birdc.ErrAbsent) })
			if running {
				routingtest.StartBIRD(n.NS, n.conf())
				n.await("bird to be found", loaded)
			}
			n.set(bad)
			var refused *RefusedError
			n.await("a refusal", func(s State) bool { return errors.As(s.Err, &refused) })
			if !strings.Contains(refused.Error(), "syntax error") || !strings.Contains(refused.Error(), "bird.conf.new:") {
				t.Errorf("%v: want BIRD's own message with the place", refused)
			}
			wantFile(t, n.conf(), good)
			wantFile(t, refused.File, bad)
			if running {
				wantLoaded(t, n, good)
			}
			n.set(good)
			if running {
				if s := n.await("the good one", loaded); s.Applies != 0 {
					t.Errorf("applied %d times, want never: BIRD had it all the time", s.Applies)
				}
			} else {
				n.await("bird to be missed", func(s State) bool { return errors.Is(s.Err, birdc.ErrAbsent) })
			}
		})
	}
}

// TestApplierHung: a BIRD that does not answer is not taken for an absent one,
// and what was wanted meanwhile is applied when it answers again.
func TestApplierHung(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.set(Render(intent(t, 0)))
	n.await("bird to be missed", func(s State) bool { return errors.Is(s.Err, birdc.ErrAbsent) })
	daemon := routingtest.StartBIRD(n.NS, n.conf())
	n.await("bird to be found", loaded)

	daemon.Signal(syscall.SIGSTOP)
	two := Render(intent(t, 1))
	n.set(two)
	n.await("bird to be found hanging", func(s State) bool { return errors.Is(s.Err, os.ErrDeadlineExceeded) })
	daemon.Signal(syscall.SIGCONT)
	n.await("the second configuration", func(s State) bool { return s.Loaded && s.Applies == 1 })
	wantLoaded(t, n, two)
}

// TestApplierDiedBeforeConfirm: what an agent has configured and could not
// confirm any more, the next agent confirms, or BIRD would go back.
func TestApplierDiedBeforeConfirm(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	one, two := Render(intent(t, 0)), Render(intent(t, 1))
	n.set(one)
	n.await("bird to be missed", func(s State) bool { return errors.Is(s.Err, birdc.ErrAbsent) })
	routingtest.StartBIRD(n.NS, n.conf())
	n.await("bird to be found", loaded)
	n.stop()

	if err := os.WriteFile(n.conf(), two, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, n).Configure(t.Context(), birdc.Options{Undo: 20 * time.Second}); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.set(two)
	if s := n.await("bird to be found again", loaded); s.Applies != 0 {
		t.Errorf("applied %d times, want never", s.Applies)
	}
	if waits, err := dial(t, n).Unconfirmed(t.Context()); waits || err != nil {
		t.Errorf("BIRD still waits for a confirmation (%v)", err)
	}
}

func dial(t *testing.T, n *node) *birdc.Conn {
	t.Helper()
	c, err := birdc.Dial(t.Context(), n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func wantLoaded(t *testing.T, n *node, conf []byte) {
	t.Helper()
	routingtest.Eventually(t, 5*time.Second, func() error {
		if got, err := dial(t, n).Eval(t.Context(), digestSymbol); err != nil || got != digestIn(conf) {
			return fmt.Errorf("BIRD has loaded %s (%v), want %s", got, err, digestIn(conf))
		}
		return nil
	})
}

func wantFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %v, want\n%s\nhave\n%s", path, err, want, got)
	}
}
