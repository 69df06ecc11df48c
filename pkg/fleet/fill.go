package fleet

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// fill makes the node's spec of a template. What comes back without an error is a
// spec that config.ParseNode takes.
func fill(node Node, t *v1alpha1.NodeConfigTemplate) (v1alpha1.NodeConfigSpec, error) {
	fail := func(format string, args ...any) (v1alpha1.NodeConfigSpec, error) {
		return v1alpha1.NodeConfigSpec{}, fmt.Errorf("NodeConfigTemplate %s: %w", t.Name, fmt.Errorf(format, args...))
	}
	if len(t.Name) > 63 {
		return fail("its name is longer than the 63 characters that a label's value may have: give it a shorter one")
	}
	from := t.Spec.Template.DeepCopy()
	spec := v1alpha1.NodeConfigSpec{NodeSettings: from.NodeSettings}
	spec.PodCIDRs.PodCIDRSettings = from.PodCIDRs
	if len(node.PodCIDRs) == 0 {
		return fail("node %s has no spec.podCIDRs yet: let the cluster's allocator give it some (kube-controller-manager --allocate-node-cidrs --cluster-cidr), or write NodeConfig %s by hand", node.Name, node.Name)
	}
	for _, c := range node.PodCIDRs {
		if p, err := netip.ParsePrefix(string(c)); err == nil && p.Addr().Is4() {
			spec.PodCIDRs.IPv4 = append(spec.PodCIDRs.IPv4, c)
		} else {
			spec.PodCIDRs.IPv6 = append(spec.PodCIDRs.IPv6, c)
		}
	}
	if from.BGP != nil {
		as, err := localAS(node, from.BGP)
		if err != nil {
			return fail("%w", err)
		}
		id, err := routerID(node)
		if err != nil {
			return fail("spec.bgp.routerID: %w", err)
		}
		spec.BGP = &v1alpha1.BGP{LocalAS: as, RouterID: id, BGPPeering: from.BGP.BGPPeering}
	}
	if from.OSPF != nil {
		id, err := routerID(node)
		if err != nil {
			return fail("spec.ospf.routerID: %w", err)
		}
		spec.OSPF = &v1alpha1.OSPF{RouterID: id, OSPFRouting: *from.OSPF}
	}
	made := &v1alpha1.NodeConfig{Spec: spec}
	made.Name = node.Name
	if _, err := config.ParseNode(made); err != nil {
		return fail("with Node.spec.podCIDRs %v the result is not a valid NodeConfig: %w", node.PodCIDRs, err)
	}
	return spec, nil
}

func localAS(node Node, b *v1alpha1.BGPTemplate) (v1alpha1.ASNumber, error) {
	if (b.LocalAS != 0) == (b.LocalASLabel != "") {
		return 0, fmt.Errorf("spec.template.bgp: set either localAS or localASLabel")
	}
	if b.LocalASLabel == "" {
		return b.LocalAS, nil
	}
	value, ok := node.Labels[b.LocalASLabel]
	if !ok {
		return 0, fmt.Errorf("node %s has no label %s, which spec.template.bgp.localASLabel names: kubectl label node %s %s=<AS>", node.Name, b.LocalASLabel, node.Name, b.LocalASLabel)
	}
	as, err := strconv.ParseUint(value, 10, 32)
	if err != nil || !config.ValidAS(v1alpha1.ASNumber(as)) {
		return 0, fmt.Errorf("node %s: label %s=%q, which spec.template.bgp.localASLabel names, is not an AS number: want a number between 1 and 4294967294 and not 23456 or 65535, which are reserved", node.Name, b.LocalASLabel, value)
	}
	return v1alpha1.ASNumber(as), nil
}

// routerID is the node's IPv4 InternalIP. Where the node is known by IPv6 alone it is
// 32 bits of the name's SHA-256: RFC 6286 asks for a number that is unique in the AS,
// and no more. That the node is not known by any address yet is an error: an ID that
// changes ends all sessions.
func routerID(node Node) (string, error) {
	if len(node.InternalIPs) == 0 {
		return "", fmt.Errorf("node %s has no InternalIP in status.addresses yet: set the kubelet's --node-ip, or write NodeConfig %s by hand", node.Name, node.Name)
	}
	usable := func(a netip.Addr) bool { return a.Is4() && !a.IsUnspecified() }
	if i := slices.IndexFunc(node.InternalIPs, usable); i >= 0 {
		return node.InternalIPs[i].String(), nil
	}
	hash := sha256.Sum256([]byte(node.Name))
	id := netip.AddrFrom4([4]byte(hash[:4]))
	if id.IsUnspecified() {
		id = id.Next()
	}
	return id.String(), nil
}
