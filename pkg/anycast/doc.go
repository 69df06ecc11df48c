// Package anycast decides which of the node's pods are announced at which
// anycast addresses, and keeps the kernel's routes so.
//
// [State] decides. It is pure: events and the time go in, and for each pod and
// address out come whether it is announced, why, and since when. [Plan] is the
// difference between what [State] wants and what the kernel has, withdrawals
// first. The FIB applies it over netlink: for each address a nexthop group of
// the pods' links (resilient, so that a pod's coming or going moves no flow but
// its own) and up to two routes on it. The one of metric 512 is what the routing
// daemon learns and announces; the one of metric 1024 stays on the node, and
// delivers what routers that have not heard of a withdrawal still send. The
// [Controller] is the one goroutine that owns all of it.
//
// It touches only routes on nexthop groups, and nexthops, whose IDs are in a
// range of its own; never a link or an address, and never the routing daemon:
// that learns of everything from the kernel.
//
// The invariants: a pod is announced only if the last word about it is Ready, no
// container that this word speaks of has exited since, it is not being deleted,
// and its link is up. A withdrawal waits for nothing. What is not known changes
// nothing: routes of an earlier run of the agent stay until a source of pods has
// spoken, and those of this run stay when the source is lost.
package anycast
