// Package datapath is what the parts of flock that own state in the kernel have in common:
// each is a [Feature], in a package of its own below this one.
package datapath

import (
	"context"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// A Feature owns a part of the kernel's state. It has its desired state as a value, reads the
// actual state from the kernel, and applies the difference. There is no other way in which it
// changes the kernel than towards its desired state, so that what it does at the agent's start,
// after a change and after a repair is the same.
type Feature interface {
	// Name is one word for people: it is in logs, Events and conditions.
	Name() string
	// Kinds are the kinds of objects that the feature owns or depends on: a change of one of
	// them by another program is a reason to Sync.
	Kinds() []kernel.Kind
	// Sync reads the kernel, makes it what it shall be, and returns what it found different,
	// in the order in which it was changed. It may be called at any time, from any goroutine,
	// and again; where nothing differs it changes nothing. While the desired state is not
	// known yet, Sync does nothing. After an error, what is in Repairs has been done.
	Sync(context.Context) ([]Repair, error)
}

// A Repair is one difference between the desired state and the kernel that a Sync removed.
type Repair struct {
	Kind kernel.Kind
	// Object is what was changed, as ip(8), nft(8) or sysctl(8) name it:
	// "unreachable 2001:db8:100::/64 proto 85 metric 512".
	Object string
	// Found is what was there instead: "missing", "not flock's", "mtu 9000, want 1500".
	Found string
}

// Missing is what Found says of an object that was not there, Stray of one that nothing
// accounts for and that was deleted.
const (
	Missing = "missing"
	Stray   = "stray"
)

func (r Repair) String() string { return r.Object + ": " + r.Found }
