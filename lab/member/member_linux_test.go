package member

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/cgroup"
	"flock.fritzlab.net/flock/lab/state"
)

func TestMain(m *testing.M) {
	RunHelper()
	os.Exit(m.Run())
}

func testLab(t *testing.T, lab string) state.Dir {
	t.Helper()
	dir, err := state.For(fmt.Sprintf("%s-%d", lab, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, dir) })
	return dir
}

func remove(t *testing.T, dir state.Dir) {
	t.Helper()
	if err := RemoveAll(dir); err != nil {
		t.Error(err)
	}
	if tree, err := cgroup.ForLab(dir.Lab()); err != nil || tree.Exists() || dir.Exists() {
		t.Errorf("the lab left something behind: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir.Path()) {
		t.Errorf("a mount below %s is left (%v)", dir.Path(), err)
	}
}

func create(t *testing.T, dir state.Dir, name string) Member {
	t.Helper()
	m := Of(dir, name)
	if made, err := m.Create(); err != nil || !made {
		t.Fatalf("create %s: made %v, %v", name, made, err)
	}
	return m
}

func output(t *testing.T, m Member, argv ...string) string {
	t.Helper()
	out, err := m.Command("", argv...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s on %s: %v: %s", strings.Join(argv, " "), m.Name(), err, out)
	}
	return strings.TrimSpace(string(out))
}

// A member is a machine of its own: name, network, /run, /var, /etc, cgroups.
func TestMemberIsItsOwn(t *testing.T) {
	dir := testLab(t, "own")
	m := create(t, dir, "node1")

	if got := output(t, m, "hostname"); got != "node1" {
		t.Errorf("hostname %q", got)
	}
	if got := output(t, m, "ls", "/sys/class/net"); got != "lo" {
		t.Errorf("links %q, want lo alone", got)
	}
	cgroups := output(t, m, "cat", "/proc/self/cgroup")
	for line := range strings.Lines(cgroups) {
		if !strings.HasSuffix(strings.TrimSpace(line), ":/lab") {
			t.Errorf("cgroup %s: want the namespace's own /lab", line)
		}
	}
	stray := "flock-lab-" + dir.Lab()
	for _, path := range []string{"/run/", "/var/lib/", "/etc/", "/opt/"} {
		output(t, m, "touch", path+stray)
		if _, err := os.Stat(path + stray); err == nil {
			t.Errorf("%s is the machine's", path)
			os.Remove(path + stray)
		}
	}
	// What is on its disk, both sides see.
	output(t, m, "touch", "/etc/cni/net.d/10-a.conflist")
	if _, err := os.Stat(dir.Member("node1", "cni", "net.d", "10-a.conflist")); err != nil {
		t.Error(err)
	}
	// What it does to the kernel for all, it does to a copy.
	was, err := os.ReadFile("/proc/sys/kernel/panic")
	if err != nil {
		t.Fatal(err)
	}
	output(t, m, "sh", "-c", "echo 77 >/proc/sys/kernel/panic")
	if is, err := os.ReadFile("/proc/sys/kernel/panic"); err != nil || string(is) != string(was) {
		t.Errorf("kernel.panic of the machine was %s, is %s (%v)", was, is, err)
	}
}

func TestCommandKeepsExitStatusAndDirectory(t *testing.T) {
	m := create(t, testLab(t, "exit"), "tor")
	err := m.Command("", "sh", "-c", "exit 42").Run()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 42 {
		t.Errorf("exit 42: %v", err)
	}
	err = m.Command("", "no-such-program").Run()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 127 {
		t.Errorf("no such program: %v", err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, m, "pwd"); got != wd {
		t.Errorf("working directory %s, want %s", got, wd)
	}
}

// Create replaces a member of which only parts are left. It does not change a complete
// one.
func TestCreateConverges(t *testing.T) {
	dir := testLab(t, "converge")
	m := create(t, dir, "node1")
	if made, err := m.Create(); err != nil || made {
		t.Errorf("over a whole one: made %v, %v", made, err)
	}
	for _, kind := range []string{"net", "mnt"} {
		left := m.Command("", "sleep", "1000")
		if err := left.Start(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Unmount(m.pin(kind), unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if m.Exists() {
			t.Fatalf("exists without %s", kind)
		}
		if made, err := m.Create(); err != nil || !made || !m.Exists() {
			t.Errorf("without %s: made %v, %v", kind, made, err)
		}
		if err := left.Wait(); err == nil {
			t.Error("a process of the old namespaces went on")
		}
		output(t, m, "true")
	}
}

// A member that another is made beside does not hold on to it: with the last of
// its processes its namespaces are gone.
func TestMembersDoNotHoldEachOther(t *testing.T) {
	first, second := testLab(t, "first"), testLab(t, "second")
	a := create(t, first, "node1")
	b := create(t, second, "node1")
	info, err := os.Stat(a.NetNS())
	if err != nil {
		t.Fatal(err)
	}
	remove(t, first)
	if mounts := output(t, b, "cat", "/proc/self/mountinfo"); strings.Contains(mounts, "nsfs") {
		t.Errorf("the other lab's member holds namespaces: %s", mounts)
	}
	all, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(all, func(p string) bool { i, err := os.Stat(p); return err == nil && os.SameFile(i, info) }) {
		t.Error("a process is left in the network namespace")
	}
}
