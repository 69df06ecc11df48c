package flock_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// TestStartInTheLab runs the lines of docs/start.md that make files from the page's own
// samples, and checks that the pods use an image of the lab.
func TestStartInTheLab(t *testing.T) {
	_, text, ok := strings.Cut(read(t, "docs/start.md"), "<!-- in the lab -->\n```\n")
	if !ok {
		t.Fatal("docs/start.md has no lines for the lab")
	}
	text, _, _ = strings.Cut(text, "\n```\n")
	page, err := filepath.Abs("docs/start.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "sed ") {
			cmd := exec.Command("sh", "-ec", strings.ReplaceAll(line, "docs/start.md", page))
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v %s", line, err, out)
			}
		}
	}
	file := func(name string) []string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return regexp.MustCompile(`(?m)^---$`).Split(string(b), -1)
	}
	pools, objects := file("dns-pool.yaml"), file("dns.yaml")
	var pool v1alpha1.AddressPool
	if err := yaml.UnmarshalStrict([]byte(pools[0]), &pool); err != nil || len(pools) != 1 || pool.Name != "dns" {
		t.Errorf("dns-pool.yaml: %v, %q", err, pools)
	}
	if len(objects) != 3 {
		t.Fatalf("dns.yaml has %d objects: %q", len(objects), objects)
	}
	var dns appsv1.Deployment
	if err := yaml.UnmarshalStrict([]byte(objects[2]), &dns); err != nil {
		t.Fatal(err)
	}
	if c := dns.Spec.Template.Spec.Containers; len(c) != 1 || c[0].Image != "coredns:dev" || c[0].ImagePullPolicy != corev1.PullNever {
		t.Errorf("containers %+v", c)
	}
}
