package flockctl

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestProgram runs whole command lines: the program's name, kubectl's flags, exit status.
func TestProgram(t *testing.T) {
	var asked []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Header.Get("Authorization")+" "+r.URL.Path)
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/namespaces/shop/pods/web"):
			fmt.Fprint(w, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"shop"},"spec":{"nodeName":"node1"},"status":{"phase":"Running","podIPs":[{"ip":"192.0.2.80"}]}}`)
			return
		case strings.Contains(r.URL.Path, "/pods/"):
			fmt.Fprint(w, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"other"},"spec":{"hostNetwork":true},"status":{"phase":"Running"}}`)
			return
		case strings.HasSuffix(r.URL.Path, "/networkpolicies"):
			fmt.Fprint(w, `{"metadata":{},"items":[{"metadata":{"name":"deny","namespace":"shop"},"spec":{"podSelector":{},"policyTypes":["Egress"]}}]}`)
			return
		case strings.HasSuffix(r.URL.Path, "/nodeconfigs"):
			fmt.Fprint(w, `{"metadata":{},"items":[{"metadata":{"name":"node1"}}]}`)
			return
		}
		fmt.Fprint(w, `{"metadata":{},"items":[]}`)
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "config")
	if err := os.WriteFile(kubeconfig, fmt.Appendf(nil, `
apiVersion: v1
kind: Config
current-context: gone
contexts:
- {name: here, context: {cluster: here, user: me, namespace: shop}}
- {name: gone, context: {cluster: gone, user: me}}
clusters:
- {name: here, cluster: {server: %q, insecure-skip-tls-verify: true}}
- {name: gone, cluster: {server: "http://127.0.0.1:1"}}
users:
- {name: me, user: {token: secret-token}}
`, server.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", dir)
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, tc := range []struct {
		name       string
		kubeconfig string // $KUBECONFIG
		line       string
		status     int
		want       string // printed
		asks       string // of the server
	}{
		{"nothing", "", "flockctl", 0, "flockctl pod shop/web-0", ""},
		{"plugin", "", "/usr/local/bin/kubectl-flock", 0, "kubectl flock pod shop/web-0", ""},
		{"help of a command", "", "kubectl-flock node --help", 0, "kubectl flock node node1 -o yaml", ""},
		{"version", "", "flockctl version", 0, "dev", ""},
		{"unknown command", "", "kubectl-flock noed", 2, `kubectl flock: there is no command "noed"`, ""},
		{"no kubeconfig", "", "flockctl node", 1, "flockctl: no API server is known: set KUBECONFIG or give --kubeconfig", ""},
		{"kubeconfig that is not there", "", "flockctl node --kubeconfig=/nonexistent", 1, "/nonexistent", ""},
		{"current context", kubeconfig, "flockctl node", 1, "http://127.0.0.1:1 does not answer", ""},
		{"another context", kubeconfig, "flockctl --context here node", 0, "node1", "Bearer secret-token /apis/flock.fritzlab.net/v1alpha1/nodeconfigs"},
		{"context that is not there", kubeconfig, "flockctl node --context=there", 1, "check --kubeconfig and --context", ""},
		{"by flags", "", "flockctl node --kubeconfig " + kubeconfig + " --server " + server.URL + " --token x --insecure-skip-tls-verify", 0, "node1", "Bearer x /apis/"},
		{"the context's namespace", kubeconfig, "flockctl --context here pod web", 0, "shop/web", "/api/v1/namespaces/shop/pods/web"},
		{"denied", kubeconfig, "flockctl --context here trace web 192.0.2.7 80", 3, "DENIED: shop/web on node1", "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"},
		{"another namespace", kubeconfig, "flockctl --context here pod web -n other", 0, "host's network", "/api/v1/namespaces/other/pods/web"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", tc.kubeconfig)
			asked = nil
			var printed bytes.Buffer
			status := Main(t.Context(), strings.Fields(tc.line), strings.NewReader(""), &printed, &printed)
			if got := strings.Join(asked, "\n"); status != tc.status || !strings.Contains(printed.String(), tc.want) || !strings.Contains(got, tc.asks) {
				t.Errorf("%s: status %d, asked for\n%s\nand printed\n%s\nwant status %d, %q and %q", tc.line, status, got, &printed, tc.status, tc.asks, tc.want)
			}
			if strings.Contains(printed.String(), "secret-token") {
				t.Errorf("a token was printed:\n%s", &printed)
			}
		})
	}
}
