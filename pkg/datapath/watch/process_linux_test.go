package watch

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/netlink"
)

// helperEnv has this binary name the process of a port in a PID namespace of its own, as the
// agent's container does: the directory like /proc, and the port. The network namespace of the
// node is file descriptor 3.
const helperEnv = "FLOCK_TEST_NAME_PROCESS"

func TestMain(m *testing.M) {
	if dir, port, ok := strings.Cut(os.Getenv(helperEnv), " "); ok {
		n, _ := strconv.ParseUint(port, 10, 32)
		fmt.Println(lookUp(os.NewFile(3, "node"), uint32(n), dir))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A process is named by any of its sockets, and one that has ended by what it was.
func TestProcessOf(t *testing.T) {
	if processes() != "/proc" {
		t.Skip("the test runs in a PID namespace of its own")
	}
	this := fmt.Sprintf("(pid %d)", os.Getpid())
	ns := nettest.New(t)
	node := ns.File()
	if name := lookUp(node, 1<<22+1, "/proc"); !strings.Contains(name, "has ended") {
		t.Errorf("no process: %q", name)
	}
	if name := lookUp(node, 2, "/proc"); !strings.Contains(name, "has ended") {
		t.Errorf("a thread of the kernel: %q", name)
	}
	if name := lookUp(node, uint32(os.Getppid()), "/proc"); !strings.Contains(name, "has ended") {
		t.Errorf("a process of another network namespace: %q", name)
	}
	if name := processOf(node, 0); name != "" {
		t.Errorf("the kernel: %q", name)
	}
	if name := lookUp(node, 4711, ""); !strings.Contains(name, "port 4711") {
		t.Errorf("where no process can be seen: %q", name)
	}
	for range 2 { // the second socket, at the latest, has a number that no process has
		var fd int
		ns.Run(func() {
			var err error
			if fd, err = netlink.Open(unix.NETLINK_ROUTE); err != nil {
				t.Fatal(err)
			}
		})
		defer unix.Close(fd)
		name, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		port := name.(*unix.SockaddrNetlink).Pid
		if port < 1<<31 {
			continue // of the process' ID, but the process is in another network namespace
		}
		if name := lookUp(node, port, "/proc"); !strings.Contains(name, this) {
			t.Errorf("port %d is of %q, want %s", port, name, this)
		}
	}
}

// The agent's container has a PID namespace of its own, and so has another program's: each
// program is named by what the machine calls it.
func TestProcessOfOtherPIDNamespaces(t *testing.T) {
	if processes() != "/proc" {
		t.Skip("the test runs in a PID namespace of its own")
	}
	ns := nettest.New(t)
	// start runs a program in the node's network namespace until the test ends, and waits
	// until it has its socket.
	start := func(args ...string) *exec.Cmd {
		t.Helper()
		var cmd *exec.Cmd
		ns.Run(func() {
			cmd = exec.Command(args[0], args[1:]...)
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
			// It prints a change that it hears of.
			heard := make(chan bool)
			go func() { heard <- bufio.NewScanner(out).Scan() }()
			nettest.Await(t, "the program listens", func() bool {
				ns.IP("link", "set", "lo", "alias", "x")
				select {
				case ok := <-heard:
					return ok
				default:
					return false
				}
			})
		})
		return cmd
	}
	host := start("ip", "monitor", "link")
	contained := start("unshare", "--pid", "--fork", "--kill-child", "ip", "monitor", "link")
	inContainers.since = time.Time{}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", contained.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		port int
		want string
	}{
		{host.Process.Pid, fmt.Sprintf("ip (pid %d)", host.Process.Pid)},
		{1, fmt.Sprintf("ip (pid %s)", strings.TrimSpace(string(children)))},
		{1<<22 + 1, "a process that has ended (pid 4194305)"},
	} {
		if got := lookUp(ns.File(), uint32(tc.port), "/proc"); got != tc.want {
			t.Errorf("port %d is of %q, want %q", tc.port, got, tc.want)
		}
		dir := t.TempDir()
		agent := exec.Command("unshare", "--pid", "--fork", "--mount", "sh", "-ec",
			fmt.Sprintf("mount --bind /proc %s; mount -t proc proc /proc; exec setpriv --bounding-set=-all,+net_admin,+sys_admin,+sys_chroot --inh-caps=-all,+net_admin,+sys_admin %s", dir, os.Args[0]))
		agent.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", helperEnv, dir, tc.port))
		agent.ExtraFiles = []*os.File{ns.File()}
		if out, err := agent.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != tc.want {
			t.Errorf("in the agent's container port %d is of %q, %v, want %q", tc.port, out, err, tc.want)
		}
	}
}
