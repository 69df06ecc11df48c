//go:build cluster

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
)

// addresses is docs/addresses.md on real nodes. Its parts mostly wait for kubelets,
// and do so side by side; the agent that is killed is that of a node of its own.
func addresses(t *testing.T) {
	began := time.Now()
	c := newPodClient(t)
	setup, all := loadExamples(t)
	c.namespaces(t, "shop", "dns")
	addressSetup(t, setup+"---\n"+claimsPool)

	t.Run("side by side", func(t *testing.T) {
		parallel(t, "worked examples", func(t *testing.T) { workedExamples(t, c, all) })
		parallel(t, "a pool's address is one pod's in the cluster", func(t *testing.T) { onePodsInTheCluster(t, c) })
		parallel(t, "a CIDR that is taken away stays routed until its last pod has gone", func(t *testing.T) { retiredCIDRs(t, c) })
		parallel(t, "what a pod sends from others' addresses is dropped and counted", func(t *testing.T) { spoofedSources(t, c) })
		parallel(t, "an agent killed in a burst of pods", func(t *testing.T) { killedInABurst(t, c) })
	})
	t.Logf("took %s", time.Since(began).Round(100*time.Millisecond))
}

func parallel(t *testing.T, name string, f func(*testing.T)) {
	t.Run(name, func(t *testing.T) { t.Parallel(); f(t) })
}

// addressSetup applies the documents for the time of the test. A NodeConfig's spec
// is merged into the lab's, which knows the node's router; its defaults are the
// built-in ones.
func addressSetup(t *testing.T, documents string) {
	t.Helper()
	for _, document := range strings.Split(documents, "---\n") {
		var object struct {
			metav1.TypeMeta   `json:",inline"`
			metav1.ObjectMeta `json:"metadata"`
			Spec              map[string]any `json:"spec"`
		}
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatal(err)
		}
		if object.Kind == "NodeConfig" {
			keepNodeConfig(t, object.Name)
			object.Spec["defaults"] = nil
			patchNodeConfig(t, object.Name, "merge", map[string]any{"spec": object.Spec})
			continue
		}
		if out, err := kubectl(document, "create", "--filename=-"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Cleanup(func() { mustKubectl(t, "delete", object.Kind, object.Name) })
	}
}

// keepNodeConfig restores the node's NodeConfig at the test's end.
func keepNodeConfig(t *testing.T, node string) {
	t.Helper()
	var was struct{ Spec any }
	if err := json.Unmarshal([]byte(mustKubectl(t, "get", "nodeconfig", node, "--output=json")), &was); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		patchNodeConfig(t, node, "json", []map[string]any{{"op": "replace", "path": "/spec", "value": was.Spec}})
	})
}

// patchNodeConfig returns when the agent has put the change in force.
func patchNodeConfig(t *testing.T, node, kind string, patch any) {
	t.Helper()
	content, err := json.Marshal(patch)
	if err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "patch", "nodeconfig", node, "--type="+kind, "--patch="+string(content))
	eventually(t, 60*time.Second, func() error {
		got := mustKubectl(t, "get", "nodeconfig", node,
			`--output=jsonpath={.metadata.generation} {.status.observedGeneration} {.status.conditions[?(@.type=="Accepted")].status}`)
		if f := strings.Fields(got); len(f) != 3 || f[0] != f[1] || f[2] != "True" {
			return fmt.Errorf("NodeConfig %s: generation, the observed one, accepted: %s", node, got)
		}
		return nil
	})
}

// wantedTwice are the addresses that two pods ask for.
var wantedTwice = []netip.Addr{netip.MustParseAddr("2001:db8:201::7"), netip.MustParseAddr("203.0.113.71")}

// claimsPool grants them.
const claimsPool = `
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: wanted-twice}
spec:
  cidrs: ["2001:db8:201::/64", 203.0.113.64/26]
  namespaceSelector: {matchLabels: {team: shop}}
  uses: [static]
  quarantineSeconds: 5
`

// onePodsInTheCluster creates pods on two nodes that ask for the same addresses. One
// gets them, and the error of the other names it. The other gets them when the first is
// gone and their quarantine is over, and the router follows.
func onePodsInTheCluster(t *testing.T, c *podClient) {
	nodes := plan.Nodes(2)
	asks := map[string]string{"flock.fritzlab.net/ipv4": "true", "flock.fritzlab.net/addresses": "2001:db8:201::7,203.0.113.71"}

	c.create(t, "shop", "first", nodes[0].Name(), asks)
	first := c.ready(t, "shop", "first", 1)[0]
	c.reached(t, first, wantedTwice...)
	announced(t, nodes[0], wantedTwice...)

	c.create(t, "shop", "second", nodes[1].Name(), asks)
	c.says(t, "shop", "second", "AddressRefused",
		"pod shop/second: annotation flock.fritzlab.net/addresses: 203.0.113.71 is held by pod shop/first on node "+nodes[0].Name()+": choose another address, or wait until that pod has gone")
	announced(t, nodes[0], wantedTwice...)

	c.remove(t, "shop", "first")
	went := time.Now()
	second := c.ready(t, "shop", "second", 1)[0]
	took := time.Since(went)
	t.Logf("Ready %s after the first pod's end, at the kubelet's next try after the quarantine", took.Round(100*time.Millisecond))
	if took < 3*time.Second { // it began when the sandbox was gone, before the object was
		t.Errorf("Ready %s after the first pod's end, within the quarantine of 5s", took)
	}
	c.reached(t, second, wantedTwice...)
	announced(t, nodes[1], wantedTwice...)

	c.remove(t, "shop", "second")
	withdrawn(t, wantedTwice...)
	eventually(t, 60*time.Second, func() error {
		claims := mustKubectl(t, "get", "addressclaims", "--output=jsonpath={.items[*].spec.address}")
		for _, a := range wantedTwice {
			if slices.Contains(strings.Fields(claims), a.String()) {
				return fmt.Errorf("claimed still: %s", claims)
			}
		}
		return nil
	})
}

// retiredCIDRs: what is taken from a NodeConfig while a pod has an address of it.
func retiredCIDRs(t *testing.T, c *podClient) {
	node := plan.Nodes(2)[1]
	extra := plan.Addresses{IPv6: netip.MustParsePrefix("2001:db8:101::/64"), IPv4: netip.MustParsePrefix("10.245.0.0/24")}
	retired := func() []string {
		return strings.Fields(mustKubectl(t, "get", "nodeconfig", node.Name(), "--output=jsonpath={.status.retiredCIDRs[*]}"))
	}
	summariesAtTor := func(there bool) {
		t.Helper()
		eventually(t, 60*time.Second, func() error {
			for i, p := range extra.All() {
				if r, ok := routeAtTor(t, p); ok != there || there && r.Via != node.LAN().All()[i].Addr() {
					return fmt.Errorf("tor: route to %s: %t (%s), want %t", p, ok, r, there)
				}
			}
			return nil
		})
	}

	keepNodeConfig(t, node.Name())
	patchNodeConfig(t, node.Name(), "json", []map[string]any{
		{"op": "add", "path": "/spec/podCIDRs/ipv6/-", "value": extra.IPv6},
		{"op": "add", "path": "/spec/podCIDRs/ipv4/-", "value": extra.IPv4},
	})
	asks := map[string]string{
		"flock.fritzlab.net/ipv4":  "true",
		"flock.fritzlab.net/cidr6": extra.IPv6.String(),
		"flock.fritzlab.net/cidr4": extra.IPv4.String(),
	}
	c.create(t, "shop", "stays", node.Name(), asks)
	pod := c.ready(t, "shop", "stays", 1)[0]
	var asked []*asking
	for i, a := range podIPs(t, pod) {
		if !extra.All()[i].Contains(a) {
			t.Errorf("address %s is not of %s", a, extra.All()[i])
		}
		asked = append(asked, ask(t, echoURL(a)))
	}
	if got := retired(); len(got) != 0 {
		t.Errorf("retired before anything was taken away: %s", got)
	}

	patchNodeConfig(t, node.Name(), "json", []map[string]any{
		{"op": "remove", "path": "/spec/podCIDRs/ipv6/1"},
		{"op": "remove", "path": "/spec/podCIDRs/ipv4/1"},
	})
	want := []string{extra.IPv6.String(), extra.IPv4.String()}
	eventually(t, 60*time.Second, func() error {
		if got := retired(); !slices.Equal(got, want) {
			return fmt.Errorf("retiredCIDRs: %s, want %s", got, want)
		}
		return nil
	})
	c.create(t, "shop", "late", node.Name(), asks)
	c.says(t, "shop", "late", "AddressRefused",
		"pod shop/late: annotation flock.fritzlab.net/cidr6: "+extra.IPv6.String()+" is neither one of the IPv6 CIDRs of node "+node.Name()+" nor a part of one: choose from "+node.Pods().IPv6.String()+", or let the pod run on another node")
	summariesAtTor(true)
	c.reached(t, pod, podIPs(t, pod)...)
	for _, a := range asked {
		a.allAnswered(t)
	}

	c.remove(t, "shop", "stays")
	summariesAtTor(false)
	eventually(t, 60*time.Second, func() error {
		if got := retired(); len(got) != 0 {
			return fmt.Errorf("retiredCIDRs: %s, want none", got)
		}
		return nil
	})
}

// announced waits until the router has a route to each address, via the node.
func announced(t *testing.T, node plan.Node, addrs ...netip.Addr) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		for _, a := range addrs {
			via := node.LAN().IPv6.Addr()
			if a.Is4() {
				via = node.LAN().IPv4.Addr()
			}
			if r, ok := routeAtTor(t, single(a)); !ok || r.Via != via {
				return fmt.Errorf("tor: route to %s: %t (%s), want one via %s", single(a), ok, r, via)
			}
		}
		return nil
	})
}

func withdrawn(t *testing.T, addrs ...netip.Addr) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		for _, a := range addrs {
			if r, ok := routeAtTor(t, single(a)); ok {
				return fmt.Errorf("tor has route %s still", r)
			}
		}
		return nil
	})
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func routeAtTor(t *testing.T, p netip.Prefix) (fabric.Route, bool) {
	t.Helper()
	routes := routesAtTor(t)
	i := slices.IndexFunc(routes, func(r fabric.Route) bool { return r.Prefix == p })
	if i < 0 {
		return fabric.Route{}, false
	}
	return routes[i], true
}

func routesAtTor(t *testing.T) []fabric.Route {
	t.Helper()
	routes, err := fabric.Routes(labDir(t), plan.Nodes(3))
	if err != nil {
		t.Fatal(err)
	}
	return routes
}

// says waits for an event of the pod with exactly the message want, and for the kubelet
// to repeat it. The pod must not run.
func (c *podClient) says(t *testing.T, namespace, pod, reason, want string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		events := c.events(t, namespace, pod)
		said := slices.ContainsFunc(events, func(e corev1.Event) bool {
			return e.Type == corev1.EventTypeWarning && e.Reason == reason && e.Message == want
		})
		repeated := slices.ContainsFunc(events, func(e corev1.Event) bool {
			return e.Reason == "FailedCreatePodSandBox" && strings.Contains(e.Message, want)
		})
		if !said || !repeated {
			return fmt.Errorf("want a Warning %s, and the kubelet's, that say %q\n%s", reason, want, texts(events))
		}
		return nil
	})
	p, err := c.CoreV1().Pods(namespace).Get(t.Context(), pod, metav1.GetOptions{})
	if err != nil || p.Status.Phase != corev1.PodPending || len(p.Status.PodIPs) > 0 {
		t.Errorf("pod %s/%s: %v, %s with %s", namespace, pod, err, p.Status.Phase, p.Status.PodIPs)
	}
}

func (c *podClient) events(t *testing.T, namespace, pod string) []corev1.Event {
	t.Helper()
	list, err := c.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func texts(events []corev1.Event) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "  %s %s: %s\n", e.Type, e.Reason, e.Message)
	}
	return b.String()
}

// namespaces makes them for the time of the test, each with the label team.
func (c *podClient) namespaces(t *testing.T, names ...string) {
	t.Helper()
	t.Cleanup(func() {
		mustKubectl(t, append([]string{"delete", "namespace", "--timeout=180s", "--ignore-not-found"}, names...)...)
	})
	for _, name := range names {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"team": name}}}
		if _, err := c.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// Without its account a pod is refused.
	eventually(t, 60*time.Second, func() error {
		for _, name := range names {
			if _, err := c.CoreV1().ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
				return err
			}
		}
		return nil
	})
}

// remove deletes a pod and waits until its node has no more of it.
func (c *podClient) remove(t *testing.T, namespace, pod string) {
	t.Helper()
	if err := c.CoreV1().Pods(namespace).Delete(t.Context(), pod, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		_, err := c.CoreV1().Pods(namespace).Get(t.Context(), pod, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("pod %s/%s is there still: %v", namespace, pod, err)
	})
}
