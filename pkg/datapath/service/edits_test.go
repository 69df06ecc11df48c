package service

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

// edits are changes of a Service that goes on being served, each with the fields of a Service or
// of one of its ports that it changes.
var edits = []struct {
	fields string
	edit   func(*corev1.Service)
}{
	{"", func(svc *corev1.Service) { svc.Labels = map[string]string{"team": "shop"} }},
	{"", func(svc *corev1.Service) { svc.Annotations = map[string]string{"note": "edited"} }},
	{"Ports Name", func(svc *corev1.Service) { svc.Spec.Ports[0].Name = "web" }},
	{"Ports Name", func(svc *corev1.Service) {
		svc.Spec.Ports = svc.Spec.Ports[:1]
		svc.Spec.Ports[0].Name = ""
	}},
	{"Ports Name", func(svc *corev1.Service) { // they change places
		svc.Spec.Ports[0].Name, svc.Spec.Ports[1].Name = svc.Spec.Ports[1].Name, svc.Spec.Ports[0].Name
	}},
	{"Ports Name", func(svc *corev1.Service) { svc.Spec.Ports[0].Name, svc.Spec.Ports[1].Name = "web", "tls" }},
	{"Ports", func(svc *corev1.Service) { slices.Reverse(svc.Spec.Ports) }},
	{"Ports", func(svc *corev1.Service) { svc.Spec.Ports = svc.Spec.Ports[1:] }},
	{"Ports", func(svc *corev1.Service) {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "metrics", Port: 9090, TargetPort: intstr.FromInt32(9090)})
	}},
	{"Ports", func(svc *corev1.Service) {
		svc.Spec.Ports = []corev1.ServicePort{{Name: "metrics", Port: 9090, TargetPort: intstr.FromInt32(9090)}}
	}},
	{"Port", func(svc *corev1.Service) { svc.Spec.Ports[0].Port, svc.Spec.Ports[1].Port = 8080, 8443 }},
	{"Port Name", func(svc *corev1.Service) {
		svc.Spec.Ports = svc.Spec.Ports[:1]
		svc.Spec.Ports[0].Port, svc.Spec.Ports[0].Name = 8080, "web"
	}},
	{"Protocol", func(svc *corev1.Service) { svc.Spec.Ports[0].Protocol, svc.Spec.Ports[1].Protocol = "UDP", "UDP" }},
	{"TargetPort", func(svc *corev1.Service) {
		svc.Spec.Ports[0].TargetPort, svc.Spec.Ports[1].TargetPort = intstr.FromInt32(9090), intstr.FromInt32(9091)
	}},
	{"TargetPort", func(svc *corev1.Service) {
		svc.Spec.Ports[0].TargetPort, svc.Spec.Ports[1].TargetPort = intstr.FromString("http"), intstr.FromString("http")
	}},
	{"TargetPort", func(svc *corev1.Service) { // which the pods do not have
		svc.Spec.Ports[0].TargetPort = intstr.FromString("nobody")
	}},
	{"NodePort", func(svc *corev1.Service) { svc.Spec.Ports[0].NodePort = 30080 }},
	{"AppProtocol", func(svc *corev1.Service) { svc.Spec.Ports[0].AppProtocol = new("http") }},
	{"Selector", func(svc *corev1.Service) { svc.Spec.Selector = map[string]string{"tier": "front"} }},
	{"Selector", func(svc *corev1.Service) { svc.Spec.Selector = map[string]string{"app": "other"} }},
	{"Selector", func(svc *corev1.Service) { svc.Spec.Selector = nil }},
	{"SessionAffinity", func(svc *corev1.Service) { svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }},
	{"SessionAffinity SessionAffinityConfig", func(svc *corev1.Service) {
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(int32(10))}}
	}},
	{"ExternalTrafficPolicy HealthCheckNodePort", func(svc *corev1.Service) {
		svc.Spec.ExternalTrafficPolicy, svc.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyCluster, 0
	}},
	{"ExternalTrafficPolicy HealthCheckNodePort", func(svc *corev1.Service) {
		svc.Spec.ExternalTrafficPolicy, svc.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 32000
	}},
	{"InternalTrafficPolicy", func(svc *corev1.Service) {
		svc.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
	}},
	{"IPFamilyPolicy IPFamilies ClusterIPs", func(svc *corev1.Service) {
		svc.Spec.IPFamilyPolicy, svc.Spec.IPFamilies = new(corev1.IPFamilyPolicySingleStack), svc.Spec.IPFamilies[:1]
		svc.Spec.ClusterIPs = svc.Spec.ClusterIPs[:1]
	}},
	{"PublishNotReadyAddresses", func(svc *corev1.Service) { svc.Spec.PublishNotReadyAddresses = true }},
	{"LoadBalancerSourceRanges", func(svc *corev1.Service) { svc.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"} }},
	{"AllocateLoadBalancerNodePorts", func(svc *corev1.Service) { svc.Spec.AllocateLoadBalancerNodePorts = new(false) }},
	{"TrafficDistribution", func(svc *corev1.Service) { svc.Spec.TrafficDistribution = new("PreferSameNode") }},
	{"ExternalIPs", func(svc *corev1.Service) { svc.Spec.ExternalIPs = []string{v4.String()} }},
	{"LoadBalancerIP", func(svc *corev1.Service) { svc.Spec.LoadBalancerIP = v4.String() }},
}

// untouched are the fields that no edit changes.
var untouched = map[string]string{
	"Type":              "a Service of another type has no such address",
	"ClusterIP":         "the API server refuses another",
	"LoadBalancerClass": "the API server refuses another",
	"ExternalName":      "it is for a type that has no addresses",
}

// edited is the Service before an edit.
func edited(external corev1.ServiceExternalTrafficPolicy) *corev1.Service {
	class, mode := v1alpha1.LoadBalancerClass, corev1.LoadBalancerIPModeVIP
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)},
				{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8443)},
			},
			ExternalTrafficPolicy: external, SessionAffinity: corev1.ServiceAffinityNone,
			IPFamilyPolicy: new(corev1.IPFamilyPolicyPreferDualStack), IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			ClusterIPs: []string{"10.96.0.7", "2001:db8:5::7"},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: v4.String(), IPMode: &mode}}}},
	}
}

// editedBy is what others make of a Service: its EndpointSlice, and kube-proxy's rules. Its pods
// are a, on this node, and another one elsewhere.
func editedBy(svc *Service) (Slices, proxy.Look) {
	slice := Slice{Endpoints: []Endpoint{{Addr: podA4, Here: true, Ready: true, Pod: "a"}, {Addr: remote4, Ready: true, Pod: "remote"}}}
	look := proxy.Look{Mode: proxy.NFTables, At: map[proxy.Key]proxy.Rule{}}
	for _, port := range svc.Ports {
		if port.TargetName == "nobody" {
			continue
		}
		slice.Ports = append(slice.Ports, port.Name)
		rule := proxy.Rule{Translated: true, Anywhere: svc.External == Cluster}
		if svc.External == Local {
			rule.Here = []netip.AddrPort{netip.AddrPortFrom(podA4, port.TargetNumber)}
		}
		look.At[svc.key(port, v4)] = rule
	}
	return Slices{Of: map[Ref][]Slice{svc.Ref: {slice}}}, look
}

// A node that serves a Service announces its address all the while that an edit of the Service
// goes on, in whichever order those who act by it do so: the agent itself looks at once, then come
// EndpointSlices and kube-proxy. One edit may follow the other before they have.
func TestEdits(t *testing.T) {
	t.Parallel()
	if len(edits) == 0 {
		t.Fatal("no edits")
	}
	admission := Admission{Kinds: config.ServiceAddresses{LoadBalancer: true}}
	for _, external := range []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal} {
		for _, slicesFirst := range []bool{true, false} {
			for i, e := range edits {
				s := newScript(t, nil)
				var svc *Service
				apply := func(object *corev1.Service) {
					svc = Parse([]*corev1.Service{object}, admission)[0]
					s.do(Services{All: []*Service{svc}})
				}
				program := func() { // kube-proxy makes of EndpointSlices what they are
					_, s.rules = editedBy(svc)
					s.looked()
				}
				object := edited(external)
				s.do(healthy...)
				report := report("a", pod.Ready, map[string]string{"app": "web", "tier": "front"}, podA4)
				report.Ports = []PodPort{{Name: "http", Protocol: 6, Number: 8080}}
				s.do(report, PodsSynced{All: []pod.UID{"a"}})
				apply(object)
				known, _ := editedBy(svc)
				s.do(known)
				program()
				host := hostPrefix(v4)
				check := func(when string) {
					t.Helper()
					if !s.kernel[host].Announced {
						t.Errorf("policy %s, edit %d of %q, EndpointSlices first %t, %s: not announced: %s", external, i, e.fields, slicesFirst, when, s.reason(v4, "web"))
					}
				}
				check("before")
				s.log = nil
				for _, what := range []string{"edited", "edited back"} {
					if what == "edited" {
						e.edit(object)
					} else {
						object = edited(external)
					}
					apply(object)
					check(what)
					s.looked() // what is asked now, of the rules of before
					check(what + ", and looked")
					if external == corev1.ServiceExternalTrafficPolicyLocal && what == "edited" && svc.Selector["app"] == "other" {
						break // it selects no pod
					}
					known, _ := editedBy(svc)
					if slicesFirst {
						s.do(known)
						check(what + ", with EndpointSlices")
						program()
					} else {
						program()
						check(what + ", with rules")
						s.do(known)
					}
					check(what + ", at last")
					if ports := s.services[svc.Ref].paths[v4].ports; ports != nil {
						t.Errorf("edit %d of %q, %s: ports of before are still remembered: %v", i, e.fields, what, ports)
					}
				}
				s.wantLog()
				// Without endpoints it is withdrawn at once, also in the midst of an edit.
				e.edit(object)
				apply(object)
				report.Ready = pod.NotReady
				s.do(report, Slices{Of: map[Ref][]Slice{svc.Ref: {}}})
				if s.kernel[host].Announced && !svc.PublishNotReady {
					t.Errorf("policy %s, edit %d of %q: announced without endpoints: %s", external, i, e.fields, s.reason(v4, "web"))
				}
			}
		}
	}
}

// There is an edit of each field of a Service and of its ports.
func TestEditsAreAll(t *testing.T) {
	t.Parallel()
	fields := maps.Clone(untouched)
	for _, e := range edits {
		for _, field := range strings.Fields(e.fields) {
			fields[field] = "edited"
		}
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[corev1.ServiceSpec](), reflect.TypeFor[corev1.ServicePort]()} {
		for field := range typ.Fields() {
			if fields[field.Name] == "" {
				t.Errorf("no edit changes %s of %s", field.Name, typ)
			}
		}
	}
}

// kube-proxy has no endpoints for a port with a new name until EndpointSlices have it, and then waits
// before it writes again. Until then flock translates to the pods of the node, for as long as it would
// for a new pod.
func TestRenamedPort(t *testing.T) {
	t.Parallel()
	admission := Admission{Kinds: config.ServiceAddresses{LoadBalancer: true}}
	rename := func(s *script) *Service {
		object := edited(corev1.ServiceExternalTrafficPolicyLocal)
		parse := func() *Service { return Parse([]*corev1.Service{object}, admission)[0] }
		before := parse()
		s.do(fit, Slices{Of: map[Ref][]Slice{}}, Services{All: []*Service{before}}, report("a", pod.Ready, appWeb, podA4), PodsSynced{All: []pod.UID{"a"}})
		_, s.rules = editedBy(before)
		s.looked()
		s.wait(InterimTime) // kube-proxy has known the pod for long
		if len(s.Interim()) != 0 {
			t.Errorf("before: %v", s.Interim())
		}
		object.Spec.Ports[0].Name = "web"
		object.Spec.Ports = object.Spec.Ports[:1]
		after := parse()
		s.do(Services{All: []*Service{after}})
		s.looked()
		return after
	}
	to := target(httpPort)
	check := func(s *script, what string, announced, translated bool) {
		t.Helper()
		if got := s.kernel[hostPrefix(v4)].Announced; got != announced {
			t.Errorf("%s: announced %t: %s", what, got, s.reason(v4, "web"))
		}
		if got := s.Interim()[to].To; (got == netip.AddrPortFrom(podA4, 8080)) != translated {
			t.Errorf("%s: translated to %v", what, got)
		}
	}
	s := newScript(t, nil)
	after := rename(s)
	check(s, "renamed", true, true)
	s.rules.At = map[proxy.Key]proxy.Rule{}
	s.looked()
	check(s, "kube-proxy has no rule", true, true)
	_, s.rules = editedBy(after)
	s.looked()
	check(s, "kube-proxy has the new rule", true, false)
	s.rules.At = map[proxy.Key]proxy.Rule{}
	s.looked()
	check(s, "its rule goes", false, false)

	s = newScript(t, nil)
	rename(s)
	s.rules.At = map[proxy.Key]proxy.Rule{}
	s.looked()
	if end := s.now.Add(InterimTime); !s.Next().Equal(end) {
		t.Errorf("next at %v, want %v", s.Next(), end)
	}
	s.wait(InterimTime)
	check(s, "kube-proxy does not run", false, false)

	s = newScript(t, nil)
	rename(s)
	s.do(report("a", pod.NotReady, appWeb, podA4))
	check(s, "the pod is not Ready", false, false)
}
