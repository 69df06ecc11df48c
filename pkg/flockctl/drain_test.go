package flockctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// TestDrain annotates the NodeConfig, waits until the agent has acted, and says which
// addresses no other node announces.
func TestDrain(t *testing.T) {
	drainWithin = 2 * time.Second
	t.Cleanup(func() { drainWithin = 30 * time.Second })
	path := func(address string) v1alpha1.AnycastStatus {
		return v1alpha1.AnycastStatus{Address: address, Pod: "dns/resolver", Announced: true, Reason: "Ready"}
	}
	var mu sync.Mutex // guards what follows
	var annotation any
	agentRuns := true
	server := connectTo(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		nc := v1alpha1.NodeConfig{TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "NodeConfig"}, ObjectMeta: metav1.ObjectMeta{Name: "node1"}}
		nc.Status.Anycast = []v1alpha1.AnycastStatus{path("203.0.113.53"), path("2001:db8:53::53"), path("2001:db8:53::53")}
		nc.Status.Services = []v1alpha1.ServiceStatus{
			{Service: "shop/web", Address: "203.0.113.80", Announced: true}, {Service: "shop/web", Address: "2001:db8:53::80", Announced: true},
			{Service: "shop/other", Address: "203.0.113.81"},
		}
		other := *nc.DeepCopy()
		other.Name, other.Status.Anycast, other.Status.Services = "node2", []v1alpha1.AnycastStatus{path("203.0.113.53")}, nc.Status.Services[:1]
		if r.Method == http.MethodPatch {
			body, _ := io.ReadAll(r.Body)
			var patch struct {
				Metadata struct{ Annotations map[string]any }
			}
			if err := json.Unmarshal(body, &patch); err != nil || r.Header.Get("Content-Type") != "application/merge-patch+json" {
				t.Errorf("%v: %s %s", err, r.Header, body)
			}
			annotation = patch.Metadata.Annotations["flock.fritzlab.net/drain"]
		}
		status := metav1.ConditionTrue
		if annotation != nil && agentRuns {
			status = metav1.ConditionFalse
		}
		nc.Status.Conditions = []metav1.Condition{{Type: "Announcing", Status: status}}
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/nodeconfigs"):
			json.NewEncoder(w).Encode(v1alpha1.NodeConfigList{TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "NodeConfigList"}, Items: []v1alpha1.NodeConfig{nc, other}})
		default:
			json.NewEncoder(w).Encode(nc)
		}
	})
	for _, c := range []struct {
		line, want string
		annotation any
	}{
		{"drain node1", "no other node announces 2001:db8:53::53, 2001:db8:53::80 of Service shop/web: clients get no answer there until one does\nnode1 has withdrawn its anycast addresses", "2026-01-02T12:00:00Z"},
		{"drain node1 --undo", "node1 announces its anycast addresses again\n", nil},
		{"drain node1 --undo", "node1 announces its anycast addresses again\n", nil},
	} {
		got, err := execute(server, c.line)
		if err != nil || !strings.HasPrefix(got, c.want) || annotation != c.annotation {
			t.Errorf("flockctl %s: %v, annotation %v, printed\n%s", c.line, err, annotation, got)
		}
	}
	agentRuns = false
	if _, err := execute(server, "drain node1"); err == nil || !strings.Contains(fmt.Sprint(err), "its agent has not acted within 2s: see flockctl node node1") {
		t.Errorf("without an agent: %v", err)
	}
	for _, line := range []string{"drain", "node node1 --undo"} {
		if _, err := execute(server, line); err == nil {
			t.Errorf("flockctl %s: no error", line)
		}
	}
}

// TestAnnouncedOnlyBy: what the limits of statuses leave out is said, and a node of which
// nothing is heard does not count, though its status still has what it announced.
func TestAnnouncedOnlyBy(t *testing.T) {
	services := func(n int, announced bool) (all []v1alpha1.ServiceStatus) {
		for i := range n {
			all = append(all, v1alpha1.ServiceStatus{Service: fmt.Sprint("shop/web-", i), Address: fmt.Sprint("203.0.113.", i), Announced: announced})
		}
		return all
	}
	node := func(name string, services []v1alpha1.ServiceStatus) v1alpha1.NodeConfig {
		nc := v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Name: name}}
		nc.Status.Services = services
		return nc
	}
	path := func(nc v1alpha1.NodeConfig, address string) v1alpha1.NodeConfig {
		nc.Status.Anycast = []v1alpha1.AnycastStatus{{Address: address, Pod: "dns/resolver", Announced: true, Reason: "Ready"}}
		return nc
	}
	says := func(nc v1alpha1.NodeConfig, condition string, status metav1.ConditionStatus, reason string) v1alpha1.NodeConfig {
		nc.Status.Conditions = []metav1.Condition{{Type: "Fickle", Status: metav1.ConditionTrue}, {Type: condition, Status: status, Reason: reason}}
		return nc
	}
	unknown, lost := metav1.ConditionUnknown, "nothing is heard of node2: its status says that it announces some of those above, which does not count"
	for name, c := range map[string]struct {
		all           []v1alpha1.NodeConfig
		only, remarks []string
	}{
		"alone":             {[]v1alpha1.NodeConfig{node("node1", services(1, true))}, []string{"203.0.113.0 of Service shop/web-0"}, nil},
		"another announces": {[]v1alpha1.NodeConfig{node("node1", services(1, true)), node("node2", services(1, true))}, nil, nil},
		"another does not":  {[]v1alpha1.NodeConfig{node("node1", services(1, true)), node("node2", services(1, false))}, []string{"203.0.113.0 of Service shop/web-0"}, nil},
		"nothing announced": {[]v1alpha1.NodeConfig{node("node1", services(1, false))}, nil, nil},
		"its status is full": {[]v1alpha1.NodeConfig{node("node1", services(256, true)), node("node2", services(255, true))}, []string{"203.0.113.255 of Service shop/web-255"},
			[]string{"the status of node1 has its limit of 256 addresses of Services: it may announce more, of which nothing is said here"}},
		"another's is full": {[]v1alpha1.NodeConfig{node("node1", services(1, true)), node("node2", services(256, false))}, []string{"203.0.113.0 of Service shop/web-0"},
			[]string{"the status of node2 has its limit of 256 addresses of Services: it may announce some of those above"}},
		"another is silent":                   {[]v1alpha1.NodeConfig{node("node1", services(1, true)), says(node("node2", services(1, true)), "Ready", unknown, "NodeUnknown")}, []string{"203.0.113.0 of Service shop/web-0"}, []string{lost}},
		"its path is silent":                  {[]v1alpha1.NodeConfig{path(node("node1", nil), "203.0.113.53"), says(path(node("node2", nil), "203.0.113.53"), "Announcing", unknown, "NodeUnknown")}, []string{"203.0.113.53"}, []string{lost}},
		"a third announces":                   {[]v1alpha1.NodeConfig{node("node1", services(1, true)), says(node("node2", services(1, true)), "Ready", unknown, "NodeUnknown"), node("node3", services(1, true))}, nil, nil},
		"a silent one that announced nothing": {[]v1alpha1.NodeConfig{node("node1", services(1, true)), says(node("node2", services(256, false)), "Ready", unknown, "NodeUnknown")}, []string{"203.0.113.0 of Service shop/web-0"}, nil},
		// The agent itself says Unknown, with another reason, or of something else.
		"another says Unknown": {[]v1alpha1.NodeConfig{node("node1", services(1, true)), says(node("node2", services(1, true)), "Ready", unknown, "Starting")}, nil, nil},
		"it is silent itself":  {[]v1alpha1.NodeConfig{says(node("node1", services(1, true)), "Ready", unknown, "NodeUnknown")}, []string{"203.0.113.0 of Service shop/web-0"}, nil},
	} {
		if only, remarks := announcedOnlyBy("node1", c.all); !slices.Equal(only, c.only) || !slices.Equal(remarks, c.remarks) {
			t.Errorf("%s: %q and %q, want %q and %q", name, only, remarks, c.only, c.remarks)
		}
	}
}

// TestCheckVersions names what is too old: the API server, and nodes whose agent has not
// reported that itself.
func TestCheckVersions(t *testing.T) {
	defer func(was string) { serverVersion = was }(serverVersion)
	serverVersion = "v1.31.2"
	old := serve(t, []byte(`
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {flock.fritzlab.net/agent: ""}}
status: {nodeInfo: {kernelVersion: 4.18.0-553.el8, containerRuntimeVersion: "docker://20.10.7", kubeletVersion: v1.31.2}}
---
apiVersion: v1
kind: Node
metadata: {name: node2, labels: {flock.fritzlab.net/agent: ""}}
status: {nodeInfo: {kernelVersion: 6.1.0, containerRuntimeVersion: "containerd://1.7.24", kubeletVersion: v1.36.0}}
---
apiVersion: v1
kind: Node
metadata: {name: node3, labels: {flock.fritzlab.net/agent: ""}}
status: {nodeInfo: {kernelVersion: 4.18.0, containerRuntimeVersion: "containerd://2.4.2", kubeletVersion: v1.37.2}}
---
apiVersion: flock.fritzlab.net/v1alpha1
kind: NodeConfig
metadata: {name: node3, generation: 1}
status: {observedGeneration: 1, conditions: [{type: Supported, status: "False", reason: Missing, message: "the agent says it"}]}
---
apiVersion: v1
kind: Node
metadata: {name: without-flock}
status: {nodeInfo: {kernelVersion: 4.18.0, containerRuntimeVersion: "docker://20.10.7", kubeletVersion: v1.31.2}}
`))
	got, err := execute(old, "check")
	if err == nil {
		t.Error("nothing is wrong")
	}
	wantGolden(t, "check-versions.txt", got)
}

// TestCheck lists what is wrong, and fails if anything is.
func TestCheck(t *testing.T) {
	server := serve(t, readFile(t, "testdata/cluster.yaml"))
	got, err := execute(server, "check")
	if err == nil || !strings.Contains(err.Error(), "11 problem(s), 4 node(s) checked") {
		t.Errorf("%v", err)
	}
	wantGolden(t, "check.txt", got)
	healthy := serve(t, bytes.ReplaceAll(readFile(t, "testdata/cluster.yaml"), []byte(", retained: 1"), nil))
	if got, err := execute(healthy, "check node1"); err != nil || got != "1 node(s) checked, nothing is wrong\n" {
		t.Errorf("node1: %v\n%s", err, got)
	}
	if got, err := execute(server, "check node2 -o json"); err == nil || !strings.Contains(got, `"object": "node2"`) || strings.Contains(got, "node3") {
		t.Errorf("node2: %v\n%s", err, got)
	}
	if _, err := execute(server, "check nowhere"); err == nil || !strings.Contains(err.Error(), "there is no NodeConfig nowhere") {
		t.Errorf("%v", err)
	}

	overlapping := serve(t, []byte(`
apiVersion: flock.fritzlab.net/v1alpha1
kind: NodeConfig
metadata: {name: node1, generation: 1}
spec: {podCIDRs: {ipv6: ["2001:db8:100:1::/64"]}}
status: {observedGeneration: 1, conditions: [{type: Ready, status: "True", reason: Serving}]}
---
apiVersion: flock.fritzlab.net/v1alpha1
kind: NodeConfig
metadata: {name: node2, generation: 1}
spec: {podCIDRs: {ipv6: ["2001:db8:100::/56"]}}
status: {observedGeneration: 1, conditions: [{type: Unshadowed, status: "False", reason: Shadowed, message: "blackhole 10.244.2.0/24: ip route del blackhole 10.244.2.0/24"}]}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
status: {addresses: [{type: InternalIP, address: "2001:db8:100:7::1"}]}
---
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: wide}
spec: {cidrs: ["2001:db8::/32"], uses: [static], namespaceSelector: {}}
---
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: broken}
spec: {cidrs: ["2001:db8::"], uses: [static], namespaceSelector: {}}
`))
	got, err = execute(overlapping, "check")
	for _, want := range []string{
		"node1                pod CIDR 2001:db8:100:1::/64 overlaps 2001:db8:100::/56 of NodeConfig node2",
		"node2                Unshadowed: blackhole 10.244.2.0/24: ip route del blackhole 10.244.2.0/24",
		"node2                pod CIDR 2001:db8:100::/56 contains 2001:db8:100:7::1, the address of node node1",
		"AddressPool broken   it grants nothing: addresspool broken: spec.cidrs[0]",
		"AddressPool wide     2001:db8::/32 contains 2001:db8:100:7::1, the address of node node1",
	} {
		if err == nil || !strings.Contains(got, want) {
			t.Errorf("%v; want %q in\n%s", err, want, got)
		}
	}
}
