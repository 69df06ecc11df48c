package agent_test

import (
	"context"
	"io"
	"net"
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
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		n.host.Run(func() { conn, err = (&net.Dialer{}).DialContext(ctx, network, addr) })
		return conn, err
	}}}
	defer client.CloseIdleConnections()
	answer, err := client.Get("http://127.0.0.1:9479/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if want := `flock_pod_spoofed_packets_total{namespace="shop",pod="web-0"} 0`; answer.StatusCode != http.StatusOK || strings.Count(string(body), want) != 1 {
		t.Errorf("%s, want one %s:\n%.2000s", answer.Status, want, body)
	}
}
