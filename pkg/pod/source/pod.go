package source

import (
	"errors"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/pkg/pod"
)

// ErrNotFound says that the node has no such pod: it was deleted, or another of
// the same name took its place. Trying again will not help.
var ErrNotFound = errors.New("no such pod")

// Pod is what flock needs of a pod, at one moment. It is shared: it and what it
// refers to must not be changed.
type Pod struct {
	pod.Ref
	// Version is the resourceVersion of what was read, as a number; 0 if there is none, as
	// of a static pod. Another version alone is no change.
	Version     uint64
	Annotations map[string]string
	Labels      map[string]string
	Owners      []Owner
	// Containers are those of the spec: init containers first, each kind in
	// its order.
	Containers []Container
	Ports      []NamedPort // of all containers but those of InitPorts
	// InitPorts are those of init containers that end before the pod is Ready.
	InitPorts []NamedPort
	// HostNetwork: the pod is in the node's network namespace.
	HostNetwork bool
	// Deletion is when the pod is to be gone, the grace period included
	// (metadata.deletionTimestamp). It is zero if the pod is not being deleted. It is
	// never removed.
	Deletion time.Time
	Status   PodStatus
}

// Owner is an owner reference.
type Owner struct {
	APIVersion, Kind, Name string
	UID                    pod.UID
	Controller             bool // the one that manages the pod; at most one is
}

// Container is a container of a pod's spec.
type Container struct {
	Name  string
	Image string // as the spec says it: tags are not resolved
	Init  bool
}

// NamedPort is a port that a container's spec gives a name.
type NamedPort struct {
	Name     string
	Protocol corev1.Protocol
	Number   uint16
}

// PodStatus is what the kubelet has seen of a pod.
type PodStatus struct {
	Phase Phase
	Ready Condition
	// IPs are the pod's addresses (status.podIPs), the primary one first.
	IPs []netip.Addr
	// Runs has each container that the kubelet has tried to start.
	Runs []Run
}

// Phase is a pod's phase as the Kubernetes API names it.
type Phase string

// The phases of the Kubernetes API. A pod leaves Succeeded and Failed no more.
const (
	Pending   Phase = "Pending"
	Running   Phase = "Running"
	Succeeded Phase = "Succeeded"
	Failed    Phase = "Failed"
)

// Condition is a pod's Ready condition.
type Condition struct {
	Readiness pod.Readiness
	Reason    string
	Message   string
	// Since is when the condition last changed between true and false, in
	// whole seconds of the node's clock; zero if the kubelet has not said.
	Since time.Time
}

// Run is the latest run of a container.
type Run struct {
	Container string
	Init      bool
	// ID is the runtime's, without the "containerd://" in front; empty until
	// there is one.
	ID       string
	Restarts int32
	Running  bool
}

// ended reports whether nothing of the pod runs or will run again. The phase
// alone does not say so: an evicted pod is Failed while its containers still
// have their grace period.
func (p *Pod) ended() bool {
	if p.Status.Phase != Succeeded && p.Status.Phase != Failed {
		return false
	}
	for _, r := range p.Status.Runs {
		if r.Running {
			return false
		}
	}
	return true
}
