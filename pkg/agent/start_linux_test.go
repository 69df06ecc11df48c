package agent_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A second agent finds the first one alive and ends before it has touched anything.
func TestSecondAgentTouchesNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	// What the first one is about to wire.
	n.host.IP("link", "add", "flock00000000", "type", "veth", "peer", "name", "half")
	pending := `{"containerID":"x","ifName":"eth0","state":"pending","hostIf":"flock00000000","mtu":1500,"addrs":[{"addr":"2001:db8:1::9","cidr":"2001:db8:1::/64"}]}`
	n.write("attachments/x@eth0.json", pending)
	second := exec.Command(filepath.Join(programs, "flock-agent"), "--node-name=node1", "--state-dir="+n.state,
		"--kubeconfig="+filepath.Join(n.state, "kubeconfig"), "--health-address=")
	var out []byte
	var err error
	n.host.Run(func() { out, err = second.CombinedOutput() })
	if err == nil || !strings.Contains(string(out), "another flock-agent") {
		t.Fatalf("%v: %s; want it to end because of another agent", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(n.state, "attachments/x@eth0.json")); string(got) != pending {
		t.Errorf("the record is now %s, %v", got, err)
	}
	if links := n.links(); len(links) != 1 {
		t.Errorf("links %v, want the one that is being made", links)
	}
}

// One pod that cannot be restored must not keep the others from being served.
func TestOnePodThatCannotBeRestored(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	a, b := n.sandbox("a"), n.sandbox("b")
	addrs, others := a.mustAdd(), b.mustAdd()
	n.kill()
	n.host.IP("route", "del", addrs[0].String())
	n.host.IP("route", "add", addrs[0].String(), "dev", "uplink", "metric", "1024")
	n.start()
	n.reaches(n.router, b, others[0])
	n.reaches(n.router, a, addrs[1])
	if log := n.agentLog(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, addrs[0].String()+" ") {
		t.Errorf("no error names %v:\n%s", addrs[0], log)
	}
	n.sandbox("c").mustAdd()
	if got := n.routes(); !slices.Contains(got, addrs[1]) {
		t.Errorf("routes %v: a's other address has none", got)
	}
}
