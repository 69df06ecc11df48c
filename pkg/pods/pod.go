package pods

import (
	"errors"
	"time"
)

// ErrNotFound says that the node has no such pod: it was deleted, or another of
// the same name took its place. Trying again will not help.
var ErrNotFound = errors.New("no such pod")

// Ref names one pod: the UID tells it from a later one of the same name.
type Ref struct {
	Namespace string
	Name      string
	UID       string // may be empty where a runtime does not give it
}

// String returns namespace/name, as kubectl users write it.
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// Pod is what flock needs of a pod, at one moment. It is shared: it and what it
// refers to must not be changed.
type Pod struct {
	Ref         // for a static pod the UID that the kubelet and the runtime use, not its mirror's
	Annotations map[string]string
	Labels      map[string]string
	Owners      []Owner
	HostNetwork bool
	// Containers are those of the spec: init containers first, each kind in
	// its order.
	Containers []Container
	// Deletion is when the pod is to be gone, the grace period included
	// (metadata.deletionTimestamp); zero if nobody has asked for that. A pod
	// never comes back from it.
	Deletion time.Time
	Status   PodStatus
}

// Owner is an owner reference.
type Owner struct {
	APIVersion, Kind, Name, UID string
	Controller                  bool // the one that manages the pod; at most one is
}

// Container is a container of a pod's spec.
type Container struct {
	Name  string
	Image string // as the spec says it: tags are not resolved
	Init  bool
}

// PodStatus is what the kubelet has seen of a pod.
type PodStatus struct {
	Phase Phase
	Ready Condition
	// Runs tells of each container that the kubelet has tried to start.
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
	Verdict Verdict
	Reason  string
	Message string
	// Since is when the condition last changed between true and false, in
	// whole seconds of the node's clock; zero if the kubelet has not said.
	Since time.Time
}

// Verdict says whether a pod is Ready.
type Verdict int8

const (
	// Unknown is no verdict: a kubelet that has just started has not looked.
	// Whoever acts on readiness leaves things as they are.
	Unknown Verdict = iota
	NotReady
	Ready
)

// String returns the verdict in words for logs and status.
func (v Verdict) String() string {
	switch v {
	case Ready:
		return "Ready"
	case NotReady:
		return "NotReady"
	}
	return "Unknown"
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
