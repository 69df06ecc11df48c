package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Key is namespace/name of a Service.
type Key = types.NamespacedName

// Port is a port of a Service's address.
type Port struct {
	Number   uint16
	Protocol corev1.Protocol
}

// String is what AddressClaims call the port, as in 80/TCP.
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Protocol) }

// ParsePort is the reverse of String.
func ParsePort(s string) (Port, error) {
	number, protocol, ok := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if !ok || err != nil || n == 0 || protocol == "" {
		return Port{}, fmt.Errorf("%q is not a port: want a number and a protocol, as in 80/TCP", s)
	}
	return Port{uint16(n), corev1.Protocol(protocol)}, nil
}

// Holding is an address and the ports for which a Service has it, in order.
type Holding struct {
	Addr  netip.Addr
	Ports []Port
}

// Service is what decisions need to know of a Service that is flock's.
type Service struct {
	Key
	UID     types.UID
	Created time.Time
	// Terminating: it is being deleted. It keeps its addresses until it is gone.
	Terminating bool
	// Ports are those of the spec, in order and each once.
	Ports []Port
	// Families that it wants, the first first, and how many of them.
	Families []corev1.IPFamily
	Policy   corev1.IPFamilyPolicy
	// Local is externalTrafficPolicy Local; Selector is which pods it has.
	Local    bool
	Selector map[string]string
	// Addresses that it asks for, at most one of a family, and the field that names them.
	Addresses   []netip.Addr
	AddressesBy string
	// Pool that it asks for by annotation; "" if any is right.
	Pool string
	// SharedWith are the Services with which it agrees to share.
	SharedWith []Key
	// Invalid says what is wrong with its annotations. It gets nothing then.
	Invalid string
	// Held is what its status has. Ports are nil if the status does not name any.
	Held []Holding
}

// Managed says whether svc is one that flock gives addresses to. classless: also Services
// without a loadBalancerClass are.
func Managed(svc *corev1.Service, classless bool) bool {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return false
	}
	if svc.Spec.LoadBalancerClass == nil {
		return classless
	}
	return *svc.Spec.LoadBalancerClass == v1alpha1.LoadBalancerClass
}

// Parse returns what matters of svc.
func Parse(svc *corev1.Service) Service {
	s := Service{
		Key:         Key{Namespace: svc.Namespace, Name: svc.Name},
		UID:         svc.UID,
		Created:     svc.CreationTimestamp.Time,
		Terminating: svc.DeletionTimestamp != nil,
		Families:    slices.Clone(svc.Spec.IPFamilies),
		Policy:      corev1.IPFamilyPolicySingleStack,
		Local:       svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		Selector:    svc.Spec.Selector,
		Pool:        strings.TrimSpace(svc.Annotations[v1alpha1.ServicePoolAnnotation]),
		Held:        Held(svc),
	}
	if p := svc.Spec.IPFamilyPolicy; p != nil {
		s.Policy = *p
	}
	if s.Policy == corev1.IPFamilyPolicySingleStack && len(s.Families) > 1 {
		s.Families = s.Families[:1]
	}
	for _, p := range svc.Spec.Ports {
		s.Ports = append(s.Ports, Port{uint16(p.Port), cmp.Or(p.Protocol, corev1.ProtocolTCP)})
	}
	s.Ports = sortPorts(s.Ports)
	var faults []string
	s.Addresses, s.AddressesBy = wanted(svc, &faults)
	s.SharedWith = partners(svc, &faults)
	if len(s.Ports) > MaxPorts {
		faults = append(faults, fmt.Sprintf("spec.ports: has %d ports, and an AddressClaim holds at most %d: split the Service", len(s.Ports), MaxPorts))
	}
	if len(faults) == 0 {
		for _, a := range s.Addresses {
			if family := familyOf(a); !slices.Contains(s.Families, family) {
				faults = append(faults, fmt.Sprintf("%s: %s is an %s address, and spec.ipFamilies of the Service does not have %s: change spec.ipFamilyPolicy and spec.ipFamilies, or choose another address", s.AddressesBy, a, family, family))
			}
		}
	}
	s.Invalid = strings.Join(faults, "; ")
	return s
}

// MaxPorts is how many ports of a Service an AddressClaim holds.
const MaxPorts = 1024

// MaxSharers is how many Services an AddressClaim holds.
const MaxSharers = 128

// Held returns the addresses in the status of svc.
func Held(svc *corev1.Service) (held []Holding) {
	for _, in := range svc.Status.LoadBalancer.Ingress {
		a, err := netaddr.ParseLoosely(in.IP)
		if err != nil || slices.ContainsFunc(held, func(h Holding) bool { return h.Addr == a }) {
			continue
		}
		h := Holding{Addr: a}
		for _, p := range in.Ports {
			h.Ports = append(h.Ports, Port{uint16(p.Port), cmp.Or(p.Protocol, corev1.ProtocolTCP)})
		}
		h.Ports = sortPorts(h.Ports)
		held = append(held, h)
	}
	return held
}

// Ingress is the status of a Service with these addresses.
func Ingress(held []Holding) (out []corev1.LoadBalancerIngress) {
	vip := corev1.LoadBalancerIPModeVIP
	for _, h := range held {
		in := corev1.LoadBalancerIngress{IP: h.Addr.String(), IPMode: &vip}
		for _, p := range h.Ports {
			in.Ports = append(in.Ports, corev1.PortStatus{Port: int32(p.Number), Protocol: p.Protocol})
		}
		out = append(out, in)
	}
	return out
}

func wanted(svc *corev1.Service, faults *[]string) (addrs []netip.Addr, by string) {
	text, by := svc.Annotations[v1alpha1.ServiceAddressesAnnotation], "annotation "+v1alpha1.ServiceAddressesAnnotation
	if strings.TrimSpace(text) == "" {
		if text, by = svc.Spec.LoadBalancerIP, "spec.loadBalancerIP"; text == "" {
			return nil, ""
		}
	}
	refuse := func(format string, args ...any) {
		*faults = append(*faults, fmt.Sprintf("%s=%q: ", by, text)+fmt.Sprintf(format, args...))
	}
	for field := range strings.SplitSeq(text, ",") {
		field = strings.TrimSpace(field)
		a, err := netip.ParseAddr(field)
		switch {
		case err != nil || a.Zone() != "":
			refuse("%q is not an IP address: want at most one of each family, separated by a comma, as in 2001:db8::7,203.0.113.7", field)
		case netaddr.UnroutableReason(a) != "":
			refuse("%s %s: choose an address of an AddressPool with use service", a, netaddr.UnroutableReason(a))
		case slices.ContainsFunc(addrs, func(b netip.Addr) bool { return familyOf(a) == familyOf(b) }):
			refuse("%s is the second %s address: a Service has at most one of each family", a, familyOf(a))
		default:
			addrs = append(addrs, a)
		}
	}
	return addrs, by
}

func partners(svc *corev1.Service, faults *[]string) (keys []Key) {
	text := svc.Annotations[v1alpha1.ServiceSharedWithAnnotation]
	if strings.TrimSpace(text) == "" {
		return nil
	}
	for field := range strings.SplitSeq(text, ",") {
		field = strings.TrimSpace(field)
		k := Key{Namespace: svc.Namespace, Name: field}
		if namespace, name, ok := strings.Cut(field, "/"); ok {
			k = Key{Namespace: namespace, Name: name}
		}
		switch {
		case len(validation.IsDNS1123Label(k.Namespace)) > 0 || len(validation.IsDNS1123Label(k.Name)) > 0:
			*faults = append(*faults, fmt.Sprintf("annotation %s=%q: %q names no Service: want NAME or NAMESPACE/NAME of Services, separated by commas", v1alpha1.ServiceSharedWithAnnotation, text, field))
		case k.Namespace == svc.Namespace && k.Name == svc.Name:
			// It always shares with itself.
		case !slices.Contains(keys, k):
			keys = append(keys, k)
		}
	}
	return keys
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func sortPorts(ports []Port) []Port {
	slices.SortFunc(ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Protocol, b.Protocol))
	})
	return slices.Compact(ports)
}

// Condition is a decision as the condition of the Service.
func (d Decision) Condition(generation int64) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ServiceAddressAssigned, Status: metav1.ConditionFalse, Reason: d.Reason, Message: d.Message, ObservedGeneration: generation}
	if d.Complete {
		c.Status = metav1.ConditionTrue
	}
	if len(c.Message) > maxMessage {
		c.Message = strings.ToValidUTF8(c.Message[:maxMessage], "") + "…"
	}
	return c
}

// maxMessage keeps conditions well below the 32768 bytes that the API takes.
const maxMessage = 4096
