package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/cgroup"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/state"
)

func TestMain(m *testing.M) {
	member.RunHelper()
	os.Exit(m.Run())
}

// testMember is a member of a lab of the test's own, which leaves nothing.
func testMember(t *testing.T, lab string) member.Member {
	t.Helper()
	dir, err := state.For(fmt.Sprintf("%s-%d", lab, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	m := member.Of(dir, "node1")
	t.Cleanup(func() {
		if err := member.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		if tree, err := cgroup.ForLab(dir.Lab()); err != nil || tree.Exists() || dir.Exists() {
			t.Errorf("the lab left something behind: %v", err)
		}
	})
	if made, err := m.Create(); err != nil || !made {
		t.Fatalf("create: made %v, %v", made, err)
	}
	return m
}

func TestEnsure(t *testing.T) {
	m := testMember(t, "ensure")
	input := filepath.Join(t.TempDir(), "config")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(input, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	spec := Spec{Member: m, Name: "sleeper", Argv: []string{"sleep", "1000"}, Inputs: []string{input}}
	ensure := func() (*Process, bool) {
		t.Helper()
		p, started, err := Ensure(spec)
		if err != nil {
			t.Fatal(err)
		}
		if !p.Running() {
			t.Fatalf("%s does not run", p.Name)
		}
		return p, started
	}

	first, started := ensure()
	if !started {
		t.Error("the first is not started")
	}
	if same, started := ensure(); started || same.PID != first.PID {
		t.Error("a process that runs as specified was restarted")
	}
	write("two")
	second, started := ensure()
	if !started || first.Running() {
		t.Error("a changed input did not replace the process")
	}
	spec.Argv = []string{"sleep", "1001"}
	third, started := ensure()
	if !started || second.Running() {
		t.Error("other arguments did not replace the process")
	}
	if err := unix.Kill(third.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for third.Running() {
		time.Sleep(time.Millisecond)
	}
	if _, started := ensure(); !started {
		t.Error("a process that died was not started")
	}
	all, err := List(m)
	if err != nil || len(all) != 1 || !all[0].Running() {
		t.Errorf("list: %v, %v", all, err)
	}
}

// An id that belongs to another process by now is neither believed nor ended.
func TestForeignPID(t *testing.T) {
	m := testMember(t, "foreign")
	spec := Spec{Member: m, Name: "sleeper", Argv: []string{"sleep", "1000"}}
	p, _, err := Ensure(spec)
	if err != nil {
		t.Fatal(err)
	}
	p.PID, p.Started = os.Getpid(), p.Started+1
	if p.Running() {
		t.Error("took this test for the process")
	}
	if err := p.Stop(time.Second); err != nil { // would end this test
		t.Error(err)
	}
}

// A process that ignores SIGTERM is ended all the same.
func TestStop(t *testing.T) {
	m := testMember(t, "stop")
	ready := filepath.Join(t.TempDir(), "ready")
	p, _, err := Ensure(Spec{Member: m, Name: "stubborn", Argv: []string{"sh", "-c", "trap '' TERM; touch " + ready + "; while :; do sleep 1; done"}})
	if err != nil {
		t.Fatal(err)
	}
	err = Await(t.Context(), "the trap", []*Process{p}, func(context.Context) error { _, err := os.Stat(ready); return err })
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(50 * time.Millisecond); err != nil || p.Running() {
		t.Errorf("still there: %v", err)
	}
}

func TestAwait(t *testing.T) {
	m := testMember(t, "await")
	p, _, err := Ensure(Spec{Member: m, Name: "failing", Argv: []string{"sh", "-c", "echo the disk is full >&2; exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	never := func(context.Context) error { return errors.New("not yet") }
	err = Await(t.Context(), "a miracle", []*Process{p}, never)
	if err == nil || !strings.Contains(err.Error(), "failing on node1 ended") || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("a process that ended: %v", err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, errors.New("gave up"))
	defer cancel()
	err = Await(ctx, "a miracle", nil, never)
	if err == nil || !strings.Contains(err.Error(), "a miracle") || !strings.Contains(err.Error(), "not yet") || !strings.Contains(err.Error(), "gave up") {
		t.Errorf("no patience left: %v", err)
	}
}

// What cannot be started is said at once, not left to a log.
func TestStartFails(t *testing.T) {
	m := testMember(t, "nostart")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/no/such/shell\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if p, _, err := Ensure(Spec{Member: m, Name: "script", Argv: []string{script}}); err == nil || !strings.Contains(err.Error(), "start script on node1") || !strings.Contains(err.Error(), script) {
		t.Errorf("no such interpreter: %v, %v", p, err)
	}
	if p, _, err := Ensure(Spec{Member: m, Name: "none", Argv: []string{"no-such-program"}}); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("no such program: %v, %v", p, err)
	}
}
