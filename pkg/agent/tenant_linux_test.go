package agent_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// pod has the API server know a pod of namespace shop with annotations.
func (s *apiServer) pod(name string, annotations map[string]string) {
	s.pods.Store("/api/v1/namespaces/shop/pods/"+name, corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), Annotations: annotations},
	})
}

// addAs is an ADD for a pod of namespace shop.
func (s *sandbox) addAs(name string) error {
	conf := s.conf()
	conf.Args = [][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", name}, {"K8S_POD_UID", name}}
	runtime, list := s.n.network()
	_, err := runtime.AddNetworkList(s.n.t.Context(), list, conf)
	return err
}

// addressList is n addresses of 10.1.0.0/24 for an annotation, from .1 on.
func addressList(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("10.1.0.%d", i+1))
	}
	return strings.Join(list, ",")
}

// TestTenantAddresses: what a pod gets of the node's addresses by its annotations alone,
// through plugin, agent and kernel.
func TestTenantAddresses(t *testing.T) {
	t.Parallel()
	granted := strings.Replace(nodeConfig, `"podCIDRs":{`, `"podCIDRs":{"static":{"namespaceSelector":{},"maxAddressesPerNamespace":9},`, 1)
	granted = strings.Replace(granted, `"quarantineSeconds":0`, `"quarantineSeconds":3600`, 1)
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	api.pools.set()
	n.start()
	refused := func(id, pod, want string) {
		t.Helper()
		if err := n.sandbox(id).addAs(pod); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("pod %s: %v, want %q", pod, err, want)
		}
	}
	api.pod("one", map[string]string{annotation.Addresses: "10.1.0.77"})
	api.pod("all", map[string]string{annotation.Addresses: addressList(254)})
	api.pod("part", map[string]string{annotation.CIDR4: "10.1.0.77/32"})
	for _, pod := range []string{"one", "part"} {
		refused(pod, pod, "spec.podCIDRs.static of nodeconfig node1 is not set")
	}
	refused("all", "all", "255 addresses are too many, as a pod may have 8 on node node1")

	api.put("a", 4, granted)
	api.accepted(n, 4, metav1.ConditionTrue, "")
	refused("all-again", "all", "a pod may have 8 on node node1")
	one := n.sandbox("granted")
	if err := one.addAs("one"); err != nil {
		t.Fatalf("%v\n%s", err, n.agentLog())
	}

	// Released, it is nobody else's for an hour, and the pod's own at once. Another agent
	// process changes nothing about that.
	api.pod("thief", map[string]string{annotation.Addresses: "10.1.0.77"})
	if err := one.del(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		refused("thief", "thief", "10.1.0.77 is in quarantine until ")
		n.kill()
		n.start()
	}
	if err := n.sandbox("again").addAs("one"); err != nil {
		t.Errorf("the pod itself: %v", err)
	}

	// The namespace has one of nine, and the next pod takes seven more.
	api.pod("seven", map[string]string{annotation.Addresses: addressList(7)})
	if err := n.sandbox("seven").addAs("seven"); err != nil {
		t.Error(err)
	}
	api.pod("two", map[string]string{annotation.Addresses: "10.1.0.78,10.1.0.79"})
	refused("two", "two", "2 more by name of the pod CIDRs of node node1 would exceed the 9 that the pods of namespace shop may hold together")

	// An address that a Service has is not shared with pods, though the pool is for both.
	api.namespaces.put("shop", corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	both, pods := pool("both", "203.0.113.0/28"), pool("pods", "198.51.100.0/28")
	both.Spec.Uses = append(both.Spec.Uses, v1alpha1.UseService)
	api.pools.set(both, pods)
	held := v1alpha1.AddressClaim{TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "AddressClaim"}, ObjectMeta: metav1.ObjectMeta{Name: "203.0.113.7"}}
	held.Spec = v1alpha1.AddressClaimSpec{Address: "203.0.113.7", Services: []v1alpha1.ServiceClaim{{Namespace: "bank", Name: "web"}}}
	api.claims.put(held.Name, held)
	for name, addr := range map[string]string{"hijack": "203.0.113.7", "free": "203.0.113.8", "unknown": "203.0.113.9", "others": "198.51.100.7"} {
		api.pod(name, map[string]string{annotation.Anycast: addr})
	}
	eventually(t, n.agentLog, func() error {
		if err := n.sandbox("hijack").addAs("hijack"); err == nil || !strings.Contains(err.Error(), "annotation flock.fritzlab.net/anycast: 203.0.113.7 is held by Service bank/web") {
			return fmt.Errorf("pod hijack: %v", err)
		}
		return nil
	})
	if err := n.sandbox("free").addAs("free"); err != nil {
		t.Error(err)
	}
	api.claims.away.Store(true)
	refused("unknown", "unknown", "the API server does not answer, so no address of an AddressPool can be claimed")
	if err := n.sandbox("others").addAs("others"); err != nil {
		t.Errorf("an address of a pool for pods alone: %v", err)
	}
}

// TestTenantAndRouting: the agent closes the port on which BIRD listens to pods, and no
// pod gets it as a port of the node.
func TestTenantAndRouting(t *testing.T) {
	t.Parallel()
	n := newNode(t, strings.Replace(nodeConfig, `"defaults"`, `"bgp":{"localAS":64601,"routerID":"192.0.2.2","listenPort":1790,"peers":[{"name":"tor","address":"192.0.2.1","remoteAS":64512}]},"startup":{"sessions":"none"},"defaults"`, 1))
	n.start()
	eventually(t, n.agentLog, func() error {
		table, err := n.host.Try("nft", "list", "table", "inet", "flock-node")
		if err != nil || !strings.Contains(table, "tcp dport 1790") || !strings.Contains(table, "2001:db8:ffff::/64") || !strings.Contains(table, "192.0.2.0/24") {
			return fmt.Errorf("the node guard's table: %v\n%s", err, table)
		}
		return nil
	})
	for _, port := range []int{1790, 179} {
		s := n.sandbox(fmt.Sprint("p", port))
		s.portMappings = []map[string]any{{"hostPort": port, "containerPort": 80, "protocol": "tcp"}}
		if _, err := s.add(); (err == nil) != (port == 179) || err != nil && !strings.Contains(err.Error(), "hostPort 1790/tcp is the port of the node's routing daemon (BGP): choose another") {
			t.Errorf("hostPort %d: %v", port, err)
		}
	}
}
