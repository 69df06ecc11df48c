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
			for _, families := range []plan.Families{plan.Dual, plan.IPv6Only, plan.IPv4Only} {
				file := filepath.Join(t.TempDir(), "bird.conf")
				if err := os.WriteFile(file, []byte(BirdConfig(plan.Nodes(nodes), families, how)), 0o644); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.Command("bird", "-p", "-c", file).CombinedOutput(); err != nil {
					t.Errorf("%s, %s, %d nodes: %v: %s", how, families, nodes, err, out)
				}
			}
		}
	}
}
