package anycast

import (
	"fmt"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

// Role is what a pod's link does for an anycast address.
type Role uint8

const (
	// Withheld: nothing is sent to the pod.
	Withheld Role = iota
	// LastResort: not announced. The pod gets what still arrives for the
	// address while no other pod of the node is announced at it.
	LastResort
	// Draining: not announced. Beside announced pods of the node it keeps the
	// flows that it is busy with, and gets no share of others.
	Draining
	// Announced: the node announces the address, and the pod has its share.
	Announced
)

func (r Role) String() string {
	return [...]string{"Withheld", "LastResort", "Draining", "Announced"}[r]
}

// Reason says in one word why a pod is or is not announced at an address. Status,
// Events, metrics and log use the same word.
type Reason string

const (
	// Ready: announced, because the pod is.
	Ready Reason = "Ready"
	// Kept: announced, because it was when the agent started, and no source has
	// reported the pod yet.
	Kept Reason = "Kept"
	// ReadinessUnknown: no source has reported the pod's readiness yet.
	ReadinessUnknown Reason = "ReadinessUnknown"
	// NotReady: the pod's condition of type Ready is not true.
	NotReady Reason = "NotReady"
	// AnnounceDelay: the pod has not been Ready for as long as the address pool
	// wants.
	AnnounceDelay Reason = "AnnounceDelay"
	// Terminating: the pod has a deletion timestamp, or is gone from the API.
	// It never comes back.
	Terminating Reason = "Terminating"
	// NotFound: the source has no such pod.
	NotFound Reason = "NotFound"
	// ContainerExited: a container has exited, and no source has reported a newer status.
	ContainerExited Reason = "ContainerExited"
	// SandboxExited: the pod's sandbox has exited.
	SandboxExited Reason = "SandboxExited"
	// SandboxReplaced: the pod has a newer sandbox.
	SandboxReplaced Reason = "SandboxReplaced"
	// LinkDown: the pod's link is down, without carrier, or gone.
	LinkDown Reason = "LinkDown"
	// SandboxDeleted: the runtime gave the sandbox up (DEL). Only in transitions.
	SandboxDeleted Reason = "SandboxDeleted"
	// NotGranted: the address is not the pod's any more. Only in transitions.
	NotGranted Reason = "NotGranted"
)

const (
	// DrainTime bounds how long a withdrawn pod keeps the flows that it is busy
	// with, where the node announces other pods at the address. After that, flows
	// that are never idle move too, so that no new flow goes to a pod that does not
	// answer any more.
	DrainTime = 5 * time.Second
	// LingerTime is how long a pod that is withdrawn, but not deleted, gets
	// what still arrives at the node: far longer than routers need to learn of
	// the withdrawal. A pod that is deleted gets it until it is gone.
	LingerTime = 30 * time.Second
)

// facts are what a decision about a pod and one of its addresses depends on.
type facts struct {
	superseded  bool
	linkUp      bool
	sandboxGone bool // it has exited; the attachment is still there
	terminating bool
	notFound    bool
	kept        bool       // announced by an earlier run of the agent
	readiness   *Readiness // nil if unknown
	exited      *exit      // the latest of a container of the pod
	// drain is how long the pod may keep the flows that it is busy with.
	drain time.Duration
	// readyFrom is the time since which the pod was Ready and its link up without a
	// break.
	readyFrom time.Time
	delay     time.Duration
	// role is the one so far. Only a new announcement raises it.
	role Role
	// withdrawn is when the pod was withdrawn. It is the current time while the pod is
	// announced.
	withdrawn time.Time
}

// exit is the end of a container.
type exit struct {
	name     string // of the container; empty until a source has named it
	restarts int    // at the exit; -1 if not known
	at       time.Time
}

// decision is what follows from facts at some time.
type decision struct {
	role   Role
	reason Reason
	detail string
	// until is when time alone changes the decision; zero if only an event can.
	until time.Time
}

// decide is the whole policy: the first reason that holds.
func decide(f facts, now time.Time) decision {
	switch {
	case f.superseded:
		return decision{reason: SandboxReplaced}
	case !f.linkUp:
		return decision{reason: LinkDown}
	case f.sandboxGone:
		return f.crashed(now, SandboxExited, "")
	case f.terminating:
		return f.leaving(now)
	case f.exited != nil && f.readiness.Ready == pod.Ready: // the source does not know of the exit
		return f.crashed(now, ContainerExited, f.exited.name)
	case f.notFound:
		return f.unready(now, NotFound, "")
	case f.readiness == nil && f.kept:
		return decision{role: Announced, reason: Kept}
	case f.readiness == nil:
		return f.unready(now, ReadinessUnknown, "")
	case f.readiness.Ready != pod.Ready:
		return f.unready(now, NotReady, f.readiness.why())
	case f.role != Announced && now.Before(f.readyFrom.Add(f.delay)):
		d := f.unready(now, AnnounceDelay, fmt.Sprintf("%v from %s on", f.delay, f.readyFrom.UTC().Format(time.RFC3339Nano)))
		d.until = earliest(d.until, f.readyFrom.Add(f.delay))
		return d
	}
	return decision{role: Announced, reason: Ready}
}

// why explains why the pod is not Ready, as the kubelet does.
func (v *Readiness) why() string {
	switch {
	case v.Message == "":
		return v.Reason
	case v.Reason == "":
		return v.Message
	}
	return v.Reason + ": " + v.Message
}

// crashed pods have nothing to be busy with; but as long as routers send packets
// to the node, a pod's kernel that refuses them is better than their way back
// along the node's default route.
func (f facts) crashed(now time.Time, r Reason, detail string) decision {
	return f.degrade(now, r, detail, LastResort, f.withdrawn.Add(LingerTime))
}

// unready pods are withdrawn, and may come back.
func (f facts) unready(now time.Time, r Reason, detail string) decision {
	if f.exited != nil {
		return f.crashed(now, r, detail)
	}
	return f.degrade(now, r, detail, Draining, f.withdrawn.Add(LingerTime))
}

// leaving pods keep their flows until they are gone.
func (f facts) leaving(now time.Time) decision {
	role := Draining
	if f.exited != nil {
		role = LastResort
	}
	return f.degrade(now, Terminating, "", role, time.Time{})
}

// degrade lowers a role, at first to the given one, in the course of time: Draining ends
// with the drain time, and LastResort at end unless that is zero.
func (f facts) degrade(now time.Time, r Reason, detail string, role Role, end time.Time) decision {
	d := decision{reason: r, detail: detail, role: min(f.role, role)}
	if d.role == Draining {
		if d.until = f.withdrawn.Add(f.drain); now.Before(d.until) {
			return d
		}
		d.role = LastResort
	}
	d.until = time.Time{}
	if d.role == LastResort && !end.IsZero() {
		if d.until = end; !now.Before(end) {
			d.role, d.until = Withheld, time.Time{}
		}
	}
	return d
}

// earliest is the earlier of two times, of which zero is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
