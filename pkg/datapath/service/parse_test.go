package service

import (
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

func ptr[T any](v T) *T { return &v }

// object is a Service with an address of each kind and family.
func object() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: ptr(v1alpha1.LoadBalancerClass),
			Selector: map[string]string{"app": "web"}, ClusterIPs: []string{"2001:db8:0:5::1", "10.96.0.7"}, ExternalIPs: []string{"198.51.100.1"},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)},
				{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromString("domain")},
			},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, SessionAffinity: corev1.ServiceAffinityNone,
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
			{IP: "2001:db8:5::7", IPMode: ptr(corev1.LoadBalancerIPModeVIP)}, {IP: "203.0.113.7"},
		}}},
	}
}

func pools() []config.Pool {
	return []config.Pool{
		{Name: "lb", CIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8:5::/64"), netip.MustParsePrefix("203.0.113.0/24")}, Service: true, Namespaces: labels.Everything()},
		{Name: "external", CIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, Service: true, Services: config.PoolServices{ExternalIPs: true},
			Namespaces: labels.SelectorFromSet(labels.Set{"team": "shop"})},
		{Name: "static", CIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.128/25")}, Static: true, Namespaces: labels.Everything()},
	}
}

func teamShop(string) (map[string]string, bool) { return map[string]string{"team": "shop"}, true }

func TestParse(t *testing.T) {
	t.Parallel()
	lb6, lb4 := Address{Addr: v6, Kind: LoadBalancer}, Address{Addr: v4, Kind: LoadBalancer}
	external := Address{Addr: netip.MustParseAddr("198.51.100.1"), Kind: ExternalIP}
	cluster6, cluster4 := Address{Addr: netip.MustParseAddr("2001:db8:0:5::1"), Kind: ClusterIP}, Address{Addr: netip.MustParseAddr("10.96.0.7"), Kind: ClusterIP}
	byDefault := config.ServiceAddresses{LoadBalancer: true, ExternalIP: true}
	refused := func(a Address, reason Reason, detail string) Address {
		a.Refused, a.Detail = reason, detail
		return a
	}
	undecided := external
	undecided.Undecided = NamespaceUnknown
	unknown := func(string) (map[string]string, bool) { return nil, false }
	const notAdmitted = "no AddressPool with spec.services.externalIPs covers it and admits namespace shop"
	for _, tc := range []struct {
		name   string
		change func(*corev1.Service, *Admission)
		want   []Address
	}{
		{"by default", func(*corev1.Service, *Admission) {}, []Address{lb6, lb4, external}},
		{"another class", func(s *corev1.Service, _ *Admission) { s.Spec.LoadBalancerClass = ptr("other") }, []Address{external}},
		{"no class", func(s *corev1.Service, _ *Admission) { s.Spec.LoadBalancerClass = nil }, []Address{external}},
		{"no class, but of flock-controller", func(s *corev1.Service, _ *Admission) {
			s.Spec.LoadBalancerClass = nil
			s.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ServiceAddressAssigned}}
		}, []Address{lb6, lb4, external}},
		{"a proxy that kube-proxy does not know", func(s *corev1.Service, _ *Admission) {
			s.Status.LoadBalancer.Ingress[0].IPMode = ptr(corev1.LoadBalancerIPModeProxy)
		}, []Address{lb4, external}},
		{"a host name", func(s *corev1.Service, _ *Admission) {
			s.Status.LoadBalancer.Ingress[0] = corev1.LoadBalancerIngress{Hostname: "x"}
		}, []Address{lb4, external}},
		{"not of type LoadBalancer any more", func(s *corev1.Service, _ *Admission) { s.Spec.Type = corev1.ServiceTypeClusterIP }, []Address{external}},
		{"of type ExternalName", func(s *corev1.Service, _ *Admission) { s.Spec.Type = corev1.ServiceTypeExternalName }, nil},
		{"all kinds", func(_ *corev1.Service, a *Admission) { a.Kinds.ClusterIP = true }, []Address{lb6, lb4, external, cluster6, cluster4}},
		{"headless", func(s *corev1.Service, a *Admission) { a.Kinds.ClusterIP, s.Spec.ClusterIPs = true, []string{"None"} }, []Address{lb6, lb4, external}},
		{"no kind", func(_ *corev1.Service, a *Admission) { a.Kinds = config.ServiceAddresses{} }, []Address{
			refused(lb6, NotAnnounced, "spec.services.announce of the NodeConfig does not name LoadBalancer"),
			refused(lb4, NotAnnounced, "spec.services.announce of the NodeConfig does not name LoadBalancer")}},
		{"a namespace that the pool does not admit", func(_ *corev1.Service, a *Admission) {
			a.Labels = func(string) (map[string]string, bool) { return nil, true }
		}, []Address{lb6, lb4, refused(external, NotAdmitted, notAdmitted)}},
		{"a namespace that is not known", func(_ *corev1.Service, a *Admission) { a.Labels = unknown }, []Address{lb6, lb4, undecided}},
		{"a namespace that is not known, and a label must not be there", func(_ *corev1.Service, a *Admission) {
			a.Labels = unknown
			a.Pools[1].Namespaces, _ = labels.Parse("team notin (evil),!quarantine")
		}, []Address{lb6, lb4, undecided}},
		{"a namespace that is not known, and a pool that admits all", func(_ *corev1.Service, a *Admission) {
			a.Labels, a.Pools[1].Namespaces = unknown, labels.Everything()
		}, []Address{lb6, lb4, external}},
		{"a namespace that is not known, and an address of no pool", func(s *corev1.Service, a *Admission) {
			a.Labels, s.Spec.ExternalIPs[0] = unknown, "192.0.2.1"
		}, []Address{lb6, lb4, refused(Address{Addr: netip.MustParseAddr("192.0.2.1"), Kind: ExternalIP}, NotAdmitted, notAdmitted)}},
		{"an external IP of no pool", func(s *corev1.Service, _ *Admission) { s.Spec.ExternalIPs[0] = "192.0.2.1" }, []Address{
			lb6, lb4, refused(Address{Addr: netip.MustParseAddr("192.0.2.1"), Kind: ExternalIP}, NotAdmitted, notAdmitted)}},
		{"an external IP of a pool within, for pods", func(s *corev1.Service, _ *Admission) { s.Spec.ExternalIPs[0] = "198.51.100.200" }, []Address{
			lb6, lb4, refused(Address{Addr: netip.MustParseAddr("198.51.100.200"), Kind: ExternalIP}, NotAdmitted, notAdmitted)}},
		{"an external IP with leading zeros", func(s *corev1.Service, _ *Admission) { s.Spec.ExternalIPs[0] = "198.051.100.001" }, []Address{lb6, lb4, external}},
		{"an external IP in IPv6's notation, of no pool", func(s *corev1.Service, _ *Admission) { s.Spec.ExternalIPs[0] = "::ffff:192.0.2.1" }, []Address{
			lb6, lb4, refused(Address{Addr: netip.MustParseAddr("192.0.2.1"), Kind: ExternalIP}, NotAdmitted, notAdmitted)}},
		{"the load balancer's address as external IP", func(s *corev1.Service, _ *Admission) { s.Spec.ExternalIPs[0] = "203.0.113.7" }, []Address{lb6, lb4}},
		{"aggregate", func(_ *corev1.Service, a *Admission) { a.Pools[0].Routing.Aggregate = true }, []Address{
			{Addr: v6, Kind: LoadBalancer, Aggregate: netip.MustParsePrefix("2001:db8:5::/64")},
			{Addr: v4, Kind: LoadBalancer, Aggregate: netip.MustParsePrefix("203.0.113.0/24")}, external}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			svc := object()
			a := Admission{Kinds: byDefault, Pools: pools(), Labels: teamShop}
			tc.change(svc, &a)
			var got []Address
			for _, s := range Parse([]*corev1.Service{svc}, a) {
				got = append(got, s.Addresses...)
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%+v\nwant %+v", got, tc.want)
			}
		})
	}
	want := &Service{
		Ref: Ref{"shop", "web"}, Addresses: []Address{lb6, lb4, external}, Selector: map[string]string{"app": "web"}, External: Local, Plain: true,
		Ports: []Port{{Name: "http", Protocol: 6, Number: 80, TargetNumber: 8080}, {Name: "dns", Protocol: 17, Number: 53, TargetName: "domain"}},
	}
	got := Parse([]*corev1.Service{object()}, Admission{Kinds: byDefault, Pools: pools(), Labels: teamShop})
	if len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	for what, change := range map[string]func(*corev1.Service){
		"affinity":            func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP },
		"affinity not kept":   func(s *corev1.Service) { s.Spec.SessionAffinity = "" },
		"source ranges":       func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24"} },
		"another proxy":       func(s *corev1.Service) { s.Labels = map[string]string{v1alpha1.ServiceProxyNameLabel: "mesh"} },
		"another, of no name": func(s *corev1.Service) { s.Labels = map[string]string{v1alpha1.ServiceProxyNameLabel: ""} },
	} {
		svc := object()
		change(svc)
		if got := Parse([]*corev1.Service{svc}, Admission{Kinds: byDefault, Pools: pools(), Labels: teamShop}); got[0].Plain {
			t.Errorf("with %s, any connection may go to any pod", what)
		}
	}
}

func TestParseSlices(t *testing.T) {
	t.Parallel()
	slice := func(name string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			Ports:      []discoveryv1.EndpointPort{{Name: ptr("http")}, {}}, Endpoints: endpoints,
		}
	}
	a := slice("a",
		discoveryv1.Endpoint{Addresses: []string{"10.244.1.10"}, NodeName: ptr("node1"), TargetRef: &corev1.ObjectReference{Kind: "Pod", UID: "u"}},
		discoveryv1.Endpoint{Addresses: []string{"10.244.2.20"}, NodeName: ptr("node2"), Conditions: discoveryv1.EndpointConditions{Ready: ptr(false)}},
		discoveryv1.Endpoint{Addresses: []string{"a.example"}}, discoveryv1.Endpoint{})
	b := slice("b", discoveryv1.Endpoint{Addresses: []string{"2001:db8:100:1::a"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(true)}})
	want := map[Ref][]Slice{{"shop", "web"}: {
		{Ports: []string{"http", ""}, Endpoints: []Endpoint{{Addr: podA4, Ready: true, Here: true, Pod: "u"}, {Addr: remote4}}},
		{Ports: []string{"http", ""}, Endpoints: []Endpoint{{Addr: podA6, Ready: true}}},
	}}
	for _, in := range [][]*discoveryv1.EndpointSlice{{a, b}, {b, a}} {
		if got := ParseSlices(in, "node1"); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v\nwant %+v", got, want)
		}
	}
}
