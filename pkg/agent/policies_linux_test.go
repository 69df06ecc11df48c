package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// relisted are the objects of one kind at an API server that knows no streaming lists:
// a change makes the client list again.
type relisted struct {
	mu         sync.Mutex // guards below
	apiVersion string
	kind       string
	items      map[string]any
	version    int
	changed    chan struct{} // closed at the next change
	away       atomic.Bool   // it answers that it is not available
}

func newRelisted(apiVersion, kind string) *relisted {
	return &relisted{apiVersion: apiVersion, kind: kind, items: map[string]any{}, changed: make(chan struct{})}
}

// put adds an object or replaces it; nil deletes it.
func (s *relisted) put(name string, object any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.items[name] = object; object == nil {
		delete(s.items, name)
	}
	s.version++
	close(s.changed)
	s.changed = make(chan struct{})
}

// get returns an object; nil if there is none.
func (s *relisted) get(name string) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.items[name]
}

func (s *relisted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	version, changed := strconv.Itoa(s.version), s.changed
	items := []any{}
	for _, o := range s.items {
		items = append(items, o)
	}
	s.mu.Unlock()
	switch {
	case s.away.Load():
		w.WriteHeader(http.StatusServiceUnavailable)
		json.NewEncoder(w).Encode(metav1.Status{Status: metav1.StatusFailure, Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable})
	case r.URL.Query().Get("sendInitialEvents") == "true":
		w.WriteHeader(http.StatusUnprocessableEntity)
		json.NewEncoder(w).Encode(metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid})
	case r.URL.Query().Get("watch") == "":
		json.NewEncoder(w).Encode(map[string]any{"apiVersion": s.apiVersion, "kind": s.kind + "List", "metadata": metav1.ListMeta{ResourceVersion: version}, "items": items})
	default:
		w.(http.Flusher).Flush()
		if r.URL.Query().Get("resourceVersion") == version {
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			}
		}
		json.NewEncoder(w).Encode(map[string]any{"type": "ERROR", "object": metav1.Status{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: http.StatusGone, Reason: metav1.StatusReasonExpired,
		}})
	}
}

// labeled makes a pod of the node in namespace shop, with labels, known to the API server.
func (s *apiServer) labeled(name string, labels map[string]string) {
	s.pods.Store("/api/v1/namespaces/shop/pods/"+name, corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: labels, ResourceVersion: "1"},
		Spec:       corev1.PodSpec{NodeName: "node1"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	})
}

// isolate is a policy by which the pods with a label app take packets only from those
// with another, or from nobody.
func isolate(app, from string) networkingv1.NetworkPolicy {
	p := networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "isolate-" + app},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
	}
	if from != "" {
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": from}}}}}}
	}
	return p
}

// podConf is conf for a pod of Kubernetes'.
func (s *sandbox) podConf(name string) *libcni.RuntimeConf {
	conf := s.conf()
	conf.Args = [][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", name}, {"K8S_POD_UID", "uid-" + name}}
	return conf
}

// addPod is add for a pod of Kubernetes'.
func (s *sandbox) addPod(name string) (addrs []netip.Addr, err error) {
	runtime, list := s.n.network()
	r, err := runtime.AddNetworkList(context.Background(), list, s.podConf(name))
	if err != nil {
		return nil, err
	}
	result, err := types100.GetResult(r)
	if err != nil {
		return nil, err
	}
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		addrs = append(addrs, addr.Unmap())
	}
	return addrs, nil
}

func (s *sandbox) mustAddPod(name string) []netip.Addr {
	s.n.t.Helper()
	addrs, err := s.addPod(name)
	if err != nil {
		s.n.t.Fatalf("%v\n%s", err, s.n.agentLog())
	}
	return addrs
}

// becomes waits until packets from a namespace reach, or do not reach, all addresses.
func (n *node) becomes(reachable bool, from *nettest.NS, addrs ...netip.Addr) {
	n.t.Helper()
	for _, addr := range addrs {
		eventually(n.t, func() string { return n.agentLog() + n.host.Exec("nft", "list", "ruleset") }, func() error {
			if _, err := from.Try("ping", "-c1", "-W1", addr.String()); (err == nil) != reachable {
				return fmt.Errorf("%s is reached: %t", addr, err == nil)
			}
			return nil
		})
	}
}

func newPolicyNode(t *testing.T) (*node, *apiServer) {
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	return n, api
}

// A policy over its namespace's budget allows nothing and holds up no pod; the condition
// names it, and an agent with a larger budget enforces it.
func TestPolicyBudget(t *testing.T) {
	t.Parallel()
	n, api := newPolicyNode(t)
	for _, name := range []string{"web", "web2", "client"} {
		api.labeled(name, map[string]string{"app": strings.TrimSuffix(name, "2")})
	}
	n.start("--policy-budget=1")
	web, client := n.sandbox("web"), n.sandbox("client")
	addrs := web.mustAddPod("web")
	client.mustAddPod("client")
	n.becomes(true, client.ns, addrs...)
	api.policies.put("isolate", isolate("web", "client")) // two elements: the client's addresses
	n.becomes(false, client.ns, addrs...)
	api.says(n, "PoliciesEnforced", metav1.ConditionFalse, "NetworkPolicy shop/isolate-web")
	more := n.sandbox("web2").mustAddPod("web2")
	n.unreachable(client.ns, more...)
	if _, metrics := n.get("/metrics"); !strings.Contains(metrics, "flock_policy_over_budget 1") {
		t.Errorf("no metric counts it")
	}
	n.kill()
	n.start()
	n.becomes(true, client.ns, append(addrs, more...)...)
	api.says(n, "PoliciesEnforced", metav1.ConditionTrue, "")
}

// The whole of a policy's way: it closes, opens and closes again; a pod starts behind
// it; it outlives the agent; and it goes with the last policy.
func TestPolicyIsEnforced(t *testing.T) {
	t.Parallel()
	n, api := newPolicyNode(t)
	for _, name := range []string{"web", "web2", "client", "stranger"} {
		api.labeled(name, map[string]string{"app": strings.TrimSuffix(name, "2")})
	}
	n.start()
	web, client, stranger := n.sandbox("web"), n.sandbox("client"), n.sandbox("stranger")
	addrs := web.mustAddPod("web")
	client.mustAddPod("client")
	stranger.mustAddPod("stranger")
	for _, from := range []*nettest.NS{client.ns, stranger.ns, n.router} {
		n.becomes(true, from, addrs...)
	}
	if ruleset := n.host.Exec("nft", "list", "ruleset"); strings.Contains(ruleset, "flock-policy") {
		t.Errorf("no policy selects a pod, and there is\n%s", ruleset)
	}
	api.says(n, "PoliciesEnforced", metav1.ConditionTrue, "")

	api.policies.put("isolate", isolate("web", "client"))
	for _, from := range []*nettest.NS{stranger.ns, n.router} {
		n.becomes(false, from, addrs...)
	}
	n.becomes(true, client.ns, addrs...)
	n.becomes(true, n.host, addrs...) // as for the kubelet's probes
	api.policies.put("isolate", isolate("web", "stranger"))
	n.becomes(false, client.ns, addrs...)
	n.becomes(true, stranger.ns, addrs...)

	// A new pod is behind it with its first packet.
	web2 := n.sandbox("web2")
	more := web2.mustAddPod("web2")
	n.unreachable(client.ns, more...)
	n.becomes(true, stranger.ns, more...)

	n.kill()
	n.unreachable(client.ns, addrs...)
	n.becomes(true, stranger.ns, addrs...)
	table := n.host.Exec("nft", "-s", "list", "table", "inet", "flock-policy")
	n.start()
	api.says(n, "PoliciesEnforced", metav1.ConditionTrue, "")
	n.unreachable(client.ns, addrs...)
	n.becomes(true, stranger.ns, addrs...)
	if after := n.host.Exec("nft", "-s", "list", "table", "inet", "flock-policy"); after != table {
		t.Errorf("a restart of the agent changed the table from\n%s\nto\n%s", table, after)
	}

	n.host.Exec("nft", "flush", "ruleset")
	n.becomes(false, client.ns, addrs...)
	n.becomes(true, stranger.ns, addrs...)

	// Its name may be another pod's next.
	runtime, list := n.network()
	if err := runtime.DelNetworkList(t.Context(), list, web.podConf("web")); err != nil {
		t.Fatal(err)
	}
	if err := runtime.DelNetworkList(t.Context(), list, web2.podConf("web2")); err != nil {
		t.Fatal(err)
	}
	eventually(t, n.agentLog, func() error {
		if ruleset := n.host.Exec("nft", "list", "ruleset"); strings.Contains(ruleset, "flock-policy") {
			return fmt.Errorf("no pod is selected any more, and there is\n%s", ruleset)
		}
		return nil
	})
}

// With the API server away, an agent that starts has its predecessor's policies, and so
// have the pods that start.
func TestPoliciesOutliveTheAPIServer(t *testing.T) {
	t.Parallel()
	n, api := newPolicyNode(t)
	for _, name := range []string{"web", "web2", "client", "stranger"} {
		api.labeled(name, map[string]string{"app": strings.TrimSuffix(name, "2")})
	}
	api.policies.put("isolate", isolate("web", "client"))
	api.policies.put("gone", isolate("web", "stranger"))
	n.start()
	client, stranger := n.sandbox("client"), n.sandbox("stranger")
	client.mustAddPod("client")
	stranger.mustAddPod("stranger")
	api.policies.put("gone", nil)
	web := n.sandbox("web")
	addrs := web.mustAddPod("web")
	n.becomes(true, client.ns, addrs...)
	n.becomes(false, stranger.ns, addrs...)

	n.kill()
	for _, kind := range []*relisted{api.policies, api.clusterPolicies, api.namespaces} {
		kind.away.Store(true)
	}
	n.start()
	web2 := n.sandbox("web2")
	more := web2.mustAddPod("web2")
	n.unreachable(stranger.ns, more...)
	n.unreachable(stranger.ns, addrs...)
	n.becomes(true, client.ns, more...)
	n.becomes(true, client.ns, addrs...)
	api.says(n, "PoliciesEnforced", metav1.ConditionTrue, "")

	// An agent that has nothing does not guess: pods wait, and what is in force stays.
	n.kill()
	if err := os.Remove(filepath.Join(n.state, "policies")); err != nil {
		t.Fatal(err)
	}
	n.start()
	api.says(n, "PoliciesEnforced", metav1.ConditionFalse, "networkpolicies")
	api.says(n, "Ready", metav1.ConditionFalse, "networkpolicies")
	n.unreachable(stranger.ns, more...)
	n.becomes(true, client.ns, more...)
	api.labeled("web3", map[string]string{"app": "web"})
	added := make(chan error, 1)
	third := n.sandbox("web3")
	go func() { _, err := third.addPod("web3"); added <- err }()
	for _, kind := range []*relisted{api.policies, api.clusterPolicies, api.namespaces} {
		kind.away.Store(false)
	}
	if err := <-added; err != nil {
		t.Errorf("%v\n%s", err, n.agentLog())
	}
	api.says(n, "Ready", metav1.ConditionTrue, "")
}

// Who writes to the bits of the ct mark that policies use is named, and only they.
func TestForeignMarks(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.host.Exec("nft", "table ip theirs { chain high { ct mark set ct mark | 0x100; }; chain low { ct mark set ct mark | 0x1; }; }")
	n.start()
	eventually(t, n.agentLog, func() error {
		if !strings.Contains(n.agentLog(), "--policy-mark") {
			return errors.New("nothing is said of the other program's rule")
		}
		return nil
	})
	if log := n.agentLog(); !strings.Contains(log, "ip theirs high") || strings.Contains(log, "ip theirs low") {
		t.Error(log)
	}
}

// Pods of other nodes are peers by their granted addresses, too, and not by those that
// they only ask for.
func TestGrantedAddressesOfPeers(t *testing.T) {
	t.Parallel()
	n, api := newPolicyNode(t)
	api.labeled("web", map[string]string{"app": "web"})
	api.namespaces.put("shop", corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	api.policies.put("isolate", isolate("web", "peer"))
	api.pools.set()
	api.pods.Store("/api/v1/namespaces/shop/pods/peer", corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "peer", UID: "peer", Labels: map[string]string{"app": "peer"}, Annotations: map[string]string{
			annotation.Addresses: "198.51.100.1,198.51.100.2", annotation.Anycast: "2001:db8:53::53",
		}},
		Spec:   corev1.PodSpec{NodeName: "node2"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "198.51.100.1"}}},
	})
	n.start()
	n.sandbox("web").mustAddPod("web")
	allows := func(want ...string) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			table := n.host.Exec("nft", "list", "table", "inet", "flock-policy")
			for _, addr := range []string{"198.51.100.1", "198.51.100.2", "2001:db8:53::53"} {
				if strings.Contains(table, addr) != slices.Contains(want, addr) {
					return fmt.Errorf("want peers %q, and there is\n%s", want, table)
				}
			}
			return nil
		})
	}
	allows("198.51.100.1")
	anycast := pool("dns", "2001:db8:53::/64")
	api.pools.set(anycast)
	allows("198.51.100.1", "2001:db8:53::53")
	api.pools.set() // ends nothing that it has granted
	claim := v1alpha1.AddressClaim{ObjectMeta: metav1.ObjectMeta{Name: "198.51.100.2"}}
	claim.Spec = v1alpha1.AddressClaimSpec{Address: "198.51.100.2", PodNamespace: "shop", PodName: "other", PodUID: "other", NodeName: "node3"}
	api.claims.put("198.51.100.2", claim)
	allows("198.51.100.1", "2001:db8:53::53")
	claim.Spec.PodName, claim.Spec.PodUID = "peer", "peer"
	api.claims.put("198.51.100.2", claim)
	allows("198.51.100.1", "198.51.100.2", "2001:db8:53::53")
	n.kill()
	for _, kind := range []*relisted{api.policies, api.clusterPolicies, api.namespaces, api.claims} {
		kind.away.Store(true)
	}
	table := n.host.Exec("nft", "list", "table", "inet", "flock-policy")
	n.start()
	api.says(n, "PoliciesEnforced", metav1.ConditionTrue, "")
	if after := n.host.Exec("nft", "list", "table", "inet", "flock-policy"); after != table {
		t.Errorf("a restart of the agent without the API server changed the table from\n%s\nto\n%s", table, after)
	}
	for _, kind := range []*relisted{api.policies, api.clusterPolicies, api.namespaces, api.claims} {
		kind.away.Store(false)
	}
	api.claims.put("198.51.100.2", nil)
	allows("198.51.100.1", "2001:db8:53::53")
}

// unreachable fails if one packet from a namespace gets an answer.
func (n *node) unreachable(from *nettest.NS, addrs ...netip.Addr) {
	n.t.Helper()
	for _, addr := range addrs {
		if out, err := from.Try("ping", "-c1", "-W1", addr.String()); err == nil {
			n.t.Errorf("%s is reached: %s\n%s\n%s", addr, out, n.host.Exec("nft", "list", "ruleset"), n.agentLog())
		}
	}
}
