package policy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Pod is what policies can see of a pod.
type Pod struct {
	Namespace, Name string
	// UID distinguishes pods of the same name.
	UID    string
	Labels map[string]string
	// Version is the resourceVersion from which the Labels are; 0 is not known.
	Version uint64
	// Addrs are all addresses that the pod holds.
	Addrs []netip.Addr
	Ports []NamedPort
	// Links are the host ends of the pod's interfaces on this node; none for a pod
	// of another node.
	Links []string
	// HostNetwork pods are their node: no selector selects them.
	HostNetwork bool
	// Finished pods (Succeeded, Failed) hold their addresses no more.
	Finished bool
}

// NamedPort is a container's port that has a name.
type NamedPort struct {
	Name     string
	Protocol corev1.Protocol
	Number   uint16
}

// Namespace is what policies can see of a namespace.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Node is what policies can see of a node.
type Node struct {
	Name   string
	Labels map[string]string
	Addrs  []netip.Addr
}

// PolicyRef names a policy. Namespace is empty for a ClusterNetworkPolicy.
type PolicyRef struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

func (r PolicyRef) String() string {
	if r.Namespace == "" {
		return "ClusterNetworkPolicy " + r.Name
	}
	return "NetworkPolicy " + r.Namespace + "/" + r.Name
}

// PodOf is a pod as the API server has it, with the addresses that it holds. It has no
// Links.
func PodOf(in *corev1.Pod, addrs []netip.Addr) Pod {
	out := Pod{
		Namespace: in.Namespace, Name: in.Name, UID: string(in.UID), Labels: in.Labels, Addrs: addrs, HostNetwork: in.Spec.HostNetwork,
		Finished: in.Status.Phase == corev1.PodSucceeded || in.Status.Phase == corev1.PodFailed,
	}
	for _, c := range slices.Concat(in.Spec.InitContainers, in.Spec.Containers) {
		for _, port := range c.Ports {
			if port.Name != "" {
				protocol := port.Protocol
				if protocol == "" {
					protocol = corev1.ProtocolTCP
				}
				out.Ports = append(out.Ports, NamedPort{port.Name, protocol, uint16(port.ContainerPort)})
			}
		}
	}
	return out
}

// NodeOf is a node as the API server has it.
func NodeOf(n *corev1.Node) Node {
	out := Node{Name: n.Name, Labels: n.Labels}
	for _, address := range n.Status.Addresses {
		if a, err := netip.ParseAddr(address.Address); err == nil {
			out.Addrs = append(out.Addrs, a.Unmap())
		}
	}
	return out
}

// A Finding is a part of a policy that this node cannot enforce as it is written,
// in words for the policy's author. What the part would allow is not allowed; what
// it would deny is denied.
type Finding struct {
	Policy PolicyRef `json:"policy"`
	// UID is the policy's.
	UID     types.UID `json:"-"`
	Message string    `json:"message"`
	// OverBudget: it is more than the namespace may have on a node.
	OverBudget bool `json:"overBudget,omitempty"`
}

// direction is a pod's side of a connection.
type direction uint8

const (
	ingress direction = iota
	egress
)

func (d direction) String() string {
	if d == ingress {
		return "in"
	}
	return "out"
}

// field is the direction's list of rules in the spec of a policy.
func (d direction) field() Direction {
	if d == ingress {
		return Ingress
	}
	return Egress
}

// The numbers of the protocols that policies know (IANA).
const (
	tcp  = 6
	udp  = 17
	sctp = 132
)

func protocolNumber(p corev1.Protocol) (uint8, bool) {
	switch p {
	case corev1.ProtocolTCP:
		return tcp, true
	case corev1.ProtocolUDP:
		return udp, true
	case corev1.ProtocolSCTP:
		return sctp, true
	}
	return 0, false
}

// pods' ports are compared in their order, which has no meaning to policies but is
// stable.
func samePorts(a, b []NamedPort) bool { return slices.Equal(a, b) }
