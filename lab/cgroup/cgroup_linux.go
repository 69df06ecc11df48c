// Package cgroup keeps the processes of a lab in control groups of their own, so
// that each of them is found and ended whatever became of its parent, its
// namespaces or the notes that the lab took of it.
//
//	flock-lab/LAB/MEMBER        root of the member's cgroup namespace:
//	                            its containerd makes k8s.io/… below it
//	flock-lab/LAB/MEMBER/lab    what the lab itself started there
//
// The tree is made in every hierarchy of the machine, version 1 and 2. The
// package never touches a group outside it and sets no limit.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const root = "flock-lab"

// Hierarchy is a mounted cgroup file system.
type Hierarchy struct {
	Mountpoint string
	// Options name the controllers of version 1, as in "cpu,cpuacct" or
	// "none,name=systemd"; empty for version 2.
	Options string
}

// V2 reports whether it is the unified hierarchy.
func (h Hierarchy) V2() bool { return h.Options == "" }

// Hierarchies are those mounted below /sys/fs/cgroup in this mount namespace.
func Hierarchies() ([]Hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []Hierarchy
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if h, ok := parse(lines.Text()); ok {
			found = append(found, h)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroup file system below /sys/fs/cgroup: mount one, the kubelet needs it")
	}
	return found, lines.Err()
}

// parse reads a line of proc_pid_mountinfo(5).
func parse(line string) (Hierarchy, bool) {
	before, after, ok := strings.Cut(line, " - ")
	head, tail := strings.Fields(before), strings.Fields(after)
	if !ok || len(head) < 6 || len(tail) < 3 || !strings.HasPrefix(head[4], "/sys/fs/cgroup") {
		return Hierarchy{}, false
	}
	switch tail[0] {
	case "cgroup2":
		return Hierarchy{Mountpoint: head[4]}, true
	case "cgroup":
		var opts []string
		for o := range strings.SplitSeq(tail[2], ",") {
			if o != "rw" && o != "ro" && o != "xattr" && o != "clone_children" && !strings.HasPrefix(o, "release_agent=") {
				opts = append(opts, o)
			}
		}
		if slices.ContainsFunc(opts, func(o string) bool { return strings.HasPrefix(o, "name=") }) {
			opts = append([]string{"none"}, opts...)
		}
		return Hierarchy{Mountpoint: head[4], Options: strings.Join(opts, ",")}, true
	}
	return Hierarchy{}, false
}

// Tree is the groups of one lab.
type Tree struct {
	lab         string
	hierarchies []Hierarchy
}

// ForLab is the tree of the lab, made or not.
func ForLab(lab string) (Tree, error) {
	h, err := Hierarchies()
	return Tree{lab, h}, err
}

// JoinRoot moves the calling process into the member's group, where it is to make
// its cgroup namespace.
func (t Tree) JoinRoot(member string) error { return t.join(root, t.lab, member) }

// Join moves the calling process into the group for the lab's own processes of
// the member.
func (t Tree) Join(member string) error {
	if err := t.join(root, t.lab, member, "lab"); err != nil {
		return err
	}
	// Version 2 has processes only in the leaves, and controllers only
	// where every group above hands them on.
	for _, h := range t.hierarchies {
		if !h.V2() {
			continue
		}
		for _, dir := range []string{"", root, filepath.Join(root, t.lab), filepath.Join(root, t.lab, member)} {
			if err := handOn(filepath.Join(h.Mountpoint, dir)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t Tree) join(elem ...string) error {
	for _, h := range t.hierarchies {
		dir := h.Mountpoint
		for _, e := range elem {
			parent := dir
			dir = filepath.Join(dir, e)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := inheritCPUs(parent, dir); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// inheritCPUs fills in what cgroup version 1 leaves empty in a new cpuset, and
// without which no process may join it (cpuset(7)).
func inheritCPUs(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(have)) != "" {
			continue
		}
		above, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(above)) == "" {
			continue // version 2: empty means inherited
		}
		if err := os.WriteFile(filepath.Join(dir, file), above, 0); err != nil {
			return err
		}
	}
	return nil
}

// handOn gives the controllers of a version 2 group to those below it.
func handOn(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	given, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for c := range strings.FieldsSeq(string(have)) {
		if slices.Contains(strings.Fields(string(given)), c) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("enable controller %s for the groups in %s: %w", c, dir, err)
		}
	}
	return nil
}

// Processes are the ids of all processes of the lab, or of one member if it is
// named.
func (t Tree) Processes(member string) ([]int, error) {
	seen := map[int]bool{}
	for _, h := range t.hierarchies {
		err := walk(filepath.Join(h.Mountpoint, root, t.lab, member), func(dir string) error {
			procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			for f := range strings.FieldsSeq(string(procs)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
					seen[pid] = true
				}
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	pids := make([]int, 0, len(seen))
	for pid := range seen {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}

// Container are the processes of a container that a member's containerd runs.
func (t Tree) Container(member, id string) ([]int, error) {
	return t.Processes(filepath.Join(member, "k8s.io", id))
}

// Exists reports whether any group of the lab exists.
func (t Tree) Exists() bool {
	return slices.ContainsFunc(t.hierarchies, func(h Hierarchy) bool {
		_, err := os.Stat(filepath.Join(h.Mountpoint, root, t.lab))
		return err == nil
	})
}

// Remove deletes the empty groups of the lab, or of one member if it is named.
// A group that still holds a process is an error.
func (t Tree) Remove(member string) error {
	for _, h := range t.hierarchies {
		var dirs []string
		err := walk(filepath.Join(h.Mountpoint, root, t.lab, member), func(dir string) error {
			dirs = append(dirs, dir)
			return nil
		})
		if err != nil {
			return err
		}
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if member != "" {
			continue
		}
		if err := os.Remove(filepath.Join(h.Mountpoint, root)); err != nil &&
			!errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

// walk calls visit for dir and all groups below it, parents first. What vanishes
// on the way is passed over.
func walk(dir string, visit func(string) error) error {
	gone := func(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case gone(err):
			return nil
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		}
		if err := visit(path); err != nil && !gone(err) {
			return err
		}
		return nil
	})
}

// MountOwn mounts the hierarchies again at /sys/fs/cgroup, which must be an empty
// directory of a new sysfs. In a cgroup namespace they begin at its root.
func MountOwn(hierarchies []Hierarchy) error {
	const base = "/sys/fs/cgroup"
	if len(hierarchies) == 1 && hierarchies[0].V2() {
		return mount("cgroup2", base, "")
	}
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", base, err)
	}
	for _, h := range hierarchies {
		if err := os.Mkdir(h.Mountpoint, 0o755); err != nil {
			return err
		}
		fstype := "cgroup"
		if h.V2() {
			fstype = "cgroup2"
		}
		if err := mount(fstype, h.Mountpoint, h.Options); err != nil {
			return err
		}
		// The kernel's "cpu,cpuacct" is also looked for as "cpu".
		controllers := strings.Split(filepath.Base(h.Mountpoint), ",")
		for _, c := range controllers {
			if len(controllers) < 2 {
				break
			}
			if err := os.Symlink(filepath.Base(h.Mountpoint), filepath.Join(base, c)); err != nil {
				return err
			}
		}
	}
	return nil
}

func mount(fstype, at, options string) error {
	if err := unix.Mount("cgroup", at, fstype, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", fstype, options, at, err)
	}
	return nil
}
