//go:build cluster && crash

package e2e

import (
	"os"
	"os/exec"
	"testing"

	"flock.fritzlab.net/flock/lab/components"
)

// TestCrash runs the sweeps of docs/crash.md that need an API server, with the one that the lab
// has built.
func TestCrash(t *testing.T) {
	programs, err := components.Build(t.Context(), components.Newest, "../..", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	run, more := "^TestAPIServer$", []string{"-full"}
	if pods := os.Getenv("SOAK_PODS"); pods != "" {
		run, more = "^TestSoakAPIServer$", []string{"-soak", pods, "-out", os.Getenv("SOAK_OUT")}
	}
	args := []string{"test", "-tags", "apiserver", "-run", run, "-count=1", "-v", "-timeout", "300m", "./pkg/agent/crash", "-args", "-seed", "0"}
	cmd := exec.Command("go", append(args, more...)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}
