package routingtest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/internal/nettest"
)

// NS is a network namespace of one test.
type NS struct {
	// Role of the namespace in the test, for its log.
	Role string
	// Dir is a directory of the test for daemons in the namespace. Its path is
	// short enough for unix sockets.
	Dir string

	t   *testing.T
	net *nettest.NS
}

// NewNS makes a namespace with its loopback up. It is gone after t.
func NewNS(t *testing.T, role string) *NS {
	t.Helper()
	dir, err := os.MkdirTemp("", "flock-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &NS{Role: role, Dir: dir, t: t, net: nettest.New(t)}
}

// Inside runs f in the namespace: what it opens stays there.
func (ns *NS) Inside(f func() error) {
	ns.t.Helper()
	var err error
	if ns.net.Run(func() { err = f() }); err != nil {
		ns.t.Fatal(err)
	}
}

// IP runs ip(8) in the namespace with the words of args.
func (ns *NS) IP(args string) string {
	ns.t.Helper()
	return ns.net.IP(strings.Fields(args)...)
}

// IPBatch runs the lines of an IPv6 batch of ip(8) in the namespace.
func (ns *NS) IPBatch(lines string) {
	ns.t.Helper()
	cmd := ns.Command("ip", "-6", "-batch", "-")
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil {
		ns.t.Fatalf("ip -batch: %v: %s", err, out)
	}
}

// Sysctl writes value to /proc/sys/net/name in the namespace.
func (ns *NS) Sysctl(name, value string) {
	ns.t.Helper()
	ns.net.Sysctl(name, value)
}

// Command prepares a program to run in the namespace, in the test's directory.
func (ns *NS) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + ns.net.Path(), name}, args...)...)
	cmd.Dir = ns.Dir
	return cmd
}

// Connect links two namespaces by interfaces of the given names, both up.
func Connect(a *NS, aName string, b *NS, bName string) {
	a.t.Helper()
	a.IP(fmt.Sprintf("link add %s type veth peer name %s netns %s", aName, bName, b.net.Path()))
	a.IP("link set " + aName + " up")
	b.IP("link set " + bName + " up")
}

// Route is a route as "ip -j route" shows it.
type Route struct {
	Type     string `json:"type"`
	Dst      string `json:"dst"`
	Gateway  string `json:"gateway"`
	Via      Via    `json:"via"`
	Dev      string `json:"dev"`
	Protocol string `json:"protocol"`
	Metric   int    `json:"metric"`
	PrefSrc  string `json:"prefsrc"`
	NextHops []Hop  `json:"nexthops"`
	Family   int    `json:"-"` // 6 or 4
}

// Prefix is Dst with its length, as in 0.0.0.0/0 and 192.0.2.1/32.
func (r Route) Prefix() string {
	dst, v6 := r.Dst, r.Family == 6
	switch {
	case dst == "default" && v6:
		return "::/0"
	case dst == "default":
		return "0.0.0.0/0"
	case strings.Contains(dst, "/"):
		return dst
	case v6:
		return dst + "/128"
	}
	return dst + "/32"
}

// Via is a gateway of the other family.
type Via struct {
	Host string `json:"host"`
}

// Hop is one path of a route with several.
type Hop struct {
	Gateway string `json:"gateway"`
	Via     Via    `json:"via"`
	Dev     string `json:"dev"`
}

// Routes lists the routes of both families that match the words of selector, for
// example "proto bird".
func (ns *NS) Routes(selector string) []Route {
	ns.t.Helper()
	var all []Route
	for _, family := range []string{"-6", "-4"} {
		var rs []Route
		out := ns.IP("-j " + family + " route show " + selector)
		if err := json.Unmarshal([]byte(out), &rs); out != "" && err != nil {
			ns.t.Fatalf("ip -j route: %v in %s", err, out)
		}
		for _, r := range rs {
			r.Family = int(family[1] - '0')
			all = append(all, r)
		}
	}
	return all
}

// sessionWithin is how long a session may take to come up on a busy machine.
const sessionWithin = 90 * time.Second

// Eventually calls check until it returns nil, and fails the test when it has not
// within the time given.
func Eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %v", within, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Monitor follows what happens to objects of the namespace (route, link …). The
// function that it returns ends that and gives what was seen, as ip(8) prints it, less
// the routes that the kernel makes by itself: it adds those of a link-local address
// whenever duplicate address detection ends.
func (ns *NS) Monitor(object string) (seen func() string) {
	ns.t.Helper()
	var out lockedBuffer
	cmd := ns.Command("ip", "monitor", object)
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		ns.t.Fatal(err)
	}
	ns.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	// It listens once it shows a change that this makes.
	Eventually(ns.t, 5*time.Second, func() error {
		ns.IP("route replace unreachable 192.0.2.255 proto 254")
		ns.IP("route del unreachable 192.0.2.255 proto 254")
		if !strings.Contains(out.String(), "192.0.2.255") {
			return fmt.Errorf("ip monitor shows nothing")
		}
		return nil
	})
	return func() string {
		cmd.Process.Kill()
		cmd.Wait()
		var lines []string
		for line := range strings.Lines(out.String()) {
			if !strings.Contains(line, "192.0.2.255") && !strings.Contains(line, " proto kernel ") {
				lines = append(lines, line)
			}
		}
		return strings.Join(lines, "")
	}
}
