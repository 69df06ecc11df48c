//go:build apiserver

package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/kube/kubetest"
	"flock.fritzlab.net/flock/pkg/service"
)

// TestAPIServer is one story with one server; the controllers have the rights that deploy/
// gives them.
func TestAPIServer(t *testing.T) {
	s := &server{Server: kubetest.Start(t, "../../deploy")}
	var err error
	if s.core, err = core.NewForConfig(s.Admin()); err != nil {
		t.Fatal(err)
	}
	if s.flock, err = kube.NewClient(s.Admin()); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{"shop", "dns", "evil"} {
		s.Kubectl(fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q,"labels":{"team":%q}}}`, ns, ns), "create", "--filename=-")
	}
	for _, c := range []struct {
		name string
		test func(*testing.T, *server)
	}{
		{"a Service's life", life},
		{"what a tenant cannot have", tenants},
		{"addresses of others", others},
		{"a node that lies", liar},
		{"external IPs", externalIPs},
		{"Services without a class", classless},
		{"nodes that are gone", deadNodes},
		{"who uses a pool", poolStatus},
		{"pod CIDRs of several nodes", overlappingCIDRs},
		{"nodes that should run an agent", agentsExpected},
		{"passwords", sealedPasswords},
		{"a password of many nodes", passwordsOfMany},
		{"a template reaches nodes in waves", waves},
		{"the Lease", lease},
		{"two controllers at once, without a Lease", twoAtOnce},
		{"controllers are killed and paused", churn},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.test(t, s)
			s.clean(t)
		})
	}
}

type server struct {
	*kubetest.Server
	core  *core.CoreV1Client
	flock *kube.Client
}

// clean deletes what a test has left, and waits until it is gone.
func (s *server) clean(t *testing.T) {
	t.Helper()
	now, background := int64(0), metav1.DeletePropagationBackground
	for _, ns := range []string{"shop", "dns", "evil", "default"} {
		err := errors.Join(
			s.deleteServices(t, ns),
			s.core.Pods(ns).DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: &now, PropagationPolicy: &background}, metav1.ListOptions{}))
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, resource := range []string{"addresspools", "addressclaims", "nodeconfigs"} {
		if err := s.flock.Flock().Delete().Resource(resource).Do(t.Context()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.core.Nodes().DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (s *server) deleteServices(t *testing.T, namespace string) error {
	return s.core.RESTClient().Delete().Namespace(namespace).Resource("services").Param("fieldSelector", "metadata.name!=kubernetes").Do(t.Context()).Error()
}

// run has a controller work until the test ends or stop is called, as the instance with the
// Lease does.
func (s *server) run(t *testing.T, change ...func(*Config)) (stop func()) {
	t.Helper()
	c := Config{API: s.Controller(), Name: "test", Namespace: "flock-system", Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	for _, f := range change {
		f(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := Lead(ctx, c); err != nil {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func (s *server) apply(t *testing.T, manifest string) {
	t.Helper()
	s.Kubectl(manifest, "apply", "--filename=-")
}

func pool(name, cidrs string, more ...string) string {
	return fmt.Sprintf(`
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: %s}
spec:
  cidrs: [%s]
  uses: [service]
  namespaceSelector: {}
`, name, cidrs) + strings.Join(more, "\n") + "\n---\n"
}

func svc(key string, more ...string) string {
	namespace, name, _ := strings.Cut(key, "/")
	m := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata:
  namespace: %s
  name: %s
  annotations: {%s}
spec:
  type: LoadBalancer
  loadBalancerClass: flock.fritzlab.net/bgp
  allocateLoadBalancerNodePorts: false
  selector: {app: x}
`, namespace, name, strings.Join(slices.DeleteFunc(slices.Clone(more), func(m string) bool { return !strings.HasPrefix(m, "flock.") }), ", "))
	ports := "  ports: [{port: 80}]\n"
	for _, line := range more {
		switch {
		case strings.HasPrefix(line, "flock."):
		case strings.HasPrefix(line, "ports:"):
			ports = "  " + line + "\n"
		default:
			m += "  " + line + "\n"
		}
	}
	return m + ports + "---\n"
}

func (s *server) get(t *testing.T, key string) *corev1.Service {
	t.Helper()
	namespace, name, _ := strings.Cut(key, "/")
	svc, err := s.core.Services(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

func addresses(svc *corev1.Service) string {
	var all []string
	for _, h := range service.Held(svc) {
		all = append(all, h.Addr.String())
	}
	return strings.Join(all, " ")
}

// has waits until a Service has these addresses, and its condition this reason.
func (s *server) has(t *testing.T, key, want, reason string) *corev1.Service {
	t.Helper()
	var got *corev1.Service
	var c *metav1.Condition
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		got = s.get(t, key)
		c = meta.FindStatusCondition(got.Status.Conditions, v1alpha1.ServiceAddressAssigned)
		if addresses(got) == want && c != nil && c.Reason == reason {
			if complete := reason == service.Assigned || reason == service.PartlyAssigned; (c.Status == metav1.ConditionTrue) != complete {
				t.Errorf("%s: condition %+v", key, c)
			}
			return got
		}
	}
	t.Fatalf("%s has %q, %+v; want %q, %s", key, addresses(got), c, want, reason)
	return nil
}

// claimed waits until the claim of an address is of these: Services as namespace/name, or a
// pod; "" if there is to be none.
func (s *server) claimed(t *testing.T, addr, want string) {
	t.Helper()
	name := v1alpha1.AddressClaimName(netip.MustParseAddr(addr))
	var got []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		got = nil
		c, err := s.flock.GetClaim(t.Context(), name)
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		for _, share := range c.Spec.Services {
			got = append(got, share.Namespace+"/"+share.Name+" "+strings.Join(share.Ports, ","))
		}
		if c.Spec.PodName != "" {
			got = append(got, c.Spec.PodName)
		}
		slices.Sort(got)
		if strings.Join(got, " ") == want {
			return
		}
	}
	t.Fatalf("%s is claimed by %q, want %q", addr, got, want)
}

// rests waits until the address of a pod is in quarantine.
func (s *server) rests(t *testing.T, addr string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		c, err := s.flock.GetClaim(t.Context(), v1alpha1.AddressClaimName(netip.MustParseAddr(addr)))
		if err == nil && c.Spec.QuarantinedUntil != nil {
			return
		}
	}
	t.Fatalf("the claim on %s does not come into quarantine", addr)
}

// events waits for an Event of a Service with that reason and returns its note.
func (s *server) event(t *testing.T, key, reason string) string {
	t.Helper()
	namespace, name, _ := strings.Cut(key, "/")
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		out := s.Kubectl("", "get", "events.v1.events.k8s.io", "--namespace="+namespace, "--field-selector=regarding.kind=Service,regarding.name="+name+",reason="+reason, "--output=jsonpath={.items[*].note}|{.items[*].reportingController}")
		if note, by, _ := strings.Cut(out, "|"); note != "" {
			if !strings.Contains(by, "flock.fritzlab.net/controller") {
				t.Errorf("the Event is of %s", by)
			}
			return note
		}
	}
	t.Fatalf("no Event %s of %s", reason, key)
	return ""
}

// life: a Service gets, keeps, changes, shares and gives back its addresses.
func life(t *testing.T, s *server) {
	stop := s.run(t)
	s.apply(t, svc("shop/web", "ipFamilyPolicy: RequireDualStack"))
	s.has(t, "shop/web", "", service.NoPool)
	if note := s.event(t, "shop/web", service.NoPool); !strings.Contains(note, `there is no AddressPool with use "service"`) {
		t.Errorf("Event: %s", note)
	}
	s.apply(t, pool("web", `"2001:db8:80::/64", 203.0.113.0/28`))
	web := s.has(t, "shop/web", "2001:db8:80::1 203.0.113.1", service.Assigned)
	for _, in := range web.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeVIP || len(in.Ports) != 1 || in.Ports[0].Port != 80 || in.Ports[0].Protocol != corev1.ProtocolTCP {
			t.Errorf("ingress %+v", in)
		}
	}
	s.claimed(t, "2001:db8:80::1", "shop/web 80/TCP")
	if note := s.event(t, "shop/web", service.Assigned); !strings.Contains(note, "2001:db8:80::1 of AddressPool web, 203.0.113.1 of AddressPool web") {
		t.Errorf("Event: %s", note)
	}
	t.Log("\n" + s.Kubectl("", "get", "addressclaims,addresspools"))

	// Families, one after the other.
	s.apply(t, svc("shop/four", "ipFamilies: [IPv4]"))
	s.has(t, "shop/four", "203.0.113.2", service.Assigned)
	s.apply(t, svc("shop/prefer", "ipFamilyPolicy: PreferDualStack", "flock.fritzlab.net/addresses: '203.0.113.9'"))
	s.has(t, "shop/prefer", "2001:db8:80::2 203.0.113.9", service.Assigned)
	s.apply(t, svc("shop/prefer", "ipFamilyPolicy: SingleStack", "flock.fritzlab.net/addresses: ''"))
	s.has(t, "shop/prefer", "2001:db8:80::2", service.Assigned)
	s.claimed(t, "203.0.113.9", "")

	// A share, and ports that change.
	s.apply(t, svc("shop/tls", "ports: [{port: 443}]", "flock.fritzlab.net/shared-with: prefer"))
	s.has(t, "shop/tls", "2001:db8:80::2", service.Assigned)
	s.claimed(t, "2001:db8:80::2", "shop/prefer 80/TCP shop/tls 443/TCP")
	s.apply(t, svc("shop/tls", "ports: [{port: 443, name: a}, {port: 8443, name: b}]", "flock.fritzlab.net/shared-with: prefer"))
	s.claimed(t, "2001:db8:80::2", "shop/prefer 80/TCP shop/tls 443/TCP,8443/TCP")
	s.apply(t, svc("shop/tls", "ports: [{port: 8443, name: b}]", "flock.fritzlab.net/shared-with: prefer"))
	s.claimed(t, "2001:db8:80::2", "shop/prefer 80/TCP shop/tls 8443/TCP")
	s.apply(t, svc("shop/prefer", "ports: [{port: 80, name: a}, {port: 8443, name: b}]"))
	s.has(t, "shop/prefer", "", service.PortInUse)
	s.has(t, "shop/tls", "2001:db8:80::2", service.Assigned)
	s.claimed(t, "2001:db8:80::2", "shop/tls 8443/TCP")
	if note := s.event(t, "shop/prefer", "AddressLost"); !strings.Contains(note, "port 8443/TCP of 2001:db8:80::2 is that of Service shop/tls") {
		t.Errorf("Event: %s", note)
	}
	s.apply(t, svc("shop/prefer"))
	s.has(t, "shop/prefer", "2001:db8:80::2", service.Assigned)

	// Over a restart, a pool that is narrowed, and one that is deleted.
	stop()
	s.apply(t, pool("web", `"2001:db8:81::/64"`))
	s.apply(t, svc("shop/late"))
	s.run(t)
	s.has(t, "shop/late", "2001:db8:81::1", service.Assigned)
	for key, want := range map[string]string{"shop/web": "2001:db8:80::1 203.0.113.1", "shop/four": "203.0.113.2", "shop/prefer": "2001:db8:80::2", "shop/tls": "2001:db8:80::2"} {
		s.has(t, key, want, service.Assigned)
	}
	s.Kubectl("", "delete", "addresspool", "web")
	s.apply(t, svc("shop/later"))
	s.has(t, "shop/later", "", service.NoPool)
	s.has(t, "shop/late", "2001:db8:81::1", service.Assigned)

	// A claim that somebody deletes.
	s.Kubectl("", "delete", "addressclaim", v1alpha1.AddressClaimName(netip.MustParseAddr("2001:db8:80::1")))
	s.claimed(t, "2001:db8:80::1", "shop/web 80/TCP")
	// A status that somebody changes.
	s.Kubectl(`{"status":{"loadBalancer":{"ingress":null}}}`, "patch", "service", "web", "--namespace=shop", "--subresource=status", "--type=merge", "--patch-file=/dev/stdin")
	s.has(t, "shop/web", "2001:db8:80::1 203.0.113.1", service.Assigned)

	// Another type, and the end.
	s.Kubectl("", "patch", "service", "web", "--namespace=shop", "--type=merge", `--patch={"spec":{"type":"ClusterIP","allocateLoadBalancerNodePorts":null,"loadBalancerClass":null}}`)
	s.claimed(t, "2001:db8:80::1", "")
	for deadline := time.Now().Add(20 * time.Second); len(s.get(t, "shop/web").Status.Conditions) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("conditions stay: %+v", s.get(t, "shop/web").Status.Conditions)
		}
	}
	s.Kubectl("", "delete", "services", "--all", "--namespace=shop")
	for _, a := range []string{"203.0.113.1", "203.0.113.2", "2001:db8:80::2", "2001:db8:81::1"} {
		s.claimed(t, a, "")
	}
}

// tenants: what a tenant writes gets him no address that no pool admits, and no share of one
// that is not his.
func tenants(t *testing.T, s *server) {
	s.run(t)
	s.apply(t,
		pool("open", `"2001:db8:80::/64"`, `  services: {sharing: pool}`)+
			pool("own", `"2001:db8:81::/64"`, `  services: {autoAssign: false}`))
	s.apply(t, strings.Replace(pool("dns", `"2001:db8:53::/64"`), "namespaceSelector: {}", "namespaceSelector: {matchLabels: {team: dns}}", 1))
	s.apply(t, svc("dns/resolver", "flock.fritzlab.net/pool: dns")+svc("shop/web", "flock.fritzlab.net/addresses: '2001:db8:80::7'"))
	s.has(t, "dns/resolver", "2001:db8:53::1", service.Assigned)
	s.has(t, "shop/web", "2001:db8:80::7", service.Assigned)
	for i, c := range []struct {
		more   []string
		reason string
	}{
		{[]string{"flock.fritzlab.net/addresses: '2001:db8:53::9'"}, service.NotAdmitted},
		{[]string{"flock.fritzlab.net/addresses: '2001:db8:53::1'"}, service.NotAdmitted},
		{[]string{"loadBalancerIP: '2001:db8:53::9'"}, service.NotAdmitted},
		{[]string{"flock.fritzlab.net/pool: dns"}, service.NoPool},
		{[]string{"flock.fritzlab.net/addresses: '2001:db8:99::1'"}, service.NotAdmitted},
		{[]string{"flock.fritzlab.net/addresses: '2001:db8:80::7'", "ports: [{port: 443}]"}, service.AddressInUse},
		{[]string{"flock.fritzlab.net/shared-with: shop/web", "ports: [{port: 443}]"}, service.NotShared},
		{[]string{"flock.fritzlab.net/shared-with: shop/web", "flock.fritzlab.net/addresses: '2001:db8:80::7'", "ports: [{port: 443}]"}, service.NotShared},
		{[]string{"flock.fritzlab.net/shared-with: dns/resolver", "ports: [{port: 443}]"}, service.NotAdmitted},
		{[]string{"flock.fritzlab.net/shared-with: ../web"}, service.InvalidRequest},
	} {
		key := fmt.Sprint("evil/", "s", i)
		s.apply(t, svc(key, c.more...))
		s.has(t, key, "", c.reason)
	}
	// A status that the tenant forges is put right, if he can write one at all.
	s.apply(t, svc("evil/forged", "flock.fritzlab.net/addresses: '2001:db8:53::9'"))
	s.has(t, "evil/forged", "", service.NotAdmitted)
	if out, err := s.TryKubectl(`{"status":{"loadBalancer":{"ingress":[{"ip":"2001:db8:53::9","ipMode":"VIP"}]}}}`, "patch", "service", "forged", "--namespace=evil", "--subresource=status", "--type=merge", "--patch-file=/dev/stdin", "--as=tenant"); err == nil {
		t.Errorf("a tenant without rights to services/status writes one: %s", out)
	}
	// The agent's account has no right to any Service.
	agent := s.Core(s.Agent("node1"))
	if err := agent.Patch(types.MergePatchType).Namespace("shop").Resource("services").Name("web").SubResource("status").Body([]byte(`{"status":{"loadBalancer":{"ingress":null}}}`)).Do(t.Context()).Error(); !apierrors.IsForbidden(err) {
		t.Errorf("an agent may write a Service's status: %v", err)
	}
}

// others: no Service gets an address that a pod, a node, a router or another Service has.
func others(t *testing.T, s *server) {
	s.Kubectl(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"node1"}}`, "create", "--filename=-")
	s.Kubectl(`{"status":{"addresses":[{"type":"InternalIP","address":"2001:db8:80::1"}]}}`, "patch", "node", "node1", "--subresource=status", "--type=merge", "--patch-file=/dev/stdin")
	s.apply(t, `
apiVersion: flock.fritzlab.net/v1alpha1
kind: NodeConfig
metadata: {name: node1}
spec:
  podCIDRs: {ipv6: ["2001:db8:80::100/120"]}
  bgp: {localAS: 64601, routerID: 192.0.2.11, peers: [{name: tor, address: "2001:db8:80::2", remoteAS: 64512}]}
`)
	s.apply(t, strings.Replace(pool("mixed", `"2001:db8:80::/64"`), "[service]", "[service, static, anycast]", 1))
	claim := &v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: "2001:db8:80::3", PodNamespace: "shop", PodName: "pod", PodUID: "u", NodeName: "node1"}}
	claim.Name = v1alpha1.AddressClaimName(netip.MustParseAddr(claim.Spec.Address))
	if err := s.flock.CreateClaim(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	s.apply(t, `{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"shop","name":"any","annotations":{"flock.fritzlab.net/anycast":"2001:db8:80::4"}},"spec":{"containers":[{"name":"c","image":"echo:dev"}]}}`)
	s.apply(t, `{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"shop","name":"foreign"},"spec":{"type":"LoadBalancer","loadBalancerClass":"example.com/x","allocateLoadBalancerNodePorts":false,"ports":[{"port":80}]}}`)
	s.Kubectl(`{"status":{"loadBalancer":{"ingress":[{"ip":"2001:db8:80::5","ipMode":"VIP"}]}}}`, "patch", "service", "foreign", "--namespace=shop", "--subresource=status", "--type=merge", "--patch-file=/dev/stdin")
	// A pod that asks for more than any node gives one takes nothing.
	var most []string
	for i := range 16 {
		most = append(most, fmt.Sprintf("2001:db8:80::%x", i))
	}
	s.apply(t, fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"evil","name":"all","annotations":{"flock.fritzlab.net/anycast":%q}},"spec":{"containers":[{"name":"c","image":"echo:dev"}]}}`, strings.Join(most, ",")))
	s.run(t)
	s.apply(t, svc("shop/web"))
	s.has(t, "shop/web", "2001:db8:80::6", service.Assigned)
	for addr, why := range map[string]string{
		"2001:db8:80::1": "is an address of node node1", "2001:db8:80::2": "is the address of BGP peer tor of node node1",
		"2001:db8:80::3": "is an address of pod shop/pod on node node1", "2001:db8:80::4": "is an anycast address of pod shop/any",
		"2001:db8:80::5": "is an address of Service shop/foreign, which is of another load balancer class", "2001:db8:80::6": "is held by Service shop/web",
		"2001:db8:80::17f": "is in the pod CIDR 2001:db8:80::100/120 of node node1",
	} {
		s.apply(t, svc("dns/asks", "flock.fritzlab.net/addresses: '"+addr+"'"))
		s.has(t, "dns/asks", "", service.AddressInUse)
		if c := meta.FindStatusCondition(s.get(t, "dns/asks").Status.Conditions, v1alpha1.ServiceAddressAssigned); !strings.Contains(c.Message, why) {
			t.Errorf("%s: %s", why, c.Message)
		}
		s.Kubectl("", "delete", "service", "asks", "--namespace=dns")
	}
	// And a pod does not get a Service's.
	mine := claim.DeepCopy()
	mine.Spec.Address = "2001:db8:80::6"
	mine.Name = v1alpha1.AddressClaimName(netip.MustParseAddr(mine.Spec.Address))
	agent, err := kube.NewClient(s.Agent("node1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.CreateClaim(t.Context(), mine); !apierrors.IsAlreadyExists(err) {
		t.Errorf("an agent claims the address of a Service: %v", err)
	}
	current, err := agent.GetClaim(t.Context(), mine.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.DropClaim(t.Context(), current); !apierrors.IsForbidden(err) {
		t.Errorf("an agent deletes the claim of a Service: %v", err)
	}
}

// liar: whoever has the token of one node's agent cannot keep Services from their pools.
func liar(t *testing.T, s *server) {
	s.Kubectl(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"node1"},"spec":{"podCIDRs":["10.1.0.0/24"]}}`, "create", "--filename=-")
	s.apply(t, pool("web", `"2001:db8:80::/120", 203.0.113.0/28`))
	agent, err := kube.NewClient(s.Agent("node1"))
	if err != nil {
		t.Fatal(err)
	}
	nc := &v1alpha1.NodeConfig{}
	nc.Name, nc.Labels = "node1", map[string]string{v1alpha1.TemplateLabel: "all"}
	nc.Spec.PodCIDRs.IPv6, nc.Spec.PodCIDRs.IPv4 = []v1alpha1.CIDR{"2001:db8:80::/48"}, []v1alpha1.CIDR{"203.0.113.0/24"}
	nc.Spec.MaxAddressesPerPod = 1024
	if err := agent.Flock().Post().Resource("nodeconfigs").Body(nc).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	status := v1alpha1.NodeConfigStatus{Conditions: []metav1.Condition{}, RetiredCIDRs: []string{"::/0", "0.0.0.0/0"}}
	for i := range 16 {
		for _, a := range []string{fmt.Sprintf("2001:db8:80::%x", i), fmt.Sprintf("203.0.113.%d", i)} {
			status.Anycast = append(status.Anycast, v1alpha1.AnycastStatus{Address: a, Pod: "dns/a", Reason: "Ready", Since: metav1.Now()})
		}
	}
	if err := agent.PatchStatus(t.Context(), "node1", status); err != nil {
		t.Fatal(err)
	}
	s.run(t)
	s.apply(t, svc("shop/web", "ipFamilyPolicy: RequireDualStack"))
	s.has(t, "shop/web", "2001:db8:80::1 203.0.113.1", service.Assigned)
	for i := range 65 {
		status.RetiredCIDRs = append(status.RetiredCIDRs, fmt.Sprintf("10.%d.0.0/16", i))
	}
	if err := agent.PatchStatus(t.Context(), "node1", status); !apierrors.IsInvalid(err) {
		t.Errorf("67 retired CIDRs: %v", err)
	}
}

// refuses checks that the server does not take a manifest, by create or replace, and why. It
// takes a moment to follow its policies and their parameters.
func (s *server) refuses(t *testing.T, verb, manifest, want string) {
	t.Helper()
	var out string
	var err error
	for deadline := time.Now().Add(20 * time.Second); err == nil && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		out, err = s.TryKubectl(manifest, verb, "--dry-run=server", "--filename=-")
	}
	if err == nil || !strings.Contains(out, want) {
		t.Errorf("%v %s, want %s", err, out, want)
	}
}

func externalIPs(t *testing.T, s *server) {
	s.apply(t, pool("web", `203.0.113.0/28`)+
		strings.Replace(pool("dns", `198.51.100.0/28`, `  services: {externalIPs: true}`), "namespaceSelector: {}", "namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [dns, shop]}, {key: team, operator: NotIn, values: [shop]}, {key: team, operator: Exists}, {key: x, operator: DoesNotExist}]}", 1))
	s.run(t)
	external := func(key, ip string) string {
		namespace, name, _ := strings.Cut(key, "/")
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"namespace":%q,"name":%q},"spec":{"ports":[{"port":53}],"externalIPs":[%q]}}`, namespace, name, ip)
	}
	s.refuses(t, "create", external("evil/x", "198.51.100.7"), "spec.externalIPs: 198.51.100.7 is of AddressPool dns, which does not admit namespace evil")
	for key, ip := range map[string]string{"shop/x": "198.51.100.7", "dns/x": "203.0.113.7", "evil/x": "203.0.113.7"} {
		if out, err := s.TryKubectl(external(key, ip), "create", "--dry-run=server", "--filename=-"); err == nil || !strings.Contains(out, "spec.externalIPs: "+ip) {
			t.Errorf("%s may have %s: %v %s", key, ip, err, out)
		}
	}
	for key, ip := range map[string]string{"dns/ok": "198.51.100.7", "evil/elsewhere": "192.0.2.7"} {
		s.apply(t, external(key, ip))
	}
	// kube-proxy reads more than the notation that the policy for pools finds in one, which has
	// a limit of its own for what it does: neither is a way around it.
	many := func(n int, last ...string) string {
		var all []string
		for i := range n - len(last) {
			all = append(all, fmt.Sprintf("10.9.%d.%d", i/200, i%200+1))
		}
		list, _ := json.Marshal(append(all, last...))
		return string(list)
	}
	externals := func(key, list string) string {
		return strings.Replace(external(key, "LIST"), `["LIST"]`, list, 1)
	}
	var cidrs []string
	for i := range 31 {
		cidrs = append(cidrs, fmt.Sprintf(`"2001:db8:%x::/64"`, 0xa000+i))
	}
	s.apply(t, pool("wide", strings.Join(cidrs, ", ")+", 198.18.0.0/28"))
	s.refuses(t, "create", external("evil/y", "198.18.0.1"), "198.18.0.1 is of AddressPool wide")
	for _, c := range []struct{ list, want string }{
		{`["198.51.100.007"]`, "spec.externalIPs: 198.51.100.007 is not written as an IP address is"},
		{`["::ffff:198.51.100.7"]`, "spec.externalIPs: ::ffff:198.51.100.7 is not written as an IP address is"},
		{many(65), "spec.externalIPs: has 65 addresses, and a Service may have 64"},
		{many(2000, "198.51.100.7"), "denied request"},
		{many(64, "198.51.100.7"), "spec.externalIPs: 198.51.100.7 is of AddressPool dns, which does not admit namespace evil"},
		{many(64, "198.18.0.7"), "spec.externalIPs: 198.18.0.7 is of AddressPool wide"},
	} {
		s.refuses(t, "create", externals("evil/y", c.list), c.want)
	}
	s.apply(t, externals("evil/many", many(64)))
	s.refuses(t, "replace", externals("evil/many", many(65)), "spec.externalIPs: has 65 addresses")
	s.refuses(t, "replace", externals("evil/many", many(65, "198.51.100.7")), "denied request")
	s.refuses(t, "replace", externals("evil/many", many(64, "198.51.100.7")), "198.51.100.7 is of AddressPool dns")
	// Those that were there before the pool.
	s.apply(t, external("evil/old", "203.0.114.7"))
	s.apply(t, pool("later", `203.0.114.0/28`))
	condition := func(key string) *metav1.Condition {
		return meta.FindStatusCondition(s.get(t, key).Status.Conditions, v1alpha1.ServiceExternalIPsAdmitted)
	}
	for key, want := range map[string]metav1.ConditionStatus{"dns/ok": metav1.ConditionTrue, "evil/old": metav1.ConditionFalse} {
		for deadline := time.Now().Add(20 * time.Second); condition(key) == nil || condition(key).Status != want; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v, want %s", key, condition(key), want)
			}
		}
	}
	if c := condition("evil/elsewhere"); c != nil {
		t.Errorf("an address of no pool: %+v", c)
	}
	// What is not changed is no reason to refuse a change.
	s.Kubectl("", "label", "service", "old", "--namespace=evil", "a=b")
	if note := s.event(t, "evil/old", "ExternalIPNotAdmitted"); !strings.Contains(note, "AddressPool later does not allow it") {
		t.Errorf("Event: %s", note)
	}
	s.apply(t, svc("dns/lb", "ipFamilies: [IPv4]", "flock.fritzlab.net/addresses: '198.51.100.7'"))
	s.has(t, "dns/lb", "", service.AddressInUse)
}

// classless: by setting, Services without a class get addresses too, and keep those that
// another controller has given them.
func classless(t *testing.T, s *server) {
	s.apply(t, pool("web", `"2001:db8:80::/64"`))
	without := func(key string) string {
		return strings.Replace(svc(key), "  loadBalancerClass: flock.fritzlab.net/bgp\n", "", 1)
	}
	s.apply(t, without("shop/old"))
	s.Kubectl(`{"status":{"loadBalancer":{"ingress":[{"ip":"2001:db8:80::1","ipMode":"VIP"}]}}}`, "patch", "service", "old", "--namespace=shop", "--subresource=status", "--type=merge", "--patch-file=/dev/stdin")
	stop := s.run(t)
	s.apply(t, svc("shop/ours"))
	s.has(t, "shop/ours", "2001:db8:80::2", service.Assigned)
	if old := s.get(t, "shop/old"); len(old.Status.Conditions) > 0 || addresses(old) != "2001:db8:80::1" {
		t.Errorf("one of another controller was written: %+v", old.Status)
	}
	stop()
	stop = s.run(t, func(c *Config) { c.Classless = true })
	s.has(t, "shop/old", "2001:db8:80::1", service.Assigned)
	s.claimed(t, "2001:db8:80::1", "shop/old 80/TCP")
	s.apply(t, without("shop/new"))
	s.has(t, "shop/new", "2001:db8:80::3", service.Assigned)
	stop()
	// Given back to another controller: it is that one's, and keeps its address.
	s.run(t)
	for deadline := time.Now().Add(20 * time.Second); len(s.get(t, "shop/old").Status.Conditions) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the condition stays")
		}
	}
	if old := s.get(t, "shop/old"); addresses(old) != "2001:db8:80::1" {
		t.Errorf("it has %s", addresses(old))
	}
	s.claimed(t, "2001:db8:80::1", "shop/old 80/TCP")
}

// deadNodes: the claims of pods that are gone end if their node is gone or not heard of, and
// the conditions of its NodeConfig become Unknown.
func deadNodes(t *testing.T, s *server) {
	node := func(name string, status corev1.ConditionStatus) {
		t.Helper()
		if _, err := s.TryKubectl("", "get", "node", name); err != nil {
			s.Kubectl(fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q}}`, name), "create", "--filename=-")
		}
		s.Kubectl(fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":%q,"lastTransitionTime":%q}]}}`, status, time.Now().UTC().Format(time.RFC3339)), "patch", "node", name, "--subresource=status", "--type=merge", "--patch-file=/dev/stdin")
	}
	claim := func(addr, podName, node string) {
		t.Helper()
		c := &v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: addr, PodNamespace: "default", PodName: podName, PodUID: "u", NodeName: node}}
		if pod, err := s.core.Pods("default").Get(t.Context(), podName, metav1.GetOptions{}); err == nil {
			c.Spec.PodUID = string(pod.UID)
		}
		c.Name = v1alpha1.AddressClaimName(netip.MustParseAddr(addr))
		if err := s.flock.CreateClaim(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"up", "silent", "gone"} {
		node(n, corev1.ConditionTrue)
		s.apply(t, fmt.Sprintf(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfig","metadata":{"name":%q},"spec":{"podCIDRs":{"ipv4":["10.1.0.0/24"]}}}`, n))
		agent, err := kube.NewClient(s.Agent(n))
		if err != nil {
			t.Fatal(err)
		}
		before := metav1.NewTime(time.Now().Add(-time.Minute))
		if err := agent.PatchStatus(t.Context(), n, v1alpha1.NodeConfigStatus{Conditions: []metav1.Condition{
			{Type: "Ready", Status: "True", Reason: "ServingPods", LastTransitionTime: before}, {Type: "SessionsUp", Status: "False", Reason: "Down", LastTransitionTime: before},
		}}); err != nil {
			t.Fatal(err)
		}
		s.Kubectl("", "run", "lives-"+n, "--image=echo:dev", "--restart=Never", fmt.Sprintf(`--overrides={"spec":{"nodeName":%q}}`, n))
		claim(map[string]string{"up": "192.0.2.101", "silent": "192.0.2.102", "gone": "192.0.2.103"}[n], "ended-"+n, n)
		claim(map[string]string{"up": "192.0.2.111", "silent": "192.0.2.112", "gone": "192.0.2.113"}[n], "lives-"+n, n)
	}
	s.apply(t, strings.Replace(pool("rests", "192.0.2.96/27", "  quarantineSeconds: 2"), "[service]", "[static]", 1))
	stop := s.run(t)
	node("silent", corev1.ConditionUnknown)
	s.Kubectl("", "delete", "node", "gone")
	for _, a := range []string{"192.0.2.102", "192.0.2.103"} {
		s.rests(t, a)
	}
	s.claimed(t, "192.0.2.102", "")
	s.claimed(t, "192.0.2.103", "")
	conditions := func(name string) string {
		return s.Kubectl("", "get", "nodeconfig", name, `--output=jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{"\n"}{end}`)
	}
	become := func(name, want string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(conditions(name), want); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s, want %s", name, conditions(name), want)
			}
		}
	}
	become("silent", "Ready=Unknown NodeUnknown: the kubelet of the node has not reported since ")
	become("silent", "SessionsUp=Unknown NodeUnknown: ")
	become("silent", "the agent reported last: False, Down")
	become("gone", "Ready=Unknown NodeUnknown: there is no Node of this name; the agent reported last: True, ServingPods")
	s.claimed(t, "192.0.2.101", "ended-up") // its own agent's
	for n, a := range map[string]string{"up": "192.0.2.111", "silent": "192.0.2.112", "gone": "192.0.2.113"} {
		s.claimed(t, a, "lives-"+n)
	}
	if got := conditions("up"); !strings.Contains(got, "Ready=True") {
		t.Errorf("the node that is up: %s", got)
	}
	// The pod is deleted: by force, or by the cluster's garbage collector.
	s.Kubectl("", "delete", "pod", "lives-silent", "--grace-period=0", "--force")
	s.claimed(t, "192.0.2.112", "")
	// The agent is alive though the kubelet is not: what it reports stays.
	agent, err := kube.NewClient(s.Agent("silent"))
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.PatchStatus(t.Context(), "silent", v1alpha1.NodeConfigStatus{Conditions: []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Alive", LastTransitionTime: metav1.NewTime(time.Now().Add(2 * time.Second))}}}); err != nil {
		t.Fatal(err)
	}
	// Another instance leaves it, too.
	stop()
	node("up", corev1.ConditionUnknown)
	stop = s.run(t)
	become("up", "Ready=Unknown")
	stop()
	if got := conditions("silent"); !strings.Contains(got, "Ready=True Alive") {
		t.Errorf("what the agent has reported since was overwritten: %s", got)
	}
}

// agentsExpected: the metric follows Nodes and the DaemonSet, with the rights that deploy/ gives.
func agentsExpected(t *testing.T, s *server) {
	client, err := kube.NewClient(s.Controller())
	if err != nil {
		t.Fatal(err)
	}
	c := newController(Config{Name: "test", Namespace: "flock-system", Log: slog.New(slog.DiscardHandler)}, client)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.lead(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	becomes := func(want ...string) {
		t.Helper()
		var got []string
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			c.metrics.mu.Lock()
			got = c.metrics.expected
			c.metrics.mu.Unlock()
			if slices.Equal(got, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("agents are expected on %v, want %v", got, want)
			}
		}
	}
	for _, name := range []string{"node1", "node2", "node3"} {
		s.Kubectl(fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q}}`, name), "create", "--filename=-")
	}
	s.Kubectl("", "label", "node", "node1", "node2", "flock.fritzlab.net/agent=")
	becomes("node1", "node2")
	s.Kubectl("", "label", "node", "node1", "flock.fritzlab.net/agent-")
	s.Kubectl("", "label", "node", "node3", "rack=r3")
	becomes("node2")
	s.Kubectl("", "--namespace=flock-system", "patch", "daemonset", "flock", "--type=json", `--patch=[{"op":"replace","path":"/spec/template/spec/nodeSelector","value":{"rack":"r3"}}]`)
	becomes("node3")
	s.Kubectl("", "--namespace=flock-system", "patch", "daemonset", "flock", "--type=json", `--patch=[{"op":"replace","path":"/spec/template/spec/nodeSelector","value":{"flock.fritzlab.net/agent":""}}]`)
	becomes("node2")
	s.Kubectl("", "delete", "node", "node2")
	becomes()
}

// poolStatus: an AddressPool says who uses it.
func poolStatus(t *testing.T, s *server) {
	s.apply(t, strings.Replace(pool("web", `"2001:db8:80::/64", 203.0.113.0/28`), "[service]", "[service, static, anycast]", 1))
	s.apply(t, `{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfig","metadata":{"name":"node1"},"spec":{"podCIDRs":{"ipv4":["10.1.0.0/24"]}}}`)
	now := metav1.Now()
	agent, err := kube.NewClient(s.Agent("node1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.PatchStatus(t.Context(), "node1", v1alpha1.NodeConfigStatus{Conditions: []metav1.Condition{}, Anycast: []v1alpha1.AnycastStatus{
		{Address: "2001:db8:80::53", Pod: "dns/a", Reason: "Ready", Since: now}, {Address: "2001:db8:80::53", Pod: "dns/b", Reason: "Ready", Since: now},
	}}); err != nil {
		t.Fatal(err)
	}
	s.apply(t, svc("shop/web", "ipFamilyPolicy: RequireDualStack")+svc("shop/tls", "ports: [{port: 443}]", "flock.fritzlab.net/shared-with: web"))
	s.run(t)
	s.has(t, "shop/tls", "2001:db8:80::1", service.Assigned)
	want := `{"anycast":1,"service":2,"static":0,"users":[{"address":"203.0.113.1","by":["shop/web"],"use":"service"},{"address":"2001:db8:80::1","by":["shop/tls","shop/web"],"use":"service"},{"address":"2001:db8:80::53","by":["dns/a","dns/b"],"use":"anycast"}]}`
	var got string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if got = s.Kubectl("", "get", "addresspool", "web", "--output=jsonpath={.status}"); got == want {
			t.Log("\n" + s.Kubectl("", "get", "addresspools"))
			return
		}
	}
	t.Errorf("status\n%s\nwant\n%s", got, want)
}

// replay is what Services and claims have been, version by version, in the order of the API
// server.
type replay struct {
	events []replayed
}

type replayed struct {
	version int64
	gone    bool
	service *corev1.Service
	claim   *v1alpha1.AddressClaim
}

// record follows Services and claims until stop is called, which returns all versions.
func (s *server) record(t *testing.T) (stop func() replay) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var r replay
	add := make(chan replayed, 1000)
	version := func(o metav1.Object) (n int64) {
		fmt.Sscan(o.GetResourceVersion(), &n)
		return n
	}
	seen := [2]chan int64{make(chan int64, 1), make(chan int64, 1)}
	follow := func(i int, client rest.Interface, resource, from string) {
		w, err := client.Get().Resource(resource).Param("watch", "true").Param("resourceVersion", from).Param("timeoutSeconds", "3600").Watch(ctx)
		if err != nil {
			t.Error(err)
			return
		}
		defer w.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case e, ok := <-w.ResultChan():
				if !ok {
					if ctx.Err() == nil {
						t.Errorf("the watch of %s ended: what was in between is unknown", resource)
					}
					return
				}
				one := replayed{gone: e.Type == "DELETED"}
				switch o := e.Object.(type) {
				case *corev1.Service:
					one.service, one.version = o, version(o)
				case *v1alpha1.AddressClaim:
					one.claim, one.version = o, version(o)
				default:
					t.Errorf("%+v", e)
				}
				add <- one
				select {
				case <-seen[i]:
				default:
				}
				seen[i] <- one.version
			}
		}
	}
	services, err := s.core.Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	claims := &v1alpha1.AddressClaimList{}
	if err := s.flock.Flock().Get().Resource("addressclaims").Do(t.Context()).Into(claims); err != nil {
		t.Fatal(err)
	}
	if len(claims.Items) > 0 {
		t.Fatalf("%d claims are left of an earlier test", len(claims.Items))
	}
	ended := make(chan struct{}, 2)
	go func() { follow(0, s.core.RESTClient(), "services", services.ResourceVersion); ended <- struct{}{} }()
	go func() { follow(1, s.flock.Flock(), "addressclaims", claims.ResourceVersion); ended <- struct{}{} }()
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		for one := range add {
			r.events = append(r.events, one)
		}
	}()
	return func() replay {
		// The watches are behind by an unknown time: wait for one more of each.
		s.apply(t, svc("default/last"))
		last := s.has(t, "default/last", "", service.NoPool)
		var n int64
		fmt.Sscan(last.ResourceVersion, &n)
		claim := &v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: "192.0.2.250", PodNamespace: "default", PodName: "x", PodUID: "u", NodeName: "x"}}
		claim.Name = "192.0.2.250"
		made, err := s.flock.MakeClaim(t.Context(), claim)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []int64{n, version(made)} {
			for got := range seen[i] {
				if got >= want {
					break
				}
			}
		}
		cancel()
		<-ended
		<-ended
		close(add)
		<-collected
		slices.SortFunc(r.events, func(a, b replayed) int { return int(a.version - b.version) })
		return r
	}
}

// check holds each version against the invariants: no address and port is two Services', what
// a status has is claimed, and nothing is that a pod has claimed.
func (r replay) check(t *testing.T) (assignments int) {
	t.Helper()
	services := map[types.UID]*corev1.Service{}
	claims := map[netip.Addr]*v1alpha1.AddressClaim{}
	holders := map[netip.Addr]map[types.UID]service.Holding{}
	fail := func(e replayed, format string, args ...any) {
		t.Helper()
		t.Errorf("version %d: "+format, append([]any{e.version}, args...)...)
	}
	covered := func(e replayed, uid types.UID, h service.Holding) {
		t.Helper()
		c := claims[h.Addr]
		if c == nil || !slices.ContainsFunc(c.Spec.Services, func(s v1alpha1.ServiceClaim) bool {
			has := shareOf(s).Ports
			return s.UID == string(uid) && !slices.ContainsFunc(h.Ports, func(p service.Port) bool { return !slices.Contains(has, p) })
		}) {
			fail(e, "Service %s/%s has %s for %v, and the claim is %+v", services[uid].Namespace, services[uid].Name, h.Addr, h.Ports, c)
		}
	}
	for _, e := range r.events {
		if s := e.service; s != nil {
			for _, of := range holders {
				delete(of, s.UID)
			}
			services[s.UID] = s
			if e.gone {
				continue
			}
			for _, h := range service.Held(s) {
				for uid, other := range holders[h.Addr] {
					if slices.ContainsFunc(h.Ports, func(p service.Port) bool { return slices.Contains(other.Ports, p) }) {
						fail(e, "Services %s/%s and %s/%s both have %s for %v and %v", s.Namespace, s.Name, services[uid].Namespace, services[uid].Name, h.Addr, h.Ports, other.Ports)
					}
				}
				if holders[h.Addr] == nil {
					holders[h.Addr] = map[types.UID]service.Holding{}
				}
				holders[h.Addr][s.UID] = h
				covered(e, s.UID, h)
				assignments++
			}
			continue
		}
		addr := netip.MustParseAddr(e.claim.Spec.Address)
		claims[addr] = e.claim
		if e.gone {
			delete(claims, addr)
		}
		for uid, h := range holders[addr] {
			covered(e, uid, h)
		}
	}
	return assignments
}

var discard = slog.New(slog.DiscardHandler)
