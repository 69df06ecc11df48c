package components

import (
	"os"
	"regexp"
	"testing"
)

// TestPins: what is built has the versions that the constants say, and flock itself uses
// the same API of policies.
func TestPins(t *testing.T) {
	for file, pin := range map[string]struct{ module, version string }{
		"../kubernetes/go.mod":        {"k8s.io/kubernetes", Kubernetes},
		"../kubernetes/oldest/go.mod": {"k8s.io/kubernetes", OldestKubernetes},
		"../policyapi/go.mod":         {"sigs.k8s.io/network-policy-api", PolicyAPI},
		"../../go.mod":                {"sigs.k8s.io/network-policy-api", PolicyAPI},
	} {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`(?m)^(?:require)?\s*` + regexp.QuoteMeta(pin.module) + ` (\S+)`).FindSubmatch(content)
		if m == nil || string(m[1]) != pin.version {
			t.Errorf("%s has %s at %q, want %s", file, pin.module, m, pin.version)
		}
	}
}
