//go:build cluster

package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/lab/plan"
)

// underHelm: Helm takes over what kustomize has installed and changes a value, one node
// at a time, without a packet lost; and uninstalling leaves the configuration.
func underHelm(t *testing.T) {
	path, err := exec.Command("go", "tool", "-n", "-modfile=../../tools/helm/go.mod", "helm").Output()
	if err != nil {
		t.Fatal(err)
	}
	// It is built by its first run.
	if out, err := exec.Command("go", "tool", "-modfile=../../tools/helm/go.mod", "helm", "version").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	chart, err := filepath.Abs("../../deploy/chart")
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	helm := func(args ...string) string {
		t.Helper()
		return mustLab(t, append([]string{"exec", plan.ControlPlane, "--", "env", "HELM_CONFIG_HOME=" + home, "HELM_CACHE_HOME=" + home, "HELM_DATA_HOME=" + home,
			strings.TrimSpace(string(path)), "--namespace=flock-system"}, args...)...)
	}
	configs := func() string {
		return mustKubectl(t, "get", "nodeconfigs", "--output=jsonpath={range .items[*]}{.metadata.uid} {.spec} {end}")
	}
	before := configs()
	routes := watchRoutes(t)
	var asked []*asking
	for _, n := range plan.Nodes(3) {
		for _, url := range demoURLs(t, n.Name()) {
			asked = append(asked, ask(t, url))
		}
	}
	helm("install", "flock", chart, "--take-ownership", "--force-conflicts", "--set=image.pullPolicy=Never", "--set=agent.logLevel=debug", "--wait", "--timeout=5m")
	mustKubectl(t, "--namespace=flock-system", "rollout", "status", "daemonset/flock", "--timeout=180s")
	sessionsUp(t)
	for _, a := range asked {
		a.allAnswered(t)
	}
	routes.noneLost(t)
	args := agentPods(t, "--output=jsonpath={range .items[*]}{.spec.containers[0].args} {end}")
	if n := strings.Count(args, "--log-level=debug"); n != 3 {
		t.Errorf("%d of 3 agents have the chart's value: %s", n, args)
	}

	helm("uninstall", "flock", "--wait", "--timeout=2m")
	if after := configs(); after != before {
		t.Errorf("the NodeConfigs are others after helm uninstall:\n%s\nbefore:\n%s", after, before)
	}
	if out := mustKubectl(t, "--namespace=flock-system", "get", "daemonsets,deployments", "--output=name"); strings.TrimSpace(out) != "" {
		t.Errorf("helm uninstall left %s", out)
	}
	mustLab(t, "up") // by kustomize again
	sessionsUp(t)
}
