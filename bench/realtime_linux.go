package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/timeslice"
	"flock.fritzlab.net/flock/lab/member"
)

// realTime is the priority of flock's programs while they have one, as realtimePriority of the
// chart gives it to them.
const realTime = 1

// inRealTime calls f while flock's agent and BIRD on a node have real-time priority, and so do the
// router's BIRDs: in the lab they share the processors, elsewhere a router has its own. A kernel
// with RT_GROUP_SCHED refuses it to containers. What the chart's value does with another kernel
// is to be measured with any, so there they are in the root of the cgroups meanwhile.
func inRealTime(node, router member.Member, f func() error) (err error) {
	pids, err := programsOn(node, "bird", "flock-agent")
	if err != nil {
		return err
	}
	birds, err := programsOn(router, "bird")
	if err != nil {
		return err
	}
	for _, pid := range append(pids, birds...) {
		back, raised := raise(pid)
		defer func() { err = errors.Join(err, back()) }()
		if raised != nil {
			return fmt.Errorf("real-time priority for process %d: %w", pid, raised)
		}
	}
	return f()
}

// programsOn are the processes of these programs in the lab's member, of each one at least.
func programsOn(node member.Member, programs ...string) (pids []int, err error) {
	var there unix.Stat_t
	if err := unix.Stat(node.NetNS(), &there); err != nil {
		return nil, err
	}
	files, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range files {
		comm, err := os.ReadFile(file)
		name := strings.TrimSpace(string(comm))
		if err != nil || !slices.Contains(programs, name) {
			continue // it has ended, or is another program
		}
		var ns unix.Stat_t
		if err := unix.Stat(filepath.Join(filepath.Dir(file), "ns/net"), &ns); err != nil || ns.Ino != there.Ino || ns.Dev != there.Dev {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		pids, names = append(pids, pid), append(names, name)
	}
	for _, program := range programs {
		if !slices.Contains(names, program) {
			return nil, fmt.Errorf("on %s runs no %s", node.Name(), program)
		}
	}
	return pids, nil
}

// raise gives all threads of a process real-time priority. back takes it away again, and is to
// be called also after an error.
func raise(pid int) (back func() error, err error) {
	group := ""
	back = func() error {
		err := timeslice.EachThread(strconv.Itoa(pid), os.ReadDir, timeslice.Lower)
		if group != "" {
			err = errors.Join(err, join(group, pid))
		}
		return err
	}
	all := func() error {
		return timeslice.EachThread(strconv.Itoa(pid), os.ReadDir, func(tid int) error { return timeslice.Raise(tid, realTime) })
	}
	err = all()
	if !errors.Is(err, unix.EPERM) {
		return back, err
	}
	home, rootErr := cpuGroup(pid)
	if rootErr != nil {
		return back, errors.Join(err, rootErr)
	}
	if err := join(cpuHierarchy, pid); err != nil {
		return back, err
	}
	group = home
	return back, all()
}

// cpuHierarchy is where cgroup v1 has its controller of processors. With v2 a kernel that has
// RT_GROUP_SCHED refuses real time in all cgroups but the root, which holds no containers.
const cpuHierarchy = "/sys/fs/cgroup/cpu"

// cpuGroup is the directory of a process's cgroup there.
func cpuGroup(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) { // "4:cpu,cpuacct:/path", cgroups(7)
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && slices.Contains(strings.Split(f[1], ","), "cpu") {
			return filepath.Join(cpuHierarchy, f[2]), nil
		}
	}
	return "", errors.New("the kernel refuses it to containers (RT_GROUP_SCHED), and there is no hierarchy of cgroup v1 to leave them")
}

func join(group string, pid int) error {
	return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}
