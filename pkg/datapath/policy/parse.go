package policy

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// A rule is a parsed rule of a policy: what it matches is any of its peers on any of
// its ports.
type rule struct {
	peers []peer
	ports []port
}

// peer is one of: all addresses; blocks of them; the pods that a selector selects,
// of which only those within blocks if there are any.
type peer struct {
	all    bool
	blocks []span
	pods   *podSelector
}

// port is a range of ports of a protocol. The zero value is all protocols, and a
// named port has no range.
type port struct {
	proto  uint8
	lo, hi uint16
	name   string
}

const maxPort = 65535

func (p port) isAll() bool   { return p.proto == 0 }
func (p port) isExact() bool { return p.proto != 0 && p.name == "" && p.lo == p.hi }

// podSelector selects pods of one namespace, or of the namespaces that a selector
// selects.
type podSelector struct {
	namespace  string
	namespaces labels.Selector // nil for only the one above
	pods       labels.Selector
}

func (s *podSelector) key() string {
	if s.namespaces == nil {
		return s.namespace + "|" + s.pods.String()
	}
	return "*" + s.namespaces.String() + "|" + s.pods.String()
}

// everyPod selects all pods.
var everyPod = &podSelector{namespaces: labels.Everything(), pods: labels.Everything()}

// parser collects what is wrong with a policy.
type parser struct {
	ref      PolicyRef
	uid      types.UID
	findings []Finding
}

func (p *parser) find(field, format string, args ...any) {
	p.findings = append(p.findings, Finding{Policy: p.ref, UID: p.uid, Message: field + ": " + fmt.Sprintf(format, args...)})
}

// selector returns nil after a finding.
func (p *parser) selector(field string, s *metav1.LabelSelector) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		p.find(field, "%v; the part with it matches nothing", err)
		return nil
	}
	return out
}

// directions are those that a policy isolates its pods in.
func directions(np *networkingv1.NetworkPolicy) (in, out bool) {
	for _, t := range np.Spec.PolicyTypes {
		in = in || t == networkingv1.PolicyTypeIngress
		out = out || t == networkingv1.PolicyTypeEgress
	}
	if len(np.Spec.PolicyTypes) == 0 {
		return true, len(np.Spec.Egress) > 0
	}
	return in, out
}

// packedSpec is the spec of a policy, in a tenth of its memory: in a large cluster, most
// policies select no pod of this node, and the rules of the others are read once.
type packedSpec struct {
	spec   *networkingv1.NetworkPolicySpec // until it is packed
	packed []byte
}

func (s *packedSpec) pack() {
	if b, err := s.spec.Marshal(); err == nil {
		s.spec, s.packed = nil, b
	}
}

func (s *packedSpec) get() (*networkingv1.NetworkPolicySpec, error) {
	if s.spec != nil {
		return s.spec, nil
	}
	out := &networkingv1.NetworkPolicySpec{}
	return out, out.Unmarshal(s.packed)
}

// parseNetworkPolicy reads the rules of one direction.
func parseNetworkPolicy(ref PolicyRef, uid types.UID, packed *packedSpec, d direction) (rules []rule, findings []Finding) {
	p := &parser{ref: ref, uid: uid}
	spec, err := packed.get()
	if err != nil {
		p.find("spec", "%v; it allows nothing", err)
		return nil, p.findings
	}
	if d == ingress {
		for i, r := range spec.Ingress {
			field := fmt.Sprintf("spec.ingress[%d]", i)
			rules = append(rules, rule{p.peers(field+".from", r.From), p.ports(field+".ports", r.Ports)})
		}
	} else {
		for i, r := range spec.Egress {
			field := fmt.Sprintf("spec.egress[%d]", i)
			rules = append(rules, rule{p.peers(field+".to", r.To), p.ports(field+".ports", r.Ports)})
		}
	}
	return rules, p.findings
}

func (p *parser) peers(field string, in []networkingv1.NetworkPolicyPeer) (out []peer) {
	if len(in) == 0 {
		return []peer{{all: true}}
	}
	for i, n := range in {
		field := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case n.IPBlock != nil && (n.PodSelector != nil || n.NamespaceSelector != nil):
			p.find(field, "has an ipBlock and a selector, want one of them; the peer matches nothing")
		case n.IPBlock != nil:
			if spans := p.block(field+".ipBlock", n.IPBlock); spans != nil {
				out = append(out, peer{blocks: spans})
			}
		case n.PodSelector == nil && n.NamespaceSelector == nil:
			p.find(field, "has no ipBlock, podSelector or namespaceSelector; the peer matches nothing")
		default:
			s := &podSelector{namespace: p.ref.Namespace, pods: labels.Everything()}
			if n.NamespaceSelector != nil {
				s.namespace = ""
				if s.namespaces = p.selector(field+".namespaceSelector", n.NamespaceSelector); s.namespaces == nil {
					continue
				}
			}
			if n.PodSelector != nil {
				if s.pods = p.selector(field+".podSelector", n.PodSelector); s.pods == nil {
					continue
				}
			}
			out = append(out, peer{pods: s})
		}
	}
	return out
}

// block returns nil after a finding, and if nothing is left of the block.
func (p *parser) block(field string, b *networkingv1.IPBlock) []span {
	whole, ok := p.cidr(field+".cidr", b.CIDR)
	if !ok {
		return nil
	}
	spans := []span{whole}
	for i, e := range b.Except {
		except, ok := p.cidr(fmt.Sprintf("%s.except[%d]", field, i), e)
		if !ok {
			return nil
		}
		spans = subtract(spans, except)
	}
	return spans
}

func (p *parser) cidr(field, s string) (span, bool) {
	prefix, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		p.find(field, "%q is not a CIDR: %v; the peer matches nothing", s, err)
	case prefix.Addr().Is4In6():
		p.find(field, "%q is an IPv4 address in an IPv6 one, which no packet carries; write it as IPv4; the peer matches nothing", s)
	default:
		return prefixSpan(prefix), true
	}
	return span{}, false
}

func (p *parser) ports(field string, in []networkingv1.NetworkPolicyPort) (out []port) {
	if len(in) == 0 {
		return []port{{}}
	}
	for i, n := range in {
		field := fmt.Sprintf("%s[%d]", field, i)
		protocol := corev1.ProtocolTCP
		if n.Protocol != nil {
			protocol = *n.Protocol
		}
		proto, ok := protocolNumber(protocol)
		if !ok {
			p.find(field+".protocol", "%q is not known, want TCP, UDP or SCTP; the port matches nothing", protocol)
			continue
		}
		one := port{proto: proto, hi: maxPort}
		switch {
		case n.Port == nil && n.EndPort != nil:
			p.find(field+".endPort", "%d has no port to begin at; the port matches nothing", *n.EndPort)
			continue
		case n.Port == nil:
		case n.Port.Type == intstr.String && n.EndPort != nil:
			p.find(field+".endPort", "%d cannot follow the named port %q; the port matches nothing", *n.EndPort, n.Port.StrVal)
			continue
		case n.Port.Type == intstr.String:
			one = port{proto: proto, name: n.Port.StrVal}
		default:
			end := n.Port.IntVal
			if n.EndPort != nil {
				end = *n.EndPort
			}
			if n.Port.IntVal < 1 || end > maxPort || end < n.Port.IntVal {
				p.find(field, "ports %d to %d are no range within 1 to %d; the port matches nothing", n.Port.IntVal, end, maxPort)
				continue
			}
			one.lo, one.hi = uint16(n.Port.IntVal), uint16(end)
		}
		out = append(out, one)
	}
	return out
}
