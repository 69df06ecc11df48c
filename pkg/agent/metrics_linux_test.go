package agent_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A pod can have two sandboxes for a while: what is counted for each must not keep
// Prometheus from all the rest.
func TestMetricsOfAPodWithTwoSandboxes(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	for _, id := range []string{"old", "new"} {
		n.sandbox(id).mustAdd()
	}
	n.kill()
	for _, id := range []string{"old", "new"} { // a runtime that is Kubernetes' would have said so
		path := filepath.Join(n.state, "attachments", id+"@eth0.json")
		record, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		n.write("attachments/"+id+"@eth0.json", strings.Replace(string(record), `{`, `{"podNamespace":"shop","podName":"web-0",`, 1))
	}
	n.start()
	code, body := n.get("/metrics")
	if want := `flock_pod_spoofed_packets_total{namespace="shop",pod="web-0"} 0`; code != http.StatusOK || strings.Count(body, want) != 1 {
		t.Errorf("%d, want one %s:\n%.2000s", code, want, body)
	}
}
