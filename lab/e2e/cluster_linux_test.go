//go:build cluster

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/cgroup"
	"flock.fritzlab.net/flock/lab/plan"
)

// labName is the lab of these tests: another than usual if the machine has a test at work in that.
var labName = cmp.Or(os.Getenv("FLOCK_TEST_LAB"), "test")

// program is the lab, as make builds it.
const program = "../../bin/lab"

// TestCluster is one story in one lab: each part begins with the lab up and whole,
// and leaves it so.
func TestCluster(t *testing.T) {
	mustLab(t, "down") // what an earlier run may have left
	before := observe(t)
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("KEEP_LAB") != "" {
			t.Logf("the lab is kept: bin/lab --name %s status", labName)
			return
		}
		mustLab(t, "down")
	})

	part(t, "up", func(t *testing.T) { mustLab(t, "up") })
	part(t, "prove", prove)
	part(t, "up again changes nothing", upAgain)
	part(t, "refuses bad NodeConfigs", refuseBadNodeConfigs)
	part(t, "an agent speaks for its own node only", ownNodeOnly)
	part(t, "flockctl shows the actual state", flockctlShows)
	part(t, "alerts fire and end in a real Prometheus", alertsFire)
	part(t, "NodeConfigs from templates", fromTemplates)
	part(t, "addresses", addresses)
	part(t, "anycast", anycastStory)
	part(t, "addresses of Services", serviceStory)
	part(t, "network policies", networkPolicies)
	part(t, "a session's password is followed", sessionPassword)
	part(t, "no packet is lost while flock is replaced or killed", replaceFlock)
	part(t, "Helm takes flock over and leaves what has data", underHelm)
	part(t, "routes are back after systemd-networkd removed them", networkd)
	part(t, "a broken release stops at the first node", brokenRollOut)
	part(t, "a node that comes back takes no pod before the router knows the way", comesBack)
	part(t, "a pod says that its node has no NodeConfig", missingNodeConfig)
	part(t, "a pod says that the agent is not running", agentNotRunning)
	part(t, "up after everything was killed", killEverything)
	part(t, "down leaves nothing", func(t *testing.T) { downLeavesNothing(t, before) })
	part(t, "down after half an up leaves nothing", func(t *testing.T) { halfAnUp(t, before) })
}

// part runs a part of the story; there is no going on after one that failed.
func part(t *testing.T, name string, f func(*testing.T)) {
	t.Helper()
	if !t.Run(name, f) {
		t.FailNow()
	}
}

func prove(t *testing.T) { t.Log(mustLab(t, "prove")) }

func upAgain(t *testing.T) {
	processes := func() []string {
		var ids []string
		for id := range trackLab(t, labName).processes {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		return ids
	}
	// A probe's process may be there at one look: those that stay are meant.
	seen := processes()
	mustLab(t, "status")
	was := slices.DeleteFunc(processes(), func(id string) bool { return !slices.Contains(seen, id) })
	began := time.Now()
	mustLab(t, "up")
	t.Logf("a second up took %s", time.Since(began).Round(10*time.Millisecond))
	if is := processes(); !subset(was, is) {
		t.Errorf("processes before: %q\nafter: %q", was, is)
	}
}

// subset reports whether all of a are in b. b may contain more, such as a probe's
// process.
func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(x string) bool { return !slices.Contains(b, x) })
}

func killEverything(t *testing.T) {
	tree, err := cgroup.ForLab(labName)
	if err != nil {
		t.Fatal(err)
	}
	for {
		pids, err := tree.Processes("")
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	if out, err := lab("status"); err == nil {
		t.Errorf("status finds nothing wrong:\n%s", out)
	}
	mustLab(t, "up")
	prove(t)
}

func downLeavesNothing(t *testing.T, before machine) {
	tr := trackLab(t, labName)
	if len(tr.processes) < 20 {
		t.Fatalf("only %d processes to track: is the lab up?", len(tr.processes))
	}
	began := time.Now()
	mustLab(t, "down")
	t.Logf("down took %s", time.Since(began).Round(10*time.Millisecond))
	leftNothing(t, labName, before, tr)
}

// halfAnUp kills lab up when the first node has been made but nothing runs on it.
func halfAnUp(t *testing.T, before machine) {
	up := exec.Command(program, "--name", labName, "up")
	up.Stdout, up.Stderr = os.Stdout, os.Stderr
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	node := "/var/lib/flock-lab/" + labName + "/ns/node1/mnt"
	eventually(t, time.Minute, func() error {
		_, err := os.Stat(node)
		return err
	})
	if err := up.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	up.Wait()
	tr := trackLab(t, labName)
	mustLab(t, "down")
	leftNothing(t, labName, before, tr)
}

// refuseBadNodeConfigs: the API server names field and remedy, and keeps nothing.
func refuseBadNodeConfigs(t *testing.T) {
	const good = `
apiVersion: flock.fritzlab.net/v1alpha1
kind: NodeConfig
metadata: {name: bad}
spec:
  podCIDRs: {ipv6: ["2001:db8:200::/64"], ipv4: ["10.200.0.0/24"]}
  bgp:
    localAS: 64999
    routerID: 192.0.2.99
    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512}]
`
	for _, c := range []struct {
		name, from, to string
		want           []string
	}{
		{"malformed CIDR", "2001:db8:200::/64", "2001:db8:200::/64/1", []string{"spec.podCIDRs.ipv6", "not a CIDR", "as in 2001:db8:1::/64"}},
		{"host bits", "10.200.0.0/24", "10.200.0.7/24", []string{"spec.podCIDRs.ipv4", "bits set behind the prefix length"}},
		{"overlapping CIDRs", `"10.200.0.0/24"`, `"10.200.0.0/24", "10.200.0.128/25"`, []string{"spec.podCIDRs.ipv4", "overlap"}},
		{"brace in the peer's address", `"2001:db8:0:1::1"`, `"2001:db8:0:1::1; }"`, []string{"spec.bgp.peers[0].address", "not an IP address", "as in 2001:db8::1"}},
		{"newline in the peer's address", `"2001:db8:0:1::1"`, `"192.0.2.1\n}"`, []string{"spec.bgp.peers[0].address", "not an IP address"}},
		{"local AS 0", "localAS: 64999", "localAS: 0", []string{"spec.bgp.localAS", "between 1 and 4294967294"}},
		{"remote AS 0", "remoteAS: 64512", "remoteAS: 0", []string{"spec.bgp.peers[0].remoteAS", "between 1 and 4294967294"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			manifest := strings.Replace(good, c.from, c.to, 1)
			if manifest == good {
				t.Fatalf("%q is not in the manifest", c.from)
			}
			out, err := kubectl(manifest, "create", "--filename=-")
			if err == nil {
				t.Fatalf("accepted:\n%s", manifest)
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("the answer does not say %q:\n%s", w, out)
				}
			}
			if out, err := kubectl("", "get", "nodeconfig", "bad"); err == nil || !strings.Contains(out, "NotFound") {
				t.Errorf("it is there all the same: %s %v", out, err)
			}
		})
	}
	// The manifest itself is what is bad only by what was replaced.
	if out, err := kubectl(good, "create", "--dry-run=server", "--filename=-"); err != nil {
		t.Errorf("the good one is refused: %s", out)
	}
}

// lastNode is the one on which flock is taken away.
var lastNode = plan.Nodes(3)[2].Name()

// A node that opted in but has no NodeConfig, now or ever.
func missingNodeConfig(t *testing.T) {
	stopAgent(t)
	mustKubectl(t, "delete", "nodeconfig", lastNode)
	mustLab(t, "exec", lastNode, "--", "find", "/run/flock", "-name", "nodeconfig.json", "-delete")
	startAgent(t)
	t.Cleanup(func() { mustLab(t, "up") })
	podSays(t, "NodeConfig", lastNode)
}

func agentNotRunning(t *testing.T) {
	stopAgent(t)
	t.Cleanup(func() { mustLab(t, "up") })
	podSays(t, "agent is not running on this node")
}

// agents selects the pods of the DaemonSet; the namespace has those of flock-controller too.
const agents = "--selector=app.kubernetes.io/name=flock"

// agentPods gets the agents' pods as the arguments of kubectl say.
func agentPods(t *testing.T, args ...string) string {
	t.Helper()
	return mustKubectl(t, append([]string{"--namespace=flock-system", "get", "pods", agents}, args...)...)
}

func stopAgent(t *testing.T) {
	t.Helper()
	mustKubectl(t, "label", "node", lastNode, "flock.fritzlab.net/agent-")
	agentGone(t, lastNode)
}

// agentGone waits until flock's pod on a node has ended.
func agentGone(t *testing.T, node string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		out, err := kubectl("", "--namespace=flock-system", "get", "pods", agents, "--field-selector=spec.nodeName="+node, "--output=name")
		if err != nil || strings.TrimSpace(out) != "" {
			return fmt.Errorf("on %s: %s %v", node, out, err)
		}
		return nil
	})
}

func startAgent(t *testing.T) {
	t.Helper()
	startAgentOn(t, lastNode)()
}

func startAgentOn(t *testing.T, node string) func() {
	return func() {
		t.Helper()
		mustKubectl(t, "label", "--overwrite", "node", node, "flock.fritzlab.net/agent=")
	}
}

// podSays waits for an event of a pod on the last node that holds all the words,
// as kubectl describe shows it. The pod must not get to run.
func podSays(t *testing.T, words ...string) {
	t.Helper()
	pod := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: hapless}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers: [{name: echo, image: "echo:dev", imagePullPolicy: Never}]
`, lastNode)
	if out, err := kubectl(pod, "create", "--filename=-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { mustKubectl(t, "delete", "pod", "hapless", "--wait=false") })
	eventually(t, 90*time.Second, func() error {
		describe, err := kubectl("", "describe", "pod", "hapless")
		if err != nil {
			return fmt.Errorf("%w: %s", err, describe)
		}
		_, events, _ := strings.Cut(describe, "Events:")
		for line := range strings.Lines(events) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				t.Log(strings.TrimSpace(line))
				return nil
			}
		}
		return fmt.Errorf("no event with %q:\n%s", words, events)
	})
	if phase := mustKubectl(t, "get", "pod", "hapless", "--output=jsonpath={.status.phase}"); phase != "Pending" {
		t.Errorf("the pod is %s", phase)
	}
}

// upFlags are those of lab up for a lab that is not the usual one.
var upFlags []string

// lab runs the program and returns all that it printed.
func lab(args ...string) (string, error) {
	return labWithInput("", args...)
}

func labWithInput(stdin string, args ...string) (string, error) {
	return labNamed(labName, stdin, args...)
}

func labNamed(name, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if args[0] == "up" {
		args = slices.Concat(args, upFlags)
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"--name", name}, args...)...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
	err := cmd.Run()
	return out.String(), err
}

func mustLab(t *testing.T, args ...string) string {
	t.Helper()
	out, err := lab(args...)
	if err != nil {
		t.Fatalf("lab %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func kubectl(stdin string, args ...string) (string, error) {
	return labWithInput(stdin, append([]string{"kubectl"}, args...)...)
}

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	return mustLab(t, append([]string{"kubectl"}, args...)...)
}
