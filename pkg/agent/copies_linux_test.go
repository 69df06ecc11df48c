package agent_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What an agent keeps for its next start is written later where it could not be written at once,
// though nothing changes again: that start would apply what was before.
func TestCopyIsWrittenLater(t *testing.T) {
	t.Parallel()
	n := newNode(t, "")
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	n.start()
	copies := func(generation int) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			kept, err := os.ReadFile(filepath.Join(n.state, "nodeconfig.json"))
			if err != nil || !strings.Contains(string(kept), fmt.Sprintf(`"generation":%d`, generation)) {
				return fmt.Errorf("the copy is not of generation %d: %v %s", generation, err, kept)
			}
			return nil
		})
	}
	copies(3)
	inTheWay := filepath.Join(n.state, ".nodeconfig.json.new")
	if err := os.MkdirAll(filepath.Join(inTheWay, "file"), 0o700); err != nil {
		t.Fatal(err)
	}
	api.put("a", 4, nodeConfig)
	api.accepted(n, 4, metav1.ConditionTrue, "")
	copies(3)
	if err := os.RemoveAll(inTheWay); err != nil {
		t.Fatal(err)
	}
	copies(4)
}

// An agent that cannot read what it keeps ends, and the kubelet starts it again. It does not go
// on without that, nor write over it.
func TestUnreadableCopy(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"nodeconfig.json", "addresspools.json", "addresspools-gone.json", "services.json", "services-pools.json", "node-excluded.json", "kube-proxy.json", "password-key", "bird/departure",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, "")
			file := filepath.Join(n.state, name)
			if err := os.MkdirAll(file, 0o700); err != nil {
				t.Fatal(err)
			}
			agent := exec.CommandContext(t.Context(), filepath.Join(programs, "flock-agent"), "--node-name=node1", "--state-dir="+n.state,
				"--kubeconfig="+filepath.Join(n.state, "kubeconfig"), "--health-address=")
			var out strings.Builder
			agent.Stdout, agent.Stderr = &out, &out
			var err error
			n.host.Run(func() { err = agent.Start() })
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- agent.Wait() }()
			eventually(t, func() string { return "" }, func() error {
				select {
				case err = <-ended:
					return nil
				default:
					return fmt.Errorf("the agent runs though it cannot read %s", file)
				}
			})
			if err == nil || !strings.Contains(out.String(), file) {
				t.Errorf("the agent ended with %v: %s; want an error that names %s", err, out.String(), file)
			}
			if is, err := os.Stat(file); err != nil || !is.IsDir() {
				t.Errorf("%s was replaced: %v", file, err)
			}
		})
	}
}
