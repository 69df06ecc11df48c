package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Admission is what of a Service's addresses may be announced.
type Admission struct {
	Kinds config.ServiceAddresses
	Pools []config.Pool
	// Labels are those of a namespace; false: they are not known.
	Labels func(namespace string) (map[string]string, bool)
}

// Parse returns what decisions need of the Services that have an address of a kind that nodes
// announce. Their addresses are there even if this node does not announce them, with the
// reason, except for kinds that are not announced and that each Service has.
func Parse(in []*corev1.Service, a Admission) (out []*Service) {
	for _, svc := range in {
		_, otherProxy := svc.Labels[v1alpha1.ServiceProxyNameLabel]
		s := &Service{
			Ref:             Ref{svc.Namespace, svc.Name},
			Selector:        svc.Spec.Selector,
			External:        Policy(svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal),
			Internal:        Policy(svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal),
			PublishNotReady: svc.Spec.PublishNotReadyAddresses,
			Plain:           svc.Spec.SessionAffinity == corev1.ServiceAffinityNone && len(svc.Spec.LoadBalancerSourceRanges) == 0 && !otherProxy,
		}
		if len(s.Selector) == 0 {
			s.Selector = nil
		}
		if svc.Spec.Type != corev1.ServiceTypeExternalName {
			s.Addresses = a.addresses(svc)
		}
		if len(s.Addresses) == 0 {
			continue
		}
		for _, p := range svc.Spec.Ports {
			port := Port{
				Name: p.Name, Protocol: pod.Protocols[strings.ToLower(string(cmp.Or(p.Protocol, corev1.ProtocolTCP)))], Number: uint16(p.Port),
				TargetName: p.TargetPort.StrVal,
			}
			if port.TargetName == "" {
				port.TargetNumber = uint16(cmp.Or(p.TargetPort.IntVal, p.Port))
			}
			s.Ports = append(s.Ports, port)
		}
		out = append(out, s)
	}
	return out
}

// addresses are those of a Service, each once.
func (a Admission) addresses(svc *corev1.Service) (all []Address) {
	add := func(b Address) {
		if slices.ContainsFunc(all, func(c Address) bool { return c.Addr == b.Addr }) {
			return
		}
		if deciding := a.deciding(b.Addr); b.Kind != ClusterIP && len(deciding) > 0 && deciding[0].Routing.Aggregate {
			b.Aggregate, _ = deciding[0].Covering(b.Addr)
		}
		all = append(all, b)
	}
	if IsManaged(svc) {
		refused, detail := Reason(""), ""
		if !a.Kinds.LoadBalancer {
			refused, detail = NotAnnounced, "spec.services.announce of the NodeConfig does not name LoadBalancer"
		}
		for _, in := range svc.Status.LoadBalancer.Ingress {
			// With the mode Proxy, kube-proxy does not translate what comes for it.
			if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
				if addr, err := netaddr.ParseLoosely(in.IP); err == nil {
					add(Address{Addr: addr, Kind: LoadBalancer, Refused: refused, Detail: detail})
				}
			}
		}
	}
	if a.Kinds.ExternalIP {
		for _, ip := range svc.Spec.ExternalIPs {
			if addr, err := netaddr.ParseLoosely(ip); err == nil {
				add(a.external(addr, svc.Namespace))
			}
		}
	}
	if a.Kinds.ClusterIP {
		for _, ip := range svc.Spec.ClusterIPs { // "None" is no address
			if addr, err := netaddr.ParseLoosely(ip); err == nil {
				add(Address{Addr: addr, Kind: ClusterIP})
			}
		}
	}
	return all
}

// IsManaged says whether flock-controller gives the Service its addresses: it is of flock's
// class, or has none and a condition of flock-controller's.
func IsManaged(svc *corev1.Service) bool {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return false
	}
	if class := svc.Spec.LoadBalancerClass; class != nil {
		return *class == v1alpha1.LoadBalancerClass
	}
	for _, c := range svc.Status.Conditions {
		if c.Type == v1alpha1.ServiceAddressAssigned {
			return true
		}
	}
	return false
}

// deciding are the pools for Services that decide about an address.
func (a Admission) deciding(addr netip.Addr) []config.Pool {
	return slices.DeleteFunc(config.Deciding(a.Pools, addr), func(p config.Pool) bool { return !p.Service })
}

// external is an external IP of a Service in a namespace, and whether a pool admits it.
func (a Admission) external(addr netip.Addr, namespace string) Address {
	out := Address{Addr: addr, Kind: ExternalIP}
	for _, p := range a.deciding(addr) {
		if !p.Services.ExternalIPs {
			continue
		}
		if p.Namespaces.Empty() { // it admits every one
			return Address{Addr: addr, Kind: ExternalIP}
		}
		// No labels are not the same as unknown ones: selectors can ask for a label's absence.
		switch labels, known := a.Labels(namespace); {
		case !known:
			out.Undecided = NamespaceUnknown
		case p.Admits(labels):
			return Address{Addr: addr, Kind: ExternalIP}
		}
	}
	if out.Undecided == "" {
		out.Refused, out.Detail = NotAdmitted, fmt.Sprintf("no AddressPool with spec.services.externalIPs covers it and admits namespace %s", namespace)
	}
	return out
}

// ParseSlices returns what decisions need of EndpointSlices, by Service. Node is the name of
// this node.
func ParseSlices(in []*discoveryv1.EndpointSlice, node string) map[Ref][]Slice {
	out := map[Ref][]Slice{}
	// Their order must not matter.
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b *discoveryv1.EndpointSlice) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, s := range in {
		ref := Ref{s.Namespace, s.Labels[discoveryv1.LabelServiceName]}
		var slice Slice
		for _, p := range s.Ports {
			name := ""
			if p.Name != nil {
				name = *p.Name
			}
			slice.Ports = append(slice.Ports, name)
		}
		for _, e := range s.Endpoints {
			for _, text := range e.Addresses[:min(1, len(e.Addresses))] { // kube-proxy uses the first
				addr, err := netaddr.ParseLoosely(text)
				if err != nil {
					continue
				}
				endpoint := Endpoint{
					Addr:  addr,
					Ready: e.Conditions.Ready == nil || *e.Conditions.Ready,
					Here:  e.NodeName != nil && *e.NodeName == node,
				}
				if e.TargetRef != nil {
					endpoint.Pod = e.TargetRef.UID
				}
				slice.Endpoints = append(slice.Endpoints, endpoint)
			}
		}
		out[ref] = append(out[ref], slice)
	}
	return out
}
