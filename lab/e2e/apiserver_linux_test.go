//go:build cluster

package e2e

import (
	"os"
	"os/exec"
	"testing"

	"flock.fritzlab.net/flock/lab/components"
)

// TestAPIServer runs flock's own tests that need etcd and an API server, but neither
// nodes nor routers, with those that the lab has built. They are in flock's module and in
// that of the benchmarks, because the lab does not depend on these.
func TestAPIServer(t *testing.T) { withAPIServer(t, components.Newest) }

func withAPIServer(t *testing.T, release components.Release) {
	t.Helper()
	programs, err := components.Build(t.Context(), release, "../..", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []struct {
		module, run string
		packages    []string
	}{
		{"../..", "^TestAPIServer$", []string{"./pkg/kube", "./pkg/flockctl", "./pkg/controller", "./pkg/datapath/proxy"}},
		{"../../bench", "^TestFleet$", []string{"."}},
	} {
		cmd := exec.Command("go", append([]string{"test", "-tags", "apiserver", "-run", in.run, "-count=1", "-v"}, in.packages...)...)
		cmd.Dir = in.module
		cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			t.Errorf("%s: %v", in.module, err)
		}
	}
}
