package nettest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/netns"
)

// NS is a network namespace that belongs to one test. Its loopback is up.
type NS struct {
	t    testing.TB
	file *os.File
}

// New makes a network namespace; the test's cleanup gives it up. The kernel
// deletes it, and every link in it, once no process and no file holds it.
func New(t testing.TB) *NS {
	t.Helper()
	file, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	n := &NS{t: t, file: file}
	t.Cleanup(n.Delete)
	var up error
	n.Run(func() { up = loopbackUp() })
	if up != nil {
		t.Fatalf("set the loopback up: %v", up)
	}
	return n
}

// loopbackUp asks the kernel itself: tests make namespaces by the thousand.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// File is the namespace's descriptor, as a container runtime's netns path
// opened. It stays the namespace's own: the caller must not close it.
func (n *NS) File() *os.File { return n.file }

// Delete gives the namespace up before the test ends: links in it, and their
// other ends, go some time after.
func (n *NS) Delete() { n.file.Close() }

// Path names the namespace for programs that want a path. It is good as long as
// this process holds the namespace.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Run calls f on the calling goroutine, with its thread in the namespace during the
// call. Processes that f starts are in it too; goroutines that f starts are
// not. f may end the test.
func (n *NS) Run(f func()) {
	n.t.Helper()
	runtime.LockOSThread()
	before, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		n.t.Fatal(err)
	}
	defer before.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		n.t.Fatalf("enter the test's network namespace: %v", err)
	}
	defer func() {
		if err := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); err != nil {
			// The thread must not run anything else: it stays locked, and ends
			// with the test's goroutine.
			n.t.Errorf("leave the test's network namespace: %v", err)
			return
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// Try runs a program in the namespace and returns its output, both streams.
func (n *NS) Try(name string, args ...string) (string, error) {
	n.t.Helper()
	var out []byte
	var err error
	n.Run(func() { out, err = exec.Command(name, args...).CombinedOutput() })
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// Exec is Try for what must succeed.
func (n *NS) Exec(name string, args ...string) string {
	n.t.Helper()
	out, err := n.Try(name, args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// IP runs iproute2's ip in the namespace; the test fails if it fails.
func (n *NS) IP(args ...string) string {
	n.t.Helper()
	return n.Exec("ip", args...)
}

// Sysctl writes value to /proc/sys/net/name (slashes, as in the path) in the
// namespace.
func (n *NS) Sysctl(name, value string) {
	n.t.Helper()
	n.Run(func() {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644); err != nil {
			n.t.Fatal(err)
		}
	})
}

// ReadSysctl is what /proc/sys/net/name holds in the namespace.
func (n *NS) ReadSysctl(name string) string {
	n.t.Helper()
	var b []byte
	var err error
	n.Run(func() { b, err = os.ReadFile("/proc/sys/net/" + name) })
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// Veth connects the namespace to another by a pair of links: name here, peerName
// there. Both are up and carry packets, and have their link-local address; no
// address on them is ever tentative.
func (n *NS) Veth(name string, peer *NS, peerName string) {
	n.t.Helper()
	n.IP("link", "add", name, "type", "veth", "peer", "name", peerName, "netns", peer.Path())
	ends := map[*NS]string{n: name, peer: peerName}
	for ns, name := range ends {
		ns.Sysctl("ipv6/conf/"+name+"/accept_dad", "0")
		ns.IP("link", "set", name, "up")
	}
	for ns, name := range ends {
		Await(n.t, "carrier on "+name, func() bool {
			// The query also makes the kernel start to send (Linux 6.8).
			return strings.Contains(ns.IP("link", "show", "dev", name), "state UP")
		})
		Await(n.t, "a link-local address on "+name, func() bool {
			return strings.Contains(ns.IP("-6", "route", "show", "table", "local", "dev", name), "local fe80:")
		})
	}
}

// Address puts an address on a link and returns when packets to it are
// delivered, which the kernel leaves to a worker for IPv6.
func (n *NS) Address(dev, prefix string) {
	n.t.Helper()
	ip := netip.MustParsePrefix(prefix).Addr()
	if ip.Is4() {
		n.IP("address", "add", prefix, "dev", dev)
	} else {
		n.IP("address", "add", prefix, "dev", dev, "nodad")
	}
	Await(n.t, prefix+" on "+dev, func() bool {
		return strings.HasPrefix(n.IP("route", "get", ip.String()), "local ")
	})
}
