package anycast

import (
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

// An Event is something that the agent has learned. Events may come late, twice or,
// between different senders, out of order.
type Event interface{ event() }

// Attached says that a pod's sandbox is wired. A second one for the same sandbox
// replaces the first, as when other addresses are granted.
type Attached struct {
	// ContainerID is the sandbox's (CNI_CONTAINERID).
	ContainerID string
	Pod         pod.Ref
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

// Detached says that a sandbox was released (DEL), or no longer exists.
type Detached struct{ ContainerID string }

// Readiness is the latest status of a pod that a source reported.
type Readiness struct {
	UID pod.UID
	// Ready, Reason, Message and Since (lastTransitionTime, in whole seconds)
	// are those of the pod's condition of type Ready.
	Ready           pod.Readiness
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

// Deleting says that the pod has a deletion timestamp, whichever source reported it
// first. For an unknown pod it has no effect.
type Deleting struct{ UID pod.UID }

// Gone says that the pod was deleted from the API.
type Gone struct{ UID pod.UID }

// Resync is all pods of the node: others do not exist. A source that may not know all
// of them must not send it.
type Resync struct{ Pods []Readiness }

// SourceLost says that no source of pods can be reached. Announcements stay until a
// container's exit, DEL or the loss of a link ends them.
type SourceLost struct{ Why string }

// Exited says that a container or a sandbox has exited. It may be of any container of
// the node: its pod may become known later.
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
func (Readiness) event()  {}
func (Deleting) event()   {}
func (Gone) event()       {}
func (Resync) event()     {}
func (SourceLost) event() {}
func (Exited) event()     {}
func (Link) event()       {}
func (Links) event()      {}
