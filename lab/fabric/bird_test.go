package fabric

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"flock.fritzlab.net/flock/lab/plan"
)

// BIRD itself judges the configuration, for any number of nodes.
func TestBirdConfig(t *testing.T) {
	for _, how := range []Routing{BGP, OSPF, Static} {
		for _, nodes := range []int{1, 3, plan.MaxNodes} {
			file := filepath.Join(t.TempDir(), "bird.conf")
			if err := os.WriteFile(file, []byte(BirdConfig(plan.Nodes(nodes), how)), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("bird", "-p", "-c", file).CombinedOutput(); err != nil {
				t.Errorf("%s, %d nodes: %v: %s", how, nodes, err, out)
			}
		}
	}
}
