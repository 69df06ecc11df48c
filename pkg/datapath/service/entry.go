package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Entry is what the kernel has, or has to have, for a prefix of Services' addresses. The
// zero Entry is nothing.
type Entry struct {
	// Announced: there is the route that the routing daemon announces.
	Announced bool
	// Local: there is the route that stays on the node. What is sent to the address and
	// not translated ends at it.
	Local bool
}

func (e Entry) String() string {
	switch e {
	case Entry{Announced: true, Local: true}:
		return "announced"
	case Entry{Announced: true}:
		return "announced, not local"
	case Entry{Local: true}:
		return "local"
	}
	return "nothing"
}

// Change is a step from what the kernel has to what it has to have.
type Change struct {
	Op     Op
	Prefix netip.Prefix
}

// Op is a kind of Change. Plan orders changes by it.
type Op uint8

const (
	// Withdraw deletes the announced route.
	Withdraw Op = iota
	// DelLocal deletes the route that stays on the node.
	DelLocal
	// AddLocal adds the route that stays on the node.
	AddLocal
	// Announce adds the announced route.
	Announce
)

func (c Change) String() string {
	return fmt.Sprintf("%s %v", [...]string{"withdraw", "delete local", "add local", "announce"}[c.Op], c.Prefix)
}

// Plan is how the entries of the prefixes in desired become so. Withdrawals come first, and
// an announced prefix has a route that stays on the node before and after.
func Plan(desired, actual map[netip.Prefix]Entry) []Change {
	var plan []Change
	for prefix, want := range desired {
		have := actual[prefix]
		step := func(is bool, op Op) {
			if is {
				plan = append(plan, Change{op, prefix})
			}
		}
		step(have.Announced && !want.Announced, Withdraw)
		step(have.Local && !want.Local, DelLocal)
		step(want.Local && !have.Local, AddLocal)
		step(want.Announced && !have.Announced, Announce)
	}
	slices.SortFunc(plan, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Op, b.Op), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return plan
}
