package watch

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
)

// hostProc is where deploy/ mounts the machine's /proc.
const hostProc = "/host/proc"

// processes is where all of the machine's processes are to be seen; empty if nowhere. The
// machine's own PID namespace has the same inode on every machine (PROC_PID_INIT_INO).
var processes = sync.OnceValue(func() string {
	if ns, err := sys.Readlink("/proc/self/ns/pid"); err == nil && ns == "pid:[4026531836]" {
		return "/proc"
	}
	if _, err := sys.Stat(hostProc + "/1/comm"); err == nil {
		return hostProc
	}
	return ""
})

// names are what processOf found lately: a program that makes many changes is looked up once.
var names struct {
	mu    sync.Mutex // guards all below
	since time.Time
	known map[uint32]string
}

// processOf names the process that has a netlink socket of a port ID in a network namespace. The
// kernel gives a process' first socket its process ID as port ID, and others numbers that no
// process has.
func processOf(node *os.File, port uint32) string {
	if port == 0 {
		return ""
	}
	names.mu.Lock()
	defer names.mu.Unlock()
	if time.Since(names.since) > 10*time.Second || len(names.known) > 256 {
		names.since, names.known = time.Now(), map[uint32]string{}
	}
	name, ok := names.known[port]
	if !ok {
		name = lookUp(node, port, processes())
		names.known[port] = name
	}
	return name
}

// lookUp looks for a port in a directory like /proc.
func lookUp(node *os.File, port uint32, proc string) (name string) {
	unknown := fmt.Sprintf("the process with netlink port %d", port)
	if proc == "" {
		return unknown + " (in most cases its process ID on the host)"
	}
	var found []string
	netns.Do(node, func() error {
		if port >= 1<<31 {
			found = socketOwner(port, proc)
		} else {
			found = withID(port, proc)
		}
		return nil
	})
	switch {
	case len(found) > 0:
		return strings.Join(found, " or ")
	case port >= 1<<31:
		return unknown
	}
	return fmt.Sprintf("a process that has ended (pid %d)", port)
}

// withID names the processes that have an ID in their own PID namespace and are in the
// calling thread's network namespace. It is their own namespace's ID that the kernel makes a port
// of: "1" is a container's program more often than the machine's init.
func withID(id uint32, proc string) (found []string) {
	here, err := sockets("/proc/thread-self/net/netlink")
	if err != nil {
		return nil
	}
	self, _ := sys.Readlink(proc + "/self")
	candidates := append([]string{fmt.Sprint(id)}, contained(proc)[id]...)
	for _, pid := range candidates {
		name, own, ok := readStatus(proc, pid)
		if !ok || own != id || pid == self {
			continue
		}
		there, err := sockets(filepath.Join(proc, pid, "net/netlink"))
		if err == nil && slices.ContainsFunc(there, func(s socket) bool { return slices.Contains(here, s) }) {
			found = append(found, fmt.Sprintf("%s (pid %s)", name, pid))
		}
	}
	return found
}

// inContainers are the processes in PID namespaces of their own, by the ID that they have there:
// to read the status of all processes takes tens of milliseconds on a large node.
var inContainers struct {
	proc  string
	since time.Time
	pids  map[uint32][]string
}

const inContainersFor = 10 * time.Second

// contained returns them as of lately. The caller holds names.mu, or is a test.
func contained(proc string) map[uint32][]string {
	c := &inContainers
	if c.proc == proc && time.Since(c.since) < inContainersFor {
		return c.pids
	}
	c.proc, c.since, c.pids = proc, time.Now(), map[uint32][]string{}
	all, _ := filepath.Glob(proc + "/[0-9]*")
	for _, dir := range all {
		pid := filepath.Base(dir)
		if _, own, ok := readStatus(proc, pid); ok && fmt.Sprint(own) != pid {
			c.pids[own] = append(c.pids[own], pid)
		}
	}
	return c.pids
}

// readStatus reads the name of a process and the ID in its own PID namespace (proc(5), NSpid). It
// is false of a thread of the kernel, which has no sockets.
func readStatus(proc, pid string) (name string, own uint32, ok bool) {
	b, err := sys.ReadFile(filepath.Join(proc, pid, "status"))
	if err != nil {
		return "", 0, false
	}
	value := func(key string) string {
		_, rest, _ := strings.Cut("\n"+string(b), "\n"+key+":")
		line, _, _ := strings.Cut(rest, "\n")
		return strings.TrimSpace(line)
	}
	ids := strings.Fields(value("NSpid"))
	if len(ids) == 0 || value("VmSize") == "" {
		return "", 0, false
	}
	n, err := strconv.ParseUint(ids[len(ids)-1], 10, 32)
	return value("Name"), uint32(n), err == nil
}

// socket is a netlink socket in a list of the kernel's.
type socket struct{ protocol, port, inode string }

// sockets reads a list of a network namespace's netlink sockets.
func sockets(path string) (all []socket, err error) {
	f, err := sys.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	table, err := io.ReadAll(f)
	for lines := bufio.NewScanner(bytes.NewReader(table)); lines.Scan(); {
		// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if f := strings.Fields(lines.Text()); len(f) == 10 && f[9] != "0" && f[9] != "Inode" {
			all = append(all, socket{f[1], f[2], f[9]})
		}
	}
	return all, err
}

// socketOwner looks through all processes for those with a socket of a port ID in the calling
// thread's network namespace. It cannot look into processes with more rights than its own.
func socketOwner(port uint32, proc string) (found []string) {
	const route = "0" // NETLINK_ROUTE
	all, _ := sockets("/proc/thread-self/net/netlink")
	i := slices.IndexFunc(all, func(s socket) bool { return s.protocol == route && s.port == fmt.Sprint(port) })
	if i < 0 {
		return nil
	}
	fds, _ := filepath.Glob(proc + "/[0-9]*/fd/*")
	for _, fd := range fds {
		if to, err := sys.Readlink(fd); err == nil && to == "socket:["+all[i].inode+"]" {
			pid := filepath.Base(filepath.Dir(filepath.Dir(fd)))
			if name, _, ok := readStatus(proc, pid); ok {
				return []string{fmt.Sprintf("%s (pid %s)", name, pid)}
			}
		}
	}
	return nil
}
