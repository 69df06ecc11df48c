// Package pod holds what all of flock calls a pod by, and whether it is Ready.
package pod

import (
	"fmt"
	"net/netip"
	"strconv"

	"k8s.io/apimachinery/pkg/types"
)

// UID is a pod's metadata.uid. A static pod's is the one by which the kubelet and the
// runtime know it, not that of its mirror in the API.
type UID = types.UID

// Ref names one pod. The UID distinguishes it from a later pod of the same name.
type Ref struct {
	Namespace string
	Name      string
	UID       UID // empty where a runtime does not pass it on
}

// String returns namespace/name, as kubectl users write it.
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// Version is a resourceVersion as a number: of two versions of an object the later one has
// the larger number (KEP-5504). It is 0 if there is none.
func Version(resourceVersion string) uint64 {
	v, _ := strconv.ParseUint(resourceVersion, 10, 64)
	return v
}

// Readiness says whether a pod is Ready.
type Readiness int8

const (
	// Unknown: a kubelet that has just started has not looked at the pod yet.
	// Whoever acts on readiness leaves things as they are.
	Unknown Readiness = iota
	NotReady
	Ready
)

// String returns the readiness in words for logs and status.
func (r Readiness) String() string {
	switch r {
	case Ready:
		return "Ready"
	case NotReady:
		return "NotReady"
	}
	return "Unknown"
}

// HostPort is a port of the node that leads to a port of a pod (containerPort and
// hostPort in the pod's spec). Its JSON is that of the CNI conventions.
type HostPort struct {
	// HostIP is the address of the node that has the port. Without one, all of them
	// have it; with an unspecified one, all of its family.
	HostIP        netip.Addr `json:"hostIP,omitzero"`
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
	Protocol      string     `json:"protocol"` // a key of Protocols
}

// Protocols are those that have ports, with their numbers (IANA).
var Protocols = map[string]byte{"tcp": 6, "udp": 17, "sctp": 132}

// Validate reports what is wrong with the port.
func (p HostPort) Validate() error {
	switch {
	case p.HostPort == 0 || p.ContainerPort == 0:
		return fmt.Errorf("hostPort=%d, containerPort=%d: want 1 to 65535", p.HostPort, p.ContainerPort)
	case Protocols[p.Protocol] == 0:
		return fmt.Errorf("hostPort=%d: protocol=%q: want tcp, udp or sctp", p.HostPort, p.Protocol)
	}
	return nil
}
