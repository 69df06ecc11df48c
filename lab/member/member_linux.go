// Package member makes the members of a lab: nodes, routers and hosts, each a set
// of namespaces on this machine (network, mount, host name, cgroup) with a view of
// the file system in which /run, /var, /etc and /opt are its own. The rest is the
// machine's.
//
// The namespaces are kept by bind mounts of their files below the lab's directory
// and so outlive every process in them. Nothing is put into /run/netns, where the
// next `ip netns add` would keep a second hold on it.
//
// The package keeps the machine's own namespaces as they are: what happens in a
// member stays there, and taking the member away leaves nothing.
package member

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/cgroup"
	"flock.fritzlab.net/flock/lab/state"
)

// kinds are the namespaces of a member, in the order in which one enters them.
var kinds = []struct {
	name string
	flag int
}{
	{"cgroup", unix.CLONE_NEWCGROUP},
	{"uts", unix.CLONE_NEWUTS},
	{"net", unix.CLONE_NEWNET},
	{"mnt", unix.CLONE_NEWNS},
}

// Member is one of a lab's machines.
type Member struct {
	dir  state.Dir
	name string
}

// Of is the member of that name, which need not exist.
func Of(dir state.Dir, name string) Member { return Member{dir, name} }

// Name is what the command line calls it: node1, tor, …
func (m Member) Name() string { return m.name }

// Dir is the lab that it belongs to.
func (m Member) Dir() state.Dir { return m.dir }

// NetNS is the file that keeps its network namespace.
func (m Member) NetNS() string { return m.pin("net") }

func (m Member) pin(kind string) string {
	return filepath.Join(m.dir.Namespaces(), m.name, kind)
}

// Exists reports whether all namespaces of the member exist.
func (m Member) Exists() bool {
	for _, k := range kinds {
		if !isNamespace(m.pin(k.name)) {
			return false
		}
	}
	return true
}

// isNamespace distinguishes a namespace from the empty file without a mount that is
// left after a restart of the machine.
func isNamespace(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// List names the members that a lab has anything of.
func List(dir state.Dir) ([]string, error) {
	entries, err := os.ReadDir(dir.Namespaces())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// Create creates the member's namespaces if any is missing, and reports whether it
// did. It also creates missing directories on disk.
func (m Member) Create() (made bool, err error) {
	if m.Exists() {
		return false, nil
	}
	if err := m.Remove(); err != nil {
		return false, err
	}
	for _, d := range disk {
		if err := os.MkdirAll(m.dir.Member(m.name, d.own), 0o755); err != nil {
			return false, err
		}
	}
	if err := privateMount(m.dir.Namespaces()); err != nil {
		return false, err
	}

	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{helperCreate, m.dir.Lab(), m.name}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is sent when this thread ends
	defer runtime.UnlockOSThread()
	var complaint strings.Builder
	cmd.Stderr = &complaint
	done, err := cmd.StdinPipe()
	if err != nil {
		return false, err
	}
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	defer func() {
		done.Close()
		err = errors.Join(err, cmd.Wait())
		if err != nil {
			err = fmt.Errorf("make the namespaces of %s: %s %w", m.name, strings.TrimSpace(complaint.String()), err)
		}
	}()
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		return false, errors.New("ended early")
	}
	return true, m.keep(cmd.Process.Pid)
}

// keep binds the namespaces of a process to files.
func (m Member) keep(pid int) error {
	for _, k := range kinds {
		pin := m.pin(k.name)
		if err := os.MkdirAll(filepath.Dir(pin), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(pin, nil, 0o444); err != nil {
			return err
		}
		from := fmt.Sprintf("/proc/%d/ns/%s", pid, k.name)
		if err := unix.Mount(from, pin, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s to %s: %w", from, pin, err)
		}
	}
	return nil
}

// privateMount makes dir a mount of its own that nothing propagates from: the
// kernel refuses to keep a mount namespace where it could end up inside itself.
func privateMount(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", dir, "", unix.MS_PRIVATE, "")
	if errors.Is(err, unix.EINVAL) { // not a mount yet
		if err = unix.Mount(dir, dir, "", unix.MS_BIND, ""); err == nil {
			err = unix.Mount("", dir, "", unix.MS_PRIVATE, "")
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a private mount: %w", dir, err)
	}
	return nil
}

// Remove ends every process of the member and takes its namespaces, with links
// and mounts, its cgroups and its files away. What is not there is no error.
func (m Member) Remove() error {
	tree, err := cgroup.ForLab(m.dir.Lab())
	if err != nil {
		return err
	}
	if err := endAll(tree, m.name); err != nil {
		return err
	}
	for _, k := range kinds {
		if err := release(m.pin(k.name)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(m.pin("")); err != nil {
		return err
	}
	return os.RemoveAll(m.dir.Member(m.name))
}

// RemoveAll takes away all that a lab has, members, mounts and files, whatever
// state it is in. The lab's lock must be held.
func RemoveAll(dir state.Dir) error {
	tree, err := cgroup.ForLab(dir.Lab())
	if err != nil {
		return err
	}
	if err := endAll(tree, ""); err != nil {
		return err
	}
	names, err := List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := Of(dir, name).Remove(); err != nil {
			return err
		}
	}
	if err := release(dir.Namespaces()); err != nil {
		return err
	}
	return dir.Remove()
}

// release undoes all mounts on path.
func release(path string) error {
	for {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// endPatience is how long killed processes may take to be gone.
const endPatience = 30 * time.Second

// endAll kills the processes in the member's cgroups, in all of the lab's if
// member is empty, and removes the groups. A group that holds none is busy for a
// moment after the last, or since one more came in.
func endAll(tree cgroup.Tree, member string) error {
	deadline := time.Now().Add(endPatience)
	var killed []int
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		pids, err := tree.Processes(member)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		killed = append(killed, pids...)
		if len(pids) == 0 {
			if err = tree.Remove(member); !errors.Is(err, unix.EBUSY) {
				awaitReaped(killed)
				return err
			}
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("processes %v do not end %s after SIGKILL: see /proc/PID/stack for what they wait for", pids, endPatience), err)
		}
		time.Sleep(wait)
	}
}

// awaitReaped waits for the machine's init to take note of processes that ended
// as its children: until then ps shows them. Some inits look every second only;
// one that does not look at all is not waited for.
func awaitReaped(pids []int) {
	deadline := time.Now().Add(5 * time.Second)
	for _, pid := range pids {
		for isZombie(pid) && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "Z")
}
