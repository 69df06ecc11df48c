package flockctl

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestWhatMayNotBeRead: what nobody may look at is not said to be absent, or in order.
func TestWhatMayNotBeRead(t *testing.T) {
	c := connectTo(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/nodeconfigs"):
			fmt.Fprint(w, `{"kind":"NodeConfigList","apiVersion":"flock.fritzlab.net/v1alpha1","items":[{"metadata":{"name":"node1"},"spec":{"podCIDRs":{"ipv6":["2001:db8:1::/64"]}},
				"status":{"conditions":[{"type":"Ready","status":"True","reason":"ServingPods","message":""}]}}]}`)
		case strings.HasPrefix(r.URL.Path, "/apis/flock."):
			fmt.Fprintf(w, `{"kind":"%sList","apiVersion":"flock.fritzlab.net/v1alpha1","items":[]}`, kinds[filepath.Base(r.URL.Path)])
		default:
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","message":"not for you","code":403}`)
		}
	})
	for line, want := range map[string][]string{
		"status":                   {"Agents     ?", "Nothing is wrong in what could be read.", "whether the agents are Ready"},
		"status -o json":           {`"agentsUnknown": true`},
		"addr 2001:db8:1::7":       {"Held by    ? (pods cannot be read)", "Services are not looked at"},
		"addr 2001:db8::7 -o json": {`"podsUnknown": true`},
	} {
		got, err := execute(c, line)
		for _, w := range want {
			if err != nil || !strings.Contains(got, w) {
				t.Errorf("flockctl %s: %v, want %q in\n%s", line, err, w, got)
			}
		}
	}
}
