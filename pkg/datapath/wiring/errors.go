package wiring

import (
	"fmt"
	"net/netip"
)

// A CollisionError says that a link or an address that an attachment needs belongs
// to another container of this node, and stays with it.
type CollisionError struct {
	// HostIf is the link that is in the way.
	HostIf string
	// Addr is the address in question; invalid if it is the name of the link.
	Addr netip.Addr
	// Owner is the container ID that the link's alias names; empty if unknown.
	Owner string
	// Alias is the pod that the link's alias names.
	Alias string
}

func (e *CollisionError) Error() string {
	owner := fmt.Sprintf("container %s (%s)", e.Owner, e.Alias)
	if e.Owner == "" {
		owner = "an unknown container"
	}
	if e.Addr.IsValid() {
		return fmt.Sprintf("address %v: already routed to %s of %s; delete that pod or choose another address", e.Addr, e.HostIf, owner)
	}
	return fmt.Sprintf("host interface %s: belongs to %s; delete one of the two pods, its successor gets another name", e.HostIf, owner)
}
