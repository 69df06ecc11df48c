//go:build cluster

package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/cgroup"
	"flock.fritzlab.net/flock/lab/state"
)

// The process's first thread stays in the machine's namespaces, because tests compare
// the lab's namespaces with its own. So no test runs on it. One that has entered a
// member of the lab for good would be ended, but the first thread cannot be.
func init() { runtime.LockOSThread() }

// machine is what `ip netns`, `ip link`, `mount`, `nft list ruleset` and the like
// show of this machine, a line an element. Other labs are left out: a person may
// bring one up or down meanwhile.
type machine map[string]bool

func observe(t *testing.T) machine {
	t.Helper()
	m := machine{}
	for _, argv := range [][]string{
		{"ip", "netns", "list"},
		{"ip", "-brief", "link"},
		{"ip", "-brief", "address"},
		{"ip", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"},
		{"nft", "list", "ruleset"},
		{"mount"},
		{"sysctl", "vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops", "kernel.keys.root_maxkeys"},
	} {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if err != nil {
			t.Fatalf("%s: %v", strings.Join(argv, " "), err)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, state.Root+"/") && !strings.Contains(line, state.Root+"/"+labName+"/") {
				continue
			}
			m[argv[0]+": "+strings.TrimSpace(line)] = true
		}
	}
	// Where a node on a machine of its own writes to.
	for _, dir := range []string{"/run", "/opt", "/opt/cni", "/etc", "/etc/cni", "/var/lib", "/var/log", "/var/lib/cni", "/root"} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			m["file: "+filepath.Join(dir, e.Name())] = true
		}
	}
	labs, err := os.ReadDir(state.Root)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if slices.ContainsFunc(labs, func(e os.DirEntry) bool { return e.Name() == labName }) {
		m["file: "+state.Root+"/"+labName] = true
	} else if len(labs) > 0 {
		delete(m, "file: "+state.Root)
	}
	return m
}

// more is what is there now and was not before.
func (before machine) more(after machine) []string {
	var lines []string
	for line := range after {
		if !before[line] {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines
}

// tracks are the processes and namespaces by which a lab is found after it says
// that it is gone.
type tracks struct {
	processes  map[string]bool // id and time of start
	namespaces map[string]bool // as in "net:[4026532177]"
}

// machineNamespaces are read before a test starts: the threads of this process that
// have entered a namespace of the lab's do not come back, and the first may be
// among them.
var machineNamespaces = namespaces(os.Getpid())

// trackLab collects all processes in the lab's cgroups and their namespaces, the
// pods' included, less those that are the machine's.
func trackLab(t *testing.T, lab string) tracks {
	t.Helper()
	tree, err := cgroup.ForLab(lab)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := tree.Processes("")
	if err != nil {
		t.Fatal(err)
	}
	found := tracks{map[string]bool{}, map[string]bool{}}
	for _, pid := range pids {
		if id, ok := identity(pid); ok {
			found.processes[id] = true
		}
		maps.Copy(found.namespaces, namespaces(pid))
	}
	for ns := range machineNamespaces {
		delete(found.namespaces, ns)
	}
	return found
}

// left are the processes of the machine, ended but not waited for included, that
// are on the tracks, this one aside: it is seen in the namespace of its first thread.
func (tr tracks) left(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, dir := range all {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		if pid == os.Getpid() {
			continue
		}
		id, ok := identity(pid)
		on := ok && tr.processes[id]
		for ns := range namespaces(pid) {
			on = on || tr.namespaces[ns]
		}
		if on {
			cmdline, _ := os.ReadFile(dir + "/cmdline")
			left = append(left, fmt.Sprintf("process %s: %s", id, strings.ReplaceAll(string(cmdline), "\x00", " ")))
		}
	}
	return left
}

// identity distinguishes a process from a later one with the same id.
func identity(pid int) (string, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", false
	}
	s := string(stat)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	return fmt.Sprintf("%d started %s", pid, fields[19]), true
}

func namespaces(pid int) map[string]bool {
	found := map[string]bool{}
	for _, kind := range []string{"net", "mnt", "uts", "cgroup", "ipc", "pid"} {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
			found[ns] = true
		}
	}
	return found
}

// leftNothing fails if the lab that was tracked, or anything since the machine
// was observed, is still there. What others do on the machine meanwhile passes.
func leftNothing(t *testing.T, lab string, before machine, tr tracks) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		left := append(before.more(observe(t)), tr.left(t)...)
		groups, err := filepath.Glob("/sys/fs/cgroup/*/flock-lab/" + lab)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, groups...)
		if len(left) > 0 {
			return fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
		}
		return nil
	})
}

// eventually polls until f returns nil and fails with its last word.
func eventually(t *testing.T, patience time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %v", patience, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}
