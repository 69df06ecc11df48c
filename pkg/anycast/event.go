package anycast

import (
	"net/netip"
	"strings"
	"time"
)

// An Event is something that the agent has learned. Events may come late, twice
// or, between different makers, out of order.
type Event interface{ event() }

// UID is a pod's metadata.uid.
type UID string

// Pod names a pod, for people and by UID.
type Pod struct {
	Namespace, Name string
	UID             UID
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Attached says that a pod's sandbox is wired. Again for the same sandbox, it
// replaces what was said before, as when other addresses are granted.
type Attached struct {
	// ContainerID is the sandbox's (CNI_CONTAINERID).
	ContainerID string
	Pod         Pod
	// Link is the ifindex of the link's end on the host.
	Link   int
	Grants []Grant
}

// A Grant is an anycast address that the pod asks for and may have.
type Grant struct {
	Addr netip.Addr
	// Delay is how long the pod has to be Ready before it is announced (the
	// pool's announce delay). It never delays a withdrawal.
	Delay time.Duration
}

// Detached says that a sandbox was given up (DEL), or is not there any more.
type Detached struct{ ContainerID string }

// Verdict is the last word of a source of pods about one of them.
type Verdict struct {
	UID UID
	// Ready, Reason, Message and Since (lastTransitionTime, in whole seconds)
	// are those of the pod's condition of type Ready.
	Ready           bool
	Reason, Message string
	Since           time.Time
	// Terminating: the pod has a deletion timestamp.
	Terminating bool
	// Containers are those that run as long as the pod does: its containers and
	// restartable init containers (KEP-753). The end of any other, such as an
	// ephemeral one, says nothing about the pod.
	Containers []Container
}

// Container is one of a pod's, as its status shows it.
type Container struct {
	Name string
	// ID is the runtime's, without its scheme ("containerd://").
	ID string
	// Restarts is the status' restartCount.
	Restarts int
}

// initializing tells whether the kubelet, after its restart, only says that it
// has not looked yet.
func (v Verdict) initializing() bool {
	return !v.Ready && strings.Contains(v.Message+v.Reason, "Kubelet is initializing")
}

// Deleting says that the pod has a deletion timestamp, whoever was the first to
// tell. It is of no matter for a pod that nothing is known of.
type Deleting struct{ UID UID }

// Gone says that the pod was deleted from the API.
type Gone struct{ UID UID }

// Resync is a source's whole world: pods that it does not hold do not exist. A
// source that is not sure that it knows all pods of the node must not say so.
type Resync struct{ Verdicts []Verdict }

// SourceLost says that no source of pods can be reached. What is announced stays
// until a container's exit, DEL or the loss of a link says otherwise.
type SourceLost struct{ Why string }

// Exited says that a container or a sandbox has ended. IDs of other containers on
// the node are welcome: the pod they belong to may become known later.
type Exited struct {
	ContainerID string
	At          time.Time
}

// Link says whether a link can carry packets: it is up and has a carrier. A link
// that was deleted cannot.
type Link struct {
	Index int
	Up    bool
}

// Links is the state of all links: what is not in Up is down or gone.
type Links struct{ Up map[int]bool }

func (Attached) event()   {}
func (Detached) event()   {}
func (Verdict) event()    {}
func (Deleting) event()   {}
func (Gone) event()       {}
func (Resync) event()     {}
func (SourceLost) event() {}
func (Exited) event()     {}
func (Link) event()       {}
func (Links) event()      {}
