//go:build cluster

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/cgroup"
	"flock.fritzlab.net/flock/lab/plan"
)

// ownNodeOnly: with the token of an agent's pod one may write that node's NodeConfig
// if it is made from a template, its status, and nothing else.
func ownNodeOnly(t *testing.T) {
	const status, spec = `{"status":{"observedGeneration":1}}`, `{"spec":{"mtu":1400}}`
	pod := agentPods(t, "--field-selector=spec.nodeName=node1",
		"--output=jsonpath={.items[0].metadata.name} {.items[0].metadata.uid}")
	name, uid, _ := strings.Cut(pod, " ")
	token := func(args ...string) string {
		return strings.TrimSpace(mustKubectl(t, append([]string{"--namespace=flock-system", "create", "token", "flock"}, args...)...))
	}
	inPod := token("--bound-object-kind=Pod", "--bound-object-name="+name, "--bound-object-uid="+uid)
	claim := strings.TrimSpace(mustKubectl(t, "get", "addressclaims", "--output=jsonpath={.items[?(@.spec.services)].metadata.name}"))
	claim, _, _ = strings.Cut(claim, " ") // of the Service of the proof
	asStatus := func(node string) []string {
		return []string{"patch", "nodeconfig", node, "--subresource=status", "--type=merge", "--patch=" + status}
	}
	for _, c := range []struct {
		name, token string
		args        []string
		refusal     string // empty if it is allowed
	}{
		{"status of its own", inPod, asStatus("node1"), ""},
		{"status of another", inPod, asStatus("node2"), `the agent on node "node1" may write its own NodeConfig and its status only, not that of "node2"`},
		{"token of no pod", token(), asStatus("node1"), `the agent on node "" may write`},
		{"spec of its own", inPod, []string{"patch", "nodeconfig", "node1", "--type=merge", "--patch=" + spec}, "cannot patch resource"},
		{"read", inPod, []string{"get", "nodeconfigs"}, ""},
		{"claim of a Service", inPod, []string{"delete", "addressclaim", claim}, `the agent on node "node1" may claim and release addresses for its own node only, not for ""`},
		{"address of a Service", inPod, []string{"patch", "service", "public", "--namespace=demo", "--subresource=status", "--type=merge", `--patch={"status":{"loadBalancer":{}}}`}, `cannot get resource "services/status"`},
		{"secrets", inPod, []string{"get", "secrets", "--all-namespaces"}, "cannot list resource"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Without the administrator's certificate, which would go first.
			server := fmt.Sprintf("https://[%s]:6443", plan.ControlPlaneLAN.IPv6.Addr())
			out, err := lab(append([]string{"exec", plan.ControlPlane, "--", "env", "KUBECONFIG=/dev/null",
				"kubectl", "--server=" + server, "--insecure-skip-tls-verify", "--token=" + c.token}, c.args...)...)
			switch {
			case c.refusal == "" && err != nil:
				t.Errorf("refused: %s", out)
			case c.refusal != "" && (err == nil || !strings.Contains(out, c.refusal)):
				t.Errorf("answer %q, %v: want %q", out, err, c.refusal)
			}
		})
	}
}

// replaceFlock: flock's pods are replaced one by one, then every BIRD and every
// agent is killed. Meanwhile a pod on each node goes on answering the outside
// host, and the router never loses a route to the nodes' pods.
func replaceFlock(t *testing.T) {
	began := time.Now()
	routes := watchRoutes(t)
	var asked []*asking
	for _, n := range plan.Nodes(3) {
		for _, url := range demoURLs(t, n.Name()) {
			asked = append(asked, ask(t, url))
		}
	}

	mustKubectl(t, "--namespace=flock-system", "rollout", "restart", "daemonset/flock")
	mustKubectl(t, "--namespace=flock-system", "rollout", "status", "daemonset/flock", "--timeout=180s")
	t.Logf("rolled out again in %s", time.Since(began).Round(100*time.Millisecond))
	sessionsUp(t)

	for _, program := range []string{"/usr/sbin/bird", "/usr/local/bin/flock-agent"} {
		killed := 0
		for _, n := range plan.Nodes(3) {
			killed += killOn(t, n.Name(), program)
		}
		if killed != 3 {
			t.Errorf("%d of %s killed, want 3", killed, program)
		}
		eventually(t, time.Minute, func() error {
			ready := agentPods(t, "--output=jsonpath={range .items[*].status.containerStatuses[*]}{.name}={.ready},{.restartCount} {end}")
			container := map[string]string{"/usr/sbin/bird": "bird", "/usr/local/bin/flock-agent": "agent"}[program]
			if strings.Count(ready, container+"=true,1 ") != 3 || strings.Contains(ready, "false") {
				return fmt.Errorf("containers: %s", ready)
			}
			return nil
		})
		sessionsUp(t)
	}
	shortTurns(t)

	for _, a := range asked {
		a.allAnswered(t)
	}
	routes.noneLost(t)
}

// shortTurns: the threads of both that a withdrawal passes, as the kernel has them.
func shortTurns(t *testing.T) {
	t.Helper()
	const slice = 100 * time.Microsecond
	for _, n := range plan.Nodes(3) {
		for _, program := range []string{"/usr/sbin/bird", "/usr/local/bin/flock-agent"} {
			threads := 0
			for _, pid := range running(t, n.Name(), program) {
				tasks, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
				if err != nil {
					t.Fatal(err)
				}
				for _, task := range tasks {
					tid, err := strconv.Atoi(task.Name())
					if err != nil {
						t.Fatal(err)
					}
					attr, err := unix.SchedGetAttr(tid, 0)
					if errors.Is(err, unix.ESRCH) {
						continue // ended meanwhile
					}
					if err != nil || attr.Runtime != uint64(slice.Nanoseconds()) {
						t.Errorf("%s on %s, thread %d: %+v, %v: want slices of %v", program, n.Name(), tid, attr, err, slice)
					}
					threads++
				}
			}
			if threads == 0 {
				t.Errorf("%s does not run on %s", program, n.Name())
			}
		}
	}
}

// sessionsUp waits until the router has a session with every node and family,
// each recovered: a BIRD that ends again before that does lose its routes, as
// RFC 4724 section 4.2 wants it ("consecutive restarts").
func sessionsUp(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		out, err := lab("exec", plan.Tor, "--", "birdc", "show", "protocols", "all")
		if err != nil || strings.Count(out, "BGP state:          Established") != 6 || strings.Contains(out, "graceful restart active") {
			return fmt.Errorf("want 6 sessions, none of them in a restart: %v\n%s", err, out)
		}
		return nil
	})
}

// killOn kills what runs program on a node, and counts.
func killOn(t *testing.T, node, program string) (killed int) {
	t.Helper()
	for _, pid := range running(t, node, program) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed++
	}
	return killed
}

// running are the processes of a node that run program.
func running(t *testing.T, node, program string) (found []int) {
	t.Helper()
	tree, err := cgroup.ForLab(labName)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := tree.Processes(node)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		cmdline, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err != nil {
			continue // ended meanwhile
		}
		if argv0, _, _ := strings.Cut(string(cmdline), "\x00"); argv0 == program {
			found = append(found, pid)
		}
	}
	return found
}

// demoURLs are those of one of prove's pods on the node, of both families.
func demoURLs(t *testing.T, node string) (urls []string) {
	t.Helper()
	ips := strings.Fields(mustKubectl(t, "--namespace=demo", "get", "pods", "--field-selector=status.phase=Running,spec.nodeName="+node, "--output=jsonpath={.items[0].status.podIPs[*].ip}"))
	if len(ips) != 2 {
		t.Fatalf("prove's pods on %s: addresses %q, want two", node, ips)
	}
	for _, ip := range ips {
		if strings.Contains(ip, ":") {
			ip = "[" + ip + "]"
		}
		urls = append(urls, "http://"+ip+":8080/")
	}
	return urls
}

// echoProgram asks and answers, by its path on the machine.
var echoProgram = "/var/lib/flock-lab/" + labName + "/images/bin/echo"

// asking is a member, as a rule the outside host, asking a pod, over a new connection
// each time.
type asking struct {
	url string
	background
}

func ask(t *testing.T, url string) *asking {
	t.Helper()
	return askFrom(t, plan.Outside, url)
}

// askFrom asks from another member.
func askFrom(t *testing.T, member, url string) *asking {
	t.Helper()
	a := &asking{url: url}
	a.start(t, member, echoProgram, "get", "-n", "1000000", "-interval", "50ms", "-timeout", "1s", url)
	eventually(t, 60*time.Second, func() error {
		if !strings.Contains(a.said(), `"ok":true`) {
			return fmt.Errorf("%s: no answer: %s", url, a.said())
		}
		return nil
	})
	return a
}

func (a *asking) allAnswered(t *testing.T) {
	t.Helper()
	said, n := a.stop(t), 0
	for line := range strings.Lines(said) {
		var r struct {
			OK    bool
			Error string
			Wall  time.Time
		}
		if json.Unmarshal([]byte(line), &r) != nil {
			continue // cut off at the end
		}
		n++
		if !r.OK {
			t.Errorf("%s: at %s: %s", a.url, r.Wall.Format(time.TimeOnly), r.Error)
		}
	}
	t.Logf("%s: answered %d times", a.url, n)
}

// routeWatch is what the router's kernel says of its routes.
type routeWatch struct{ background }

const markerRoute = "2001:db8:dead::/64"

func watchRoutes(t *testing.T) *routeWatch {
	t.Helper()
	return watchOn(t, plan.Tor)
}

// watchOn watches another member's kernel: its routes, and what else ip monitor is to show. That
// of nexthops is long, and may push out what it shows of routes.
func watchOn(t *testing.T, member string, more ...string) *routeWatch {
	t.Helper()
	w := &routeWatch{}
	w.start(t, member, append([]string{"ip", "-timestamp", "monitor", "route"}, more...)...)
	// The monitor says nothing when it is ready: until it shows a change.
	eventually(t, 60*time.Second, func() error {
		mustLab(t, "exec", member, "--", "ip", "-6", "route", "replace", "unreachable", markerRoute)
		mustLab(t, "exec", member, "--", "ip", "-6", "route", "del", "unreachable", markerRoute)
		if !strings.Contains(w.said(), "Deleted unreachable "+markerRoute) {
			return fmt.Errorf("ip monitor shows no change of a route: %s", w.said())
		}
		return nil
	})
	return w
}

func (w *routeWatch) noneLost(t *testing.T) {
	t.Helper()
	said := w.stop(t)
	for line := range strings.Lines(said) {
		for _, n := range plan.Nodes(3) {
			for _, p := range n.Pods().All() {
				if strings.Contains(line, "Deleted "+p.String()) {
					t.Errorf("the router lost a route: %s", line)
				}
			}
		}
	}
}

// routeChange is a change of a route in a member's kernel.
type routeChange struct {
	at      time.Time // when ip monitor has seen it, some time after it
	deleted bool
}

// routeChanges are those of the route to one address, by what ip -timestamp monitor said.
func routeChanges(t *testing.T, said, addr string) (all []routeChange) {
	t.Helper()
	for _, line := range stamped(t, said) {
		rest, deleted := strings.CutPrefix(line.text, "Deleted ")
		if strings.HasPrefix(rest, addr+" ") {
			all = append(all, routeChange{line.at, deleted})
		}
	}
	return all
}

// departures are when a nexthop left its group: its flows are moved then.
func departures(t *testing.T, said string) (all []time.Time) {
	t.Helper()
	groups := map[string][]string{}
	for _, line := range stamped(t, said) {
		// id 7 group 8,255/9 type resilient …
		f := strings.Fields(line.text)
		if len(f) < 4 || f[0] != "id" || f[2] != "group" {
			continue
		}
		var members []string
		for m := range strings.SplitSeq(f[3], "/") {
			id, _, _ := strings.Cut(m, ",")
			members = append(members, id)
		}
		for _, before := range groups[f[1]] {
			if !slices.Contains(members, before) {
				all = append(all, line.at)
			}
		}
		groups[f[1]] = members
	}
	return all
}

// stampedLine is what ip -timestamp monitor said, and when.
type stampedLine struct {
	at   time.Time
	text string
}

func stamped(t *testing.T, said string) (all []stampedLine) {
	t.Helper()
	var at time.Time
	said = said[:strings.LastIndexByte(said, '\n')+1] // it may be in the middle of a line
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		stamp, ok := strings.CutPrefix(line, "Timestamp: ")
		if !ok {
			all = append(all, stampedLine{at, line})
			continue
		}
		f := strings.Fields(stamp) // Thu Nov 26 22:03:11 2026 123456 usec
		if len(f) < 6 {
			t.Fatalf("timestamp %q", line)
		}
		day, err := time.ParseInLocation("Mon Jan 2 15:04:05 2006", strings.Join(f[:5], " "), time.Local)
		if err != nil {
			t.Fatal(err)
		}
		usec, err := time.ParseDuration(f[5] + "us")
		if err != nil {
			t.Fatal(err)
		}
		at = day.Add(usec)
	}
	return all
}

// background is a command that runs in a member until it is stopped.
type background struct {
	cmd     *exec.Cmd
	mu      sync.Mutex // guards out
	out     bytes.Buffer
	done    chan struct{}
	stopped sync.Once
}

func (b *background) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *background) said() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

func (b *background) start(t *testing.T, member string, argv ...string) {
	t.Helper()
	// In a group of its own, so that what lab exec has started ends with it.
	b.cmd = exec.Command(program, append([]string{"--name", labName, "exec", member, "--"}, argv...)...)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	b.cmd.Stdout, b.cmd.Stderr = b, b
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.done = make(chan struct{})
	go func() { _ = b.cmd.Wait(); close(b.done) }()
	t.Cleanup(func() { b.stop(t) })
}

// stop ends the command, which must not have ended by itself, and returns what
// it has said. It may be called again.
func (b *background) stop(t *testing.T) string {
	t.Helper()
	b.stopped.Do(func() {
		select {
		case <-b.done:
			t.Errorf("%s: ended by itself: %s", strings.Join(b.cmd.Args, " "), b.said())
		default:
			_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGTERM)
		}
	})
	<-b.done
	return b.said()
}
