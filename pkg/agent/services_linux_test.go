package agent_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/datapath/proxy/proxytest"
)

// A Service of no selector is announced while kube-proxy has an endpoint of the node for it,
// with the API server away, over a kill of the agent and its start, until kube-proxy's rule
// goes. Nothing of it is in the kernel when the Service is gone.
func TestServiceWithoutAPIServer(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	// The API server knows of AddressPools and namespaces, and of no Services.
	api := n.serveAPI()
	api.services.away.Store(true)
	external := pool("external", "198.51.100.0/28")
	external.Spec.Uses = []v1alpha1.PoolUse{v1alpha1.UseService}
	external.Spec.Services = &v1alpha1.PoolServices{ExternalIPs: true}
	external.Spec.NamespaceSelector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "quarantine", Operator: metav1.LabelSelectorOpDoesNotExist}}}
	api.pools.set(external)
	namespace := corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	api.namespaces.put("shop", namespace)
	class, mode := v1alpha1.LoadBalancerClass, corev1.LoadBalancerIPModeVIP
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, Ports: []corev1.ServicePort{{Port: 80}},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, ExternalIPs: []string{"198.51.100.7"},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "203.0.113.7", IPMode: &mode}}}},
	}
	write := func(all ...*corev1.Service) {
		b, err := json.Marshal(append([]*corev1.Service{}, all...)) // no Services are [], as an agent writes it
		if err != nil {
			t.Fatal(err)
		}
		n.write("services.json", string(b))
	}
	program := func(here ...netip.AddrPort) {
		t.Helper()
		p := proxytest.Port{Name: "shop/web:", Addr: netip.MustParseAddr("203.0.113.7"), Protocol: "tcp", Port: 80, Local: true, Here: here}
		q := p
		q.Addr = netip.MustParseAddr("198.51.100.7")
		file := filepath.Join(t.TempDir(), "rules")
		if err := os.WriteFile(file, []byte(proxytest.NFTables(netip.MustParsePrefix("10.1.0.0/16"), p, q)), 0o600); err != nil {
			t.Fatal(err)
		}
		n.host.Exec("nft", "-f", file)
	}
	eachAnnounced := func(loadBalancer, external bool) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			for addr, want := range map[string]bool{"203.0.113.7": loadBalancer, "198.51.100.7": external} {
				if got := n.host.IP("route", "show", addr, "proto", "85", "metric", "640"); (got != "") != want {
					return fmt.Errorf("route %q to %s, want %t", got, addr, want)
				}
			}
			return nil
		})
	}
	announced := func(want bool) { t.Helper(); eachAnnounced(want, want) }
	write(svc)
	n.start()
	eventually(t, n.agentLog, func() error {
		if got := n.host.IP("route", "show", "203.0.113.7"); !strings.Contains(got, "dev flock-service") {
			return fmt.Errorf("route %q", got)
		}
		return nil
	})
	announced(false)
	here := netip.MustParseAddrPort("10.1.0.9:8080")
	program(here)
	announced(true)

	seen := n.monitorRoutes()
	n.kill()
	api.namespaces.away.Store(true)
	n.start()
	eventually(t, n.agentLog, func() error {
		if code, body := n.get("/metrics"); code != 200 || !strings.Contains(body, `flock_service_addresses{announced="true"} 2`) || !strings.Contains(body, `flock_service_proxy{mode="nftables"} 1`) {
			return fmt.Errorf("metrics %d", code)
		}
		return nil
	})
	if got := seen(); strings.Contains(got, "203.0.113.7") || strings.Contains(got, "198.51.100.7") {
		t.Errorf("a start of the agent changed routes:\n%s", got)
	}
	api.namespaces.away.Store(false)
	namespace.Labels = map[string]string{"quarantine": "yes"}
	api.namespaces.put("shop", namespace)
	eachAnnounced(true, false)
	namespace.Labels = nil
	api.namespaces.put("shop", namespace)
	announced(true)
	program()
	announced(false)
	program(here)
	announced(true)
	// A deleted Service, in the copy: there is no API server.
	n.kill()
	write()
	n.start()
	announced(false)
	if got := n.host.Exec("nft", "list", "tables"); !strings.Contains(got, "flock-service") {
		t.Errorf("what still arrives is not refused any more: %s", got)
	}
}

// A Node that is excluded from load balancers announces nothing, also when its agent starts
// and cannot read the Node.
func TestExcludedNode(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	api.nodes.register()
	class, mode, addr := v1alpha1.LoadBalancerClass, corev1.LoadBalancerIPModeVIP, netip.MustParseAddr("203.0.113.7")
	api.services.put("web", &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, Ports: []corev1.ServicePort{{Port: 80}},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: addr.String(), IPMode: &mode}}}},
	})
	p := proxytest.Port{Name: "shop/web:", Addr: addr, Protocol: "tcp", Port: 80, Local: true, Here: []netip.AddrPort{netip.MustParseAddrPort("10.1.0.9:8080")}}
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(proxytest.NFTables(netip.MustParsePrefix("10.1.0.0/16"), p)), 0o600); err != nil {
		t.Fatal(err)
	}
	n.host.Exec("nft", "-f", file)
	says := func(reason string) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			if s := api.status().Services; len(s) != 1 || s[0].Reason != reason {
				return fmt.Errorf("status %+v, want %s", s, reason)
			}
			return nil
		})
	}
	excluded := map[string]string{corev1.LabelNodeExcludeBalancers: ""}
	n.start()
	says("Serving")
	api.nodes.label(excluded)
	says("NodeExcluded")
	n.kill()
	api.nodes.away.Store(true)
	seen := n.monitorRoutes()
	n.start()
	// The status is of the agent that has ended, until this one has reported.
	eventually(t, n.agentLog, func() error {
		if code, body := n.get("/metrics"); code != 200 || !strings.Contains(body, `flock_service_addresses{announced="false"} 1`) || !strings.Contains(body, `flock_service_proxy{mode="nftables"} 1`) {
			return fmt.Errorf("metrics %d", code)
		}
		return nil
	})
	says("NodeExcluded")
	if got := seen(); strings.Contains(got, addr.String()) {
		t.Errorf("a start of the agent changed routes:\n%s", got)
	}
	api.nodes.away.Store(false)
	api.nodes.label(nil)
	says("Serving")
}
