//go:build cluster

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/image"
	"flock.fritzlab.net/flock/lab/plan"
)

// brokenRollOut: an agent that starts and never serves is rolled out. It gets to one
// node, whose pods keep their network, and no further.
func brokenRollOut(t *testing.T) {
	const broken, daemonSet = "flock:broken", "daemonset/flock"
	images := labDir(t).Path("images")
	spec, err := image.Flock("../..", filepath.Join(images, "bin"))
	if err != nil {
		t.Fatal(err)
	}
	spec.Ref = broken
	for i := range spec.Entries {
		if spec.Entries[i].Path == "/usr/local/bin/flock-agent" {
			spec.Entries[i].Source = filepath.Join(images, "bin", "pause")
		}
	}
	file := filepath.Join(images, "broken.tar")
	if err := image.Write(file, spec); err != nil {
		t.Fatal(err)
	}
	for _, n := range plan.Nodes(3) {
		mustLab(t, "exec", n.Name(), "--", "ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io", "images", "import", "--local", file)
	}
	routes := watchRoutes(t)
	var asked []*asking
	for _, n := range plan.Nodes(3) {
		for _, url := range demoURLs(t, n.Name()) {
			asked = append(asked, ask(t, url))
		}
	}

	flock := func(args ...string) string {
		t.Helper()
		return mustKubectl(t, append([]string{"--namespace=flock-system"}, args...)...)
	}
	undone := false
	undo := func() {
		flock("rollout", "undo", daemonSet)
		flock("rollout", "status", daemonSet, "--timeout=180s")
		undone = true
	}
	t.Cleanup(func() {
		if !undone {
			undo()
		}
	})
	// A pod that is not available, as after the parts before this one, is replaced at once,
	// whatever the others are.
	flock("rollout", "status", daemonSet, "--timeout=60s")
	flock("set", "image", daemonSet, "agent="+broken)
	updated := func() string {
		return agentPods(t, "--output=jsonpath={range .items[?(@.spec.containers[0].image=='"+broken+"')]}{.spec.nodeName}={.status.containerStatuses[?(@.name=='agent')].state.running.startedAt} {end}")
	}
	var first string
	eventually(t, time.Minute, func() error {
		if first = strings.TrimSpace(updated()); !strings.Contains(first, "=2") {
			return fmt.Errorf("no broken agent runs: %q", first)
		}
		return nil
	})
	// Longer than a pod that is Ready is waited for.
	for began := time.Now(); time.Since(began) < 20*time.Second; {
		if now := strings.TrimSpace(updated()); now != first {
			t.Fatalf("the roll-out went on from %s to %s", first, now)
		}
	}
	t.Logf("the roll-out stopped at %s", first)
	undo()
	sessionsUp(t)
	for _, a := range asked {
		a.allAnswered(t)
	}
	routes.noneLost(t)
}
