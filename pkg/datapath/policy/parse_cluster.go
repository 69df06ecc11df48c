package policy

import (
	"fmt"

	"k8s.io/apimachinery/pkg/labels"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"
)

// nodesNamespace holds the nodes, which are selected like pods. No namespace has such
// a name, so that no selector of namespaces selects it.
const nodesNamespace = "nodes of the cluster"

// SetNode adds a node, or changes what is known of it.
func (x *Index) SetNode(n Node) {
	x.SetPod(Pod{Namespace: nodesNamespace, Name: n.Name, Labels: n.Labels, Addrs: n.Addrs})
}

// DeleteNode removes a node.
func (x *Index) DeleteNode(name string) { x.DeletePod(nodesNamespace, name, "") }

// SetClusterNetworkPolicy adds a policy, or changes it. v1alpha2 has the same schema.
func (x *Index) SetClusterNetworkPolicy(cnp *policyv1beta1.ClusterNetworkPolicy) {
	p := &clusterParser{parser: parser{ref: PolicyRef{Name: cnp.Name}, uid: cnp.UID}}
	subject, ok := p.subject(&cnp.Spec.Subject)
	o := order{priority: cnp.Spec.Priority, name: cnp.Name}
	switch cnp.Spec.Tier {
	case policyv1beta1.AdminTier:
		o.tier = admin
	case policyv1beta1.BaselineTier:
		o.tier = baseline
	default:
		p.find("spec.tier", "%q is not known, want Admin or Baseline; the policy is not enforced", cnp.Spec.Tier)
		ok = false
	}
	if !ok {
		x.setPolicy(p.ref, nil, p.findings)
		return
	}
	var joins []join
	add := func(d direction, i int, field string, action policyv1beta1.ClusterNetworkPolicyRuleAction, peers []clusterPeer, protocols []policyv1beta1.ClusterNetworkPolicyProtocol) {
		rules, effect := p.rule(field, action, peers, protocols)
		findings := p.findings
		p.findings = nil
		g := group{dir: d, subject: subject, order: o, action: effect}
		g.order.index = i
		for _, pe := range peers {
			g.toNode = g.toNode || d == egress && (pe.Nodes != nil || pe.Networks != nil)
		}
		g.key = fmt.Sprintf("%v|%d|%d|%v|%v|%v|%s", p.ref, d, i, g.order, effect, g.toNode, subject.key())
		joins = append(joins, join{g, author{p.ref, p.uid, cnp.CreationTimestamp.Time, d}, func() ([]rule, []Finding) { return rules, findings }})
	}
	for i, r := range cnp.Spec.Ingress {
		var peers []clusterPeer
		for _, f := range r.From {
			peers = append(peers, clusterPeer{Namespaces: f.Namespaces, Pods: f.Pods})
		}
		add(ingress, i, fmt.Sprintf("spec.ingress[%d]", i), r.Action, peers, r.Protocols)
	}
	for i, r := range cnp.Spec.Egress {
		add(egress, i, fmt.Sprintf("spec.egress[%d]", i), r.Action, r.To, r.Protocols)
	}
	x.setPolicy(p.ref, joins, nil)
}

// clusterPeer is a peer of either direction: those of ingress have fewer fields.
type clusterPeer = policyv1beta1.ClusterNetworkPolicyEgressPeer

type clusterParser struct{ parser }

func (p *clusterParser) subject(s *policyv1beta1.ClusterNetworkPolicySubject) (out podSelector, ok bool) {
	switch {
	case s.Namespaces != nil && s.Pods == nil:
		out.namespaces, out.pods = p.selector("spec.subject.namespaces", s.Namespaces), labels.Everything()
	case s.Pods != nil && s.Namespaces == nil:
		out.namespaces = p.selector("spec.subject.pods.namespaceSelector", &s.Pods.NamespaceSelector)
		out.pods = p.selector("spec.subject.pods.podSelector", &s.Pods.PodSelector)
	default:
		p.find("spec.subject", "want one of namespaces and pods; the policy is not enforced")
	}
	return out, out.namespaces != nil && out.pods != nil
}

// rule parses a rule, and says what it does with what it matches. A part that is not
// known fails closed, as the API has it: an Accept rule does not match by it, and
// another rule denies everything.
func (p *clusterParser) rule(field string, action policyv1beta1.ClusterNetworkPolicyRuleAction, peers []clusterPeer, protocols []policyv1beta1.ClusterNetworkPolicyProtocol) ([]rule, effect) {
	var out rule
	unknown := 0
	for i := range peers {
		parsed, ok := p.peer(fmt.Sprintf("%s peer %d", field, i), &peers[i])
		if !ok {
			unknown++
			continue
		}
		out.peers = append(out.peers, parsed)
	}
	if len(protocols) == 0 {
		out.ports = []port{{}}
	}
	for i := range protocols {
		parsed, ok := p.protocol(fmt.Sprintf("%s.protocols[%d]", field, i), &protocols[i])
		if !ok {
			unknown++
			continue
		}
		out.ports = append(out.ports, parsed...)
	}
	var does effect
	switch action {
	case policyv1beta1.ClusterNetworkPolicyRuleActionAccept:
		return []rule{out}, allows
	case policyv1beta1.ClusterNetworkPolicyRuleActionDeny:
		does = denies
	case policyv1beta1.ClusterNetworkPolicyRuleActionPass:
		does = passes
	default:
		p.find(field+".action", "%q is not known, want Accept, Deny or Pass; the rule denies", action)
		does = denies
	}
	if unknown > 0 {
		p.find(field, "a part of the rule is not known, so that it denies everything")
		return []rule{{peers: []peer{{all: true}}, ports: []port{{}}}}, denies
	}
	return []rule{out}, does
}

func (p *clusterParser) peer(field string, in *clusterPeer) (out peer, ok bool) {
	s := &podSelector{pods: labels.Everything()}
	switch {
	case in.Namespaces != nil:
		s.namespaces = p.selector(field+".namespaces", in.Namespaces)
		return peer{pods: s}, s.namespaces != nil
	case in.Pods != nil:
		s.namespaces = p.selector(field+".pods.namespaceSelector", &in.Pods.NamespaceSelector)
		s.pods = p.selector(field+".pods.podSelector", &in.Pods.PodSelector)
		return peer{pods: s}, s.namespaces != nil && s.pods != nil
	case in.Nodes != nil:
		s.namespace, s.pods = nodesNamespace, p.selector(field+".nodes", in.Nodes)
		return peer{pods: s}, s.pods != nil
	case in.Networks != nil:
		for i, n := range in.Networks {
			one, ok := p.cidr(fmt.Sprintf("%s.networks[%d]", field, i), string(n))
			if !ok {
				return peer{}, false
			}
			out.blocks = append(out.blocks, one)
		}
		return out, true
	case in.DomainNames != nil:
		p.find(field+".domainNames", "names are not supported; the peer matches nothing")
		return peer{}, false
	}
	p.find(field, "has no field that is known, want namespaces, pods, nodes or networks; the peer matches nothing")
	return peer{}, false
}

func (p *clusterParser) protocol(field string, in *policyv1beta1.ClusterNetworkPolicyProtocol) ([]port, bool) {
	var proto uint8
	var destination *policyv1beta1.Port
	switch {
	case in.TCP != nil:
		proto, destination = tcp, in.TCP.DestinationPort
	case in.UDP != nil:
		proto, destination = udp, in.UDP.DestinationPort
	case in.SCTP != nil:
		proto, destination = sctp, in.SCTP.DestinationPort
	case in.DestinationNamedPort != "":
		name := in.DestinationNamedPort
		return []port{{proto: tcp, name: name}, {proto: udp, name: name}, {proto: sctp, name: name}}, true
	default:
		p.find(field, "has no field that is known, want tcp, udp, sctp or destinationNamedPort")
		return nil, false
	}
	if destination == nil {
		return []port{{proto: proto, hi: maxPort}}, true
	}
	lo, hi := destination.Number, destination.Number
	if destination.Range != nil {
		lo, hi = destination.Range.Start, destination.Range.End
	}
	if lo < 1 || hi > maxPort || hi < lo {
		p.find(field+".destinationPort", "ports %d to %d are no range within 1 to %d", lo, hi, maxPort)
		return nil, false
	}
	return []port{{proto: proto, lo: uint16(lo), hi: uint16(hi)}}, true
}
