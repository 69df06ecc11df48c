package ledger

import (
	"time"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/pod"
)

// ID names an attachment as the CNI specification does: by network, container and
// interface.
type ID struct {
	// Network is the CNI network's name. It is empty where that is not known, as in
	// the records of releases that did not keep it; empty matches any network.
	Network     string `json:"network,omitempty"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

func (id ID) String() string { return id.ContainerID + "/" + id.IfName }

// Matches says that both may name the same attachment.
func (id ID) Matches(other ID) bool {
	return id.slot() == other.slot() && (id.Network == other.Network || id.Network == "" || other.Network == "")
}

// slot is an interface of a container: one attachment at a time.
type slot struct{ containerID, ifName string }

func (id ID) slot() slot { return slot{id.ContainerID, id.IfName} }

// State is how far an attachment has come.
type State string

const (
	// Pending: the addresses are taken, the wiring may be half done. After a
	// crash it is undone; the runtime will ask again.
	Pending State = "pending"
	// Committed: wired; the answer was or is about to be given.
	Committed State = "committed"
	// Released: ended by a DEL; its link may still exist, so its addresses
	// are not free yet.
	Released State = "released"
	// Quarantined: gone. What is left is when its addresses were last in use.
	Quarantined State = "resting" // the word in the files, which other releases read
	// Unknown: a newer release wrote the record, with a state that this one does not
	// know. What can be read of it stays held; only the runtime
	// or the end of its link gives it up. It is never written.
	Unknown State = "unknown"
)

// Record is one attachment.
type Record struct {
	ID
	State State `json:"state"`
	// Pod is empty for a caller that is not Kubernetes.
	Pod pod.Ref `json:"-"` // see file
	// App is the pod's workload in its namespace (embed.Workload), which may have the
	// addresses again in their quarantine. It is empty where that is not known: in records
	// of releases that did not keep it, and in rebuilt ones.
	App string `json:"app,omitempty"`
	// HostIf is the host's end of the veth.
	HostIf string `json:"hostIf"`
	// MTU of the link in bytes.
	MTU int `json:"mtu"`
	// HostPorts are the node's ports that lead to the pod.
	HostPorts []pod.HostPort `json:"hostPorts,omitempty"`
	address.Set
	// QuarantinedSince is when a quarantined attachment's link was gone.
	QuarantinedSince time.Time `json:"restsSince,omitzero"`
}
