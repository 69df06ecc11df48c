//go:build cluster

package e2e

import (
	"os"
	"os/exec"
	"testing"

	"flock.fritzlab.net/flock/lab/components"
)

// TestAPIServer runs flock's own tests that need etcd and an API server, but neither
// nodes nor routers, with those that the lab has built. They are in flock's module,
// because the lab does not depend on it.
func TestAPIServer(t *testing.T) { withAPIServer(t, components.Newest) }

func withAPIServer(t *testing.T, release components.Release) {
	t.Helper()
	programs, err := components.Build(t.Context(), release, "../..", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "test", "-tags", "apiserver", "-run", "^TestAPIServer$", "-count=1", "-v", "./pkg/kube", "./pkg/flockctl", "./pkg/controller")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}
