//go:build cluster

package e2e

import (
	"encoding/json"
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
	asksTheKernel(t, pod)
}

// asksTheKernel: flockctl pod --agents, through the API server and the kubelet, has what the
// kernel does with packets to the pod, and says by its status that something is in the way.
func asksTheKernel(t *testing.T, pod string) {
	t.Helper()
	var answer struct {
		Node      string   `json:"node"`
		Addresses []string `json:"addresses"`
		Kernel    []struct {
			Link      string
			Addresses []struct {
				Address string
				Reaches bool
			}
			Problems []string
		} `json:"kernel"`
	}
	ask := func() error {
		plugin, err := buildFlockctl()
		if err != nil {
			t.Fatal(err)
		}
		out, err := lab("exec", plan.ControlPlane, "--", plugin, "pod", "demo/"+pod, "--agents", "--output=json")
		from, to := strings.Index(out, "{"), strings.LastIndex(out, "}") // the error follows it
		if from < 0 || to < from {
			t.Fatalf("flockctl pod demo/%s --agents: %v\n%s", pod, err, out)
		}
		answer.Kernel, answer.Addresses = nil, nil
		if jsonErr := json.Unmarshal([]byte(out[from:to+1]), &answer); jsonErr != nil {
			t.Fatalf("%v:\n%s", jsonErr, out)
		}
		return err
	}
	if err := ask(); err != nil || len(answer.Kernel) != 1 || len(answer.Kernel[0].Problems) > 0 || len(answer.Kernel[0].Addresses) != len(answer.Addresses) {
		t.Fatalf("flockctl pod demo/%s --agents: %v: %+v", pod, err, answer)
	}
	link := mustLab(t, "exec", answer.Node, "--", "ip", "-oneline", "link", "show", "dev", answer.Kernel[0].Link)
	if !strings.Contains(link, "demo/"+pod) {
		t.Errorf("the link that it names is %s", link)
	}
	for i, a := range answer.Kernel[0].Addresses {
		if !a.Reaches || a.Address != answer.Addresses[i] {
			t.Errorf("%+v, want %v", answer.Kernel[0].Addresses, answer.Addresses)
		}
	}
	if text := flockctl(t, "pod", "demo/"+pod, "--agents"); !strings.Contains(text, "In the kernel of "+answer.Node) || strings.Contains(text, "WRONG") {
		t.Errorf("flockctl pod demo/%s --agents:\n%s", pod, text)
	}
	blackhole := func(verb string) {
		mustLab(t, "exec", answer.Node, "--", "ip", "route", verb, "blackhole", answer.Addresses[0], "metric", "32")
	}
	blackhole("add")
	t.Cleanup(func() {
		blackhole("del")
		eventually(t, 20*time.Second, ask)
	})
	eventually(t, 20*time.Second, func() error {
		if err := ask(); err == nil || len(answer.Kernel) != 1 || len(answer.Kernel[0].Problems) != 1 || !strings.Contains(answer.Kernel[0].Problems[0], "do not reach the pod") {
			return fmt.Errorf("a blackhole is in the pod's way, and flockctl says %v: %+v", err, answer)
		}
		return nil
	})
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
