package flockctl

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden runs command lines against the objects of testdata/cluster.yaml and
// compares what they print.
func TestGolden(t *testing.T) {
	server := serve(t, readFile(t, "testdata/cluster.yaml"))
	for name, line := range map[string]string{
		"help":          "--help",
		"help-node":     "help node",
		"help-anycast":  "anycast --help",
		"help-pod":      "pod -h",
		"help-render":   "render --help",
		"help-check":    "check --help",
		"help-drain":    "drain --help",
		"nodes":         "node",
		"nodes-json":    "nodes -o json",
		"node1":         "node node1",
		"node2":         "node node2",
		"node3":         "node node3",
		"node1-yaml":    "node node1 -o yaml",
		"anycast":       "anycast",
		"anycast-one":   "anycast 2001:db8:53::53",
		"anycast-json":  "anycast 2001:DB8:53:0::53 -o json",
		"services":      "service",
		"services-wide": "services -o wide",
		"services-json": "service -o json",
		"service":       "service shop/front",
		"service-none":  "service shop/full",
		"service-other": "service cluster-ip",
		"service-gone":  "service shop/gone",
		"service-yaml":  "service shop/front -o yaml",
		"help-service":  "help service",
		"help-pool":     "help pool",
		"pools":         "pool",
		"pools-json":    "pools -o json",
		"pool-dns":      "pool dns",
		"pool-old":      "pool old",
		"pool-web":      "pool web",
		"pod-resolver":  "pod dns/resolver-1",
		"pod-yaml":      "pod dns/resolver-1 --output=yaml",
		"pod-shopfront": "pod shopfront",
		"pod-refused":   "pod shop/refused",
		"pod-waiting":   "pod shop/waiting",
		"pod-hostnet":   "pod kube-system/proxy",

		"status":           "status",
		"status-json":      "status -o json",
		"nodes-wide":       "node -o wide",
		"routes":           "routes",
		"routes-json":      "routes node1 -o json",
		"addr-pod":         "addr 2001:db8:100:1::7",
		"addr-anycast":     "addr 2001:db8:53::53",
		"addr-node":        "addr 2001:db8:0:1::11",
		"addr-nobody":      "addr 192.0.2.250",
		"addr-service":     "addr 203.0.113.80",
		"addr-cluster-ip":  "addr 2001:db8:5::1",
		"complete":         "complete -- ",
		"complete-command": "complete -- no",
		"complete-node":    "complete -- node node",
		"complete-pod":     "complete -- pod dns/",
		"complete-flag":    "complete -- node --",
		"complete-format":  "complete -- node -o ",
		"complete-after":   "complete -- -n dns --context x pod dns/",
		"help-status":      "help status",
		"help-addr":        "help addr",
		"help-routes":      "help routes",
		"help-sysdump":     "help sysdump",
		"help-completion":  "help completion",
		"completion-bash":  "completion bash",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := execute(server, line)
			if err != nil {
				t.Fatal(err)
			}
			wantGolden(t, name+".txt", got)
		})
	}
}

// TestRender looks at what the objects of a cluster and a file come to; the text is the
// matter of package bird.
func TestRender(t *testing.T) {
	server := serve(t, readFile(t, "testdata/cluster.yaml"))
	for line, want := range map[string][]string{
		"render node1": {"peer_tor", `password "(secret)"`, "(64512,53)", "bgp_large_community.add((1,2,3))"},
		"render node1 --on-link 192.0.2.0/24,2001:db8:0:1::1/64": {"2001:db8:0:1::/64{64,128}", "source address 2001:db8:0:1::11;"},
		"render -f testdata/file.yaml":                           {"peer_tor", "(64512,53)", "!large"},
		"render node1 -f testdata/file.yaml":                     {"peer_tor", "(64512,53)", "!large", "!password"},
		"render node2":                                           {"peer_left", "!peer_spine"},
		"render node2 -f testdata/template.yaml":                 {"peer_spine", "local as 64602", "router id 192.0.2.12", "!peer_left"},
		"render node1 -f testdata/template.yaml":                 {"peer_tor", "!peer_spine", "NodeConfig node1 is written by hand"},
		"render node3 -f testdata/template.yaml":                 {"!peer_spine", "selects node node3", "what is in force stays"},
		// As kubectl get -o yaml and flockctl node -o json print them.
		"render node1 -f testdata/list.yaml":  {"peer_tor", "local as 64699", "(64512,99)"},
		"render node2 -f testdata/nodes.json": {"local as 64698"},
		"render node1 -f testdata/nodes.json": {"peer_tor", "none of node1"},
	} {
		got, err := execute(server, line)
		if err != nil {
			t.Errorf("flockctl %s: %v", line, err)
		}
		for _, w := range want {
			if not, ok := strings.CutPrefix(w, "!"); ok == strings.Contains(got, cmp.Or(not, w)) {
				t.Errorf("flockctl %s: want %s in\n%s", line, w, got)
			}
		}
	}

	// A pool that the agents ignore does not hide the rest.
	broken := serve(t, slices.Concat(readFile(t, "testdata/cluster.yaml"), []byte(`
---
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: broken}
spec: {cidrs: [2001:db8:53::], uses: [anycast], namespaceSelector: {}}
`)))
	for line, want := range map[string][]string{
		"render node1":            {"(64512,53)", "ignored, as by the agents: addresspool broken: spec.cidrs[0]"},
		"anycast 2001:db8:53::53": {"AddressPool dns (2001:db8:53::/64) grants it", "AddressPool broken grants nothing: addresspool broken: spec.cidrs[0]"},
	} {
		got, err := execute(broken, line)
		for _, w := range want {
			if err != nil || !strings.Contains(got, w) {
				t.Errorf("flockctl %s: %v, want %q in\n%s", line, err, w, got)
			}
		}
	}

	for line, want := range map[string][]string{ // in the words of packages config and fleet
		"render -f testdata/bad.yaml":            {"spec.podCIDRs.ipv6[0]", "spec.bgp.localAS", "spec.bgp.peers[0].address", "addresspool dns: spec.uses[0]"},
		"render node4 -f testdata/template.yaml": {"NodeConfigTemplate rack-a: node node4"},
		"render node1 -f testdata/pod.yaml":      {"testdata/pod.yaml holds no NodeConfig, AddressPool or NodeConfigTemplate"},
	} {
		out, err := execute(server, line)
		for _, w := range want {
			if err == nil || out != "" || !strings.Contains(err.Error(), w) {
				t.Errorf("flockctl %s: %v, and printed %q; want an error with %q and nothing else", line, err, out, w)
			}
		}
	}

	// Byte for byte what the agent writes, but for the password and the digest.
	const from = "../routing/bird/testdata/options"
	got, err := execute(server, "render -f "+from+".yaml --on-link 2001:db8:0:1::/64,192.0.2.0/24 --address 192.0.2.11,2001:db8:0:1::11")
	if err != nil {
		t.Fatal(err)
	}
	cut := func(conf string) string {
		before, _, _ := strings.Cut(conf, "define flock_config")
		return before
	}
	if want := strings.ReplaceAll(string(readFile(t, from+".conf")), "correct-horse-battery-staple", "(secret)"); cut(got) != cut(want) {
		t.Errorf("want\n%s\ngot\n%s", want, got)
	}
}

// TestGoldenErrors are what is answered to what cannot be done.
func TestGoldenErrors(t *testing.T) {
	server := serve(t, readFile(t, "testdata/cluster.yaml"))
	var all strings.Builder
	for _, line := range []string{
		"nod", "node a b", "pod", "pod a/b/c", "anycast 2001:db8::x", "node -o tall", "pool -o wide", "node --filename=x", "node --contxt=x", "render", "render node1 -f x", "render node1 --address=::1", "render -f testdata/template.yaml",
		"render node1 --on-link=2001:db8::", "render -f testdata/none.yaml", "render -f testdata/pod.yaml", "render -f testdata/unknown.yaml",
		"node node9", "pod shop/none", "anycast 2001:db8:53::1", "anycast 2001:db8:ffff::1", "service shop/none", "service a/b/c", "pod nowhere/web", "service nowhere/web", "trace nowhere/web shop/front",
	} {
		out, err := execute(server, line)
		if err == nil || out != "" {
			t.Errorf("flockctl %s: %v, and printed %q; want an error and nothing else", line, err, out)
		}
		fmt.Fprintf(&all, "flockctl %s\n  %v\n", line, err)
	}
	wantGolden(t, "errors.txt", all.String())
}

// TestWithoutAServer are what is answered where an API server does not do as asked.
func TestWithoutAServer(t *testing.T) {
	refuse := func(code int, reason metav1.StatusReason, message string) *cluster {
		return connectTo(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Code: int32(code), Reason: reason, Message: message})
		})
	}
	for want, c := range map[string]*cluster{
		"flock is not installed in this cluster": refuse(404, metav1.StatusReasonNotFound, "the server could not find the requested resource"),
		"docs/flockctl.md has a ClusterRole":     refuse(403, metav1.StatusReasonForbidden, "nodeconfigs is forbidden"),
		"check --context":                        connectTo(t, nil),
	} {
		for _, line := range []string{"node", "node node1", "anycast", "render node1"} {
			if _, err := execute(c, line); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want %q in it", line, err, want)
			}
		}
	}
	// Who may read flock's objects alone sees what is theirs.
	full := serve(t, readFile(t, "testdata/cluster.yaml"))
	partly := &cluster{flock: full.flock, core: refuse(403, metav1.StatusReasonForbidden, "pods is forbidden").core}
	out, err := execute(partly, "node")
	if err != nil || !strings.Contains(out, "node1   ?       True") {
		t.Errorf("without the right to read pods: %v\n%s", err, out)
	}
	// An answer that fails for another reason does not stand for "no such nodes".
	partly.core = refuse(500, metav1.StatusReasonInternalError, "etcd is away").core
	if out, err := execute(partly, "node"); err == nil || !strings.Contains(err.Error(), "etcd is away") {
		t.Errorf("nodes that are not known: %v\n%s", err, out)
	}
}

func execute(c *cluster, line string) (string, error) { return executeAsking(c, line, nil) }

// executeAsking is execute with agents.
func executeAsking(c *cluster, line string, ask func(context.Context, *corev1.Pod, string) ([]byte, error)) (string, error) {
	var out bytes.Buffer
	now, err := time.Parse(time.RFC3339, "2026-01-02T12:00:00Z")
	if err != nil {
		return "", err
	}
	s := &session{in: strings.NewReader(""), out: &out, remarks: &out, now: now, connect: func() (*cluster, error) { return c, nil }, ask: ask}
	err = s.run(context.Background(), "flockctl", strings.Fields(line))
	return out.String(), err
}

func wantGolden(t *testing.T, name, got string) {
	t.Helper()
	golden := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := readFile(t, golden); got != string(want) {
		t.Errorf("not what %s holds (go test -update rewrites it):\n%s", golden, got)
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// connectTo returns a client of a server with the handler. Without a handler the server
// does not answer.
func connectTo(t *testing.T, h http.HandlerFunc) *cluster {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	if h == nil {
		server.Close()
	}
	c, err := newCluster(&rest.Config{Host: server.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// kinds by resource.
var kinds = map[string]string{
	"nodeconfigs": "NodeConfig", "nodeconfigtemplates": "NodeConfigTemplate", "addresspools": "AddressPool", "addressclaims": "AddressClaim",
	"nodes": "Node", "pods": "Pod", "events": "Event", "namespaces": "Namespace", "services": "Service",
	"networkpolicies": "NetworkPolicy", "clusternetworkpolicies": "ClusterNetworkPolicy", "endpointslices": "EndpointSlice",
}

// serverVersion is what API servers of tests say that they are.
var serverVersion = "v1.37.2"

// serve is an API server that can be read, with the objects of a YAML stream.
func serve(t *testing.T, stream []byte) *cluster {
	t.Helper()
	type object struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			NodeName string `json:"nodeName"`
		} `json:"spec"`
		Status struct {
			PodIP string `json:"podIP"`
		} `json:"status"`
		InvolvedObject corev1.ObjectReference `json:"involvedObject"`
		raw            json.RawMessage
	}
	of := map[string][]object{}
	for _, doc := range documents(stream) {
		raw, err := yaml.YAMLToJSON(doc)
		if err != nil {
			t.Fatal(err)
		}
		o := object{raw: raw}
		if err := json.Unmarshal(raw, &o); err != nil {
			t.Fatal(err)
		}
		path := "/api/v1"
		if strings.Contains(o.APIVersion, "/") {
			path = "/apis/" + o.APIVersion
		}
		resource := ""
		for plural, kind := range kinds {
			if kind == o.Kind {
				resource = "/" + plural
			}
		}
		if o.Namespace != "" {
			of[path+resource] = append(of[path+resource], o) // of all namespaces
			path += "/namespaces/" + o.Namespace
		}
		of[path+resource] = append(of[path+resource], o)
	}
	return connectTo(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/version" {
			fmt.Fprintf(w, `{"gitVersion": %q}`, serverVersion)
			return
		}
		collection, name := r.URL.Path, ""
		if kinds[filepath.Base(collection)] == "" {
			collection, name = collection[:strings.LastIndex(collection, "/")], filepath.Base(collection)
		}
		selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
		if err != nil {
			t.Error(err)
		}
		if strings.HasPrefix(collection, "/apis/policy.networking.k8s.io/") && of[collection] == nil {
			w.WriteHeader(http.StatusNotFound) // there is no such CRD
			json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Code: 404, Reason: metav1.StatusReasonNotFound})
			return
		}
		var items []json.RawMessage
		for _, o := range of[collection] {
			if name == o.Name {
				w.Write(o.raw)
				return
			}
			fields := r.URL.Query().Get("fieldSelector")
			if ip, ok := strings.CutPrefix(fields, "status.podIP="); ok && ip != o.Status.PodIP {
				continue
			}
			if node, ok := strings.CutPrefix(fields, "spec.nodeName="); ok && node != o.Spec.NodeName {
				continue
			}
			if pod, ok := strings.CutPrefix(fields, "involvedObject.kind=Pod,involvedObject.name="); ok && pod != o.InvolvedObject.Name {
				continue
			}
			if selector.Matches(labels.Set(o.Labels)) {
				items = append(items, o.raw)
			}
		}
		if name != "" {
			w.WriteHeader(http.StatusNotFound)
			json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Code: 404, Reason: metav1.StatusReasonNotFound, Details: &metav1.StatusDetails{Name: name}})
			return
		}
		version := "v1"
		if strings.Contains(collection, v1alpha1.GroupVersion.String()) {
			version = v1alpha1.GroupVersion.String()
		}
		json.NewEncoder(w).Encode(map[string]any{"apiVersion": version, "kind": kinds[filepath.Base(collection)] + "List", "items": items})
	})
}
