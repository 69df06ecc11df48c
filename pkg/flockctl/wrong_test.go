package flockctl

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// right are arguments that each command takes, of objects that are there, and absent are those of an
// object that is not, with what the answer to them must say.
var right, absent = map[string]string{
	"status": "", "node": "node1", "pod": "shop/web", "addr": "2001:db8::1", "routes": "node1", "anycast": "2001:db8::1", "service": "shop/web",
	"pool": "dns", "trace": "shop/web 2001:db8::1", "policy": "shop/web", "render": "node1", "check": "node1", "drain": "node1",
	"sysdump": "-f " + nowhere + "/x.tar.gz", "completion": "bash", "version": "",
}, map[string]string{
	"node": "gone: there is no NodeConfig gone", "routes": "gone: there is no NodeConfig gone", "check": "gone: there is no NodeConfig gone",
	"drain": "gone: there is no NodeConfig gone", "render": "gone: there is no NodeConfig gone", "pool": "gone: there is no AddressPool gone",
	"pod": "shop/gone: there is no pod shop/gone: kubectl -n shop get pods", "policy": "shop/gone: there is no pod shop/gone: kubectl -n shop get pods",
	"service": "shop/gone: there is no Service shop/gone: kubectl -n shop get services",
	"trace":   "shop/gone 2001:db8::1: there is neither a pod nor a Service shop/gone: kubectl -n shop get pods,services",
	"anycast": "2001:db8::1: no pod holds anycast address 2001:db8::1",
}

// nowhere is a directory that is not there.
const nowhere = "/nonexistent/flockctl"

// TestWrongInput gives every command what it cannot take. Each answer names the value and the way
// out, on one line and beside the answer; the exit status is 2 for a command line that makes no
// sense, and 1 for what the cluster says.
func TestWrongInput(t *testing.T) {
	forbid := false
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		segments := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		last := segments[len(segments)-1]
		switch {
		case forbid:
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","message":"%s is forbidden","code":403}`, last)
		case slices.Contains([]string{"gone", "nowhere", "web"}, last):
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","details":{"name":%q},"code":404}`, last)
		default:
			fmt.Fprint(w, `{"metadata":{},"items":[]}`)
		}
	}))
	t.Cleanup(server.Close)
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", "")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	there := "--insecure-skip-tls-verify --server " + server.URL
	wrong := func(status int, line string, want ...string) {
		t.Helper()
		var out, complaints bytes.Buffer
		got := Main(t.Context(), strings.Fields("flockctl "+line), strings.NewReader(""), &out, &complaints)
		said := complaints.String()
		if got != status || !strings.HasPrefix(said, "flockctl: ") || strings.Count(said, "\n") != 1 {
			t.Errorf("flockctl %s: exit status %d, want %d; printed\n%s%s", line, got, status, &out, said)
		}
		if out.Len() > 0 {
			t.Errorf("flockctl %s: an answer beside the error:\n%s", line, &out)
		}
		for _, w := range want {
			if !strings.Contains(said, w) {
				t.Errorf("flockctl %s: %swant %q", line, said, w)
			}
		}
	}

	wrong(2, "nod", `"nod"`, "want one of status, node, ")
	wrong(2, "--nonsense", "--nonsense", "flockctl --help")
	for _, c := range commands {
		if c.hidden {
			continue
		}
		args, ok := right[c.name]
		if !ok {
			t.Errorf("nothing here tries %s: add it to right, and to absent if it names an object", c.name)
			continue
		}
		usage := strings.TrimSpace("want flockctl " + c.name + " " + c.args)
		wrong(2, c.name+strings.Repeat(" x", c.max)+" extra", `"extra" is one argument too many`, usage)
		if c.min > 0 {
			wrong(2, c.name+strings.Repeat(" x", c.min-1), "an argument is missing", usage)
		}
		wrong(2, c.name+" "+args+" --nonsense", "--nonsense", "flockctl --help")
		wrong(2, c.name+" "+args+" --watch=perhaps", "--watch", `"perhaps"`)
		for _, f := range special {
			value := map[string]string{"output": "tall", "undo": "true", "local": "true", "watch": "true", "agents": "true"}[f]
			if !slices.Contains(c.flags, f) {
				wrong(2, fmt.Sprintf("%s %s --%s=%s", c.name, args, f, value), c.name, "--"+f, "flockctl "+c.name+" --help")
			} else if f == "output" {
				wrong(2, c.name+" "+args+" -o tall", "--output tall", "want json", "leave the flag out")
			}
		}
		if slices.Contains([]string{"completion", "version"}, c.name) {
			continue // they ask no API server
		}
		wrong(1, c.name+" "+args, "KUBECONFIG", "--kubeconfig")
		wrong(1, c.name+" "+args+" --kubeconfig="+nowhere, nowhere, "--kubeconfig")
		wrong(1, c.name+" "+args+" --context=nowhere", "nowhere", "--context")
		if c.name == "sysdump" {
			wrong(1, c.name+" "+args+" "+there, nowhere)
			continue // what may not be read is in its archive: see TestSysdump
		}
		forbid = true
		wrong(1, c.name+" "+args+" "+there, " is forbidden", "flockctl needs to ", "docs/flockctl.md has a ClusterRole")
		forbid = false
		if text, ok := absent[c.name]; ok {
			args, want, _ := strings.Cut(text, ": ")
			wrong(1, c.name+" "+args+" "+there, want)
			if elsewhere := strings.ReplaceAll(args, "shop/", "nowhere/"); elsewhere != args {
				wrong(1, c.name+" "+elsewhere+" "+there, "there is no namespace nowhere: kubectl get namespaces")
			}
		}
	}
	wrong(2, "completion tcsh", `"tcsh"`, "bash, zsh or fish")
	for _, line := range []string{"addr x", "anycast x"} {
		wrong(2, line, `"x"`, "2001:db8:")
	}
	for _, line := range []string{"pod a/b/c", "policy a/", "service /c", "trace a/b/c d"} {
		wrong(2, line+" "+there, `"`+strings.Fields(line)[1]+`"`, "NAMESPACE/")
	}
	wrong(2, "trace shop/web 2001:db8::1 http/QUIC "+there, `"http/QUIC"`, "TCP")
}
