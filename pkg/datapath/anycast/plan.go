package anycast

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Entry is what the kernel has, or has to have, for an anycast address. The zero
// Entry is nothing.
type Entry struct {
	// Members of the address' nexthop group: those that drain behind the others,
	// each part by ifindex.
	Members []Member
	// Announced: there is the route that the routing daemon announces.
	Announced bool
	// Local: there is the route that stays on the node.
	Local bool
}

// Member is a pod's link in a nexthop group.
type Member struct {
	// Link is an ifindex.
	Link int
	// Drains: it keeps the flows that it is busy with, and gets no others.
	Drains bool
}

// Change is a step from what the kernel has to what it has to have.
type Change struct {
	Op   Op
	Addr netip.Addr
	// Members of the group after the change; only of AddGroup and SetGroup.
	Members []Member
}

// Op is a kind of Change. Plan orders changes by it.
type Op uint8

const (
	// Withdraw deletes the announced route.
	Withdraw Op = iota
	// DelLocal deletes the route that stays on the node.
	DelLocal
	// DelGroup deletes the nexthop group.
	DelGroup
	// SetGroup changes the members of a nexthop group that is there.
	SetGroup
	// AddGroup adds a nexthop group.
	AddGroup
	// AddLocal adds the route that stays on the node.
	AddLocal
	// Announce adds the announced route.
	Announce
)

var opNames = [...]string{"withdraw", "delete local", "delete group", "set group", "add group", "add local", "announce"}

func (c Change) String() string {
	s := fmt.Sprintf("%s %v", opNames[c.Op], c.Addr)
	for _, m := range c.Members {
		s += fmt.Sprintf(" %d", m.Link)
		if m.Drains {
			s += "-"
		}
	}
	return s
}

// Plan is how the entries of the addresses in desired become so. Each step can be
// taken once those before it are; all withdrawals come first. No step takes
// delivery from an address that has it before and after.
func Plan(desired, actual map[netip.Addr]Entry) []Change {
	var plan []Change
	for addr, want := range desired {
		have := actual[addr]
		step := func(op Op) { plan = append(plan, Change{Op: op, Addr: addr}) }
		if have.Announced && !want.Announced {
			step(Withdraw)
		}
		if have.Local && !want.Local {
			step(DelLocal)
		}
		switch {
		case len(want.Members) == 0 && len(have.Members) > 0:
			step(DelGroup)
		case slices.Equal(want.Members, have.Members):
		case len(have.Members) == 0:
			plan = append(plan, Change{AddGroup, addr, want.Members})
		default:
			plan = append(plan, Change{SetGroup, addr, want.Members})
		}
		if want.Local && !have.Local {
			step(AddLocal)
		}
		if want.Announced && !have.Announced {
			step(Announce)
		}
	}
	slices.SortFunc(plan, func(a, b Change) int {
		if a.Op != b.Op {
			return int(a.Op) - int(b.Op)
		}
		return a.Addr.Compare(b.Addr)
	})
	return plan
}

// String is "announced via 4 5, 6 drains", or "nothing".
func (e Entry) String() string {
	if len(e.Members) == 0 && !e.Announced && !e.Local {
		return "nothing"
	}
	what := "group only"
	switch {
	case e.Announced && e.Local:
		what = "announced"
	case e.Announced:
		what = "announced, not local,"
	case e.Local:
		what = "local"
	}
	var links []string
	for _, m := range e.Members {
		l := fmt.Sprint(m.Link)
		if m.Drains {
			l += " (drains)"
		}
		links = append(links, l)
	}
	return what + " via " + strings.Join(links, " ")
}
