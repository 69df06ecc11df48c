//go:build cluster

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/plan"
)

// flockctlShows checks that flockctl, as a plugin of kubectl, shows the actual state.
func flockctlShows(t *testing.T) {
	nodes := plan.Nodes(3)
	eventually(t, 30*time.Second, func() error {
		out := flockctl(t, "node")
		for _, n := range nodes {
			if line := regexp.MustCompile(n.Name() + ` +Ready +True +True +True +2/2 `); !line.MatchString(out) {
				return fmt.Errorf("want a line like %s in\n%s", line, out)
			}
		}
		return nil
	})
	rendersAsTheAgent(t, nodes[0])
	pod := strings.Fields(mustKubectl(t, "get", "pods", "--namespace=demo", "--output=jsonpath={.items[*].metadata.name}"))[0]
	if out := flockctl(t, "pod", "demo/"+pod); !strings.Contains(out, "Running, Ready") {
		t.Errorf("flockctl pod demo/%s:\n%s", pod, out)
	}
}

// rendersAsTheAgent: what flockctl prints is what BIRD runs on the node.
func rendersAsTheAgent(t *testing.T, node plan.Node) {
	t.Helper()
	var links []string
	for _, p := range node.LAN().All() {
		links = append(links, p.Masked().String())
	}
	eventually(t, 60*time.Second, func() error {
		rendered := flockctl(t, "render", node.Name(), "--on-link="+strings.Join(links, ","))
		if file := mustLab(t, "exec", node.Name(), "--", "cat", "/run/flock/bird/bird.conf"); rendered != file {
			return fmt.Errorf("flockctl render prints\n%s\nand the node has\n%s", rendered, file)
		}
		return nil
	})
}

// flockctl runs it where the API server is.
func flockctl(t *testing.T, args ...string) string {
	t.Helper()
	plugin, err := buildFlockctl()
	if err != nil {
		t.Fatal(err)
	}
	return mustLab(t, append([]string{"exec", plan.ControlPlane, "--", plugin}, args...)...)
}

var buildFlockctl = sync.OnceValues(func() (string, error) {
	plugin, err := filepath.Abs("../../bin/kubectl-flock")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", plugin, "./cmd/flockctl")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return plugin, nil
})
