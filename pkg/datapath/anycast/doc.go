// Package anycast decides which of the node's pods are announced at which anycast
// addresses, and sets the kernel's routes accordingly.
//
// [State] decides. It is pure: it takes events and the time, and says for each pod and
// address whether it is announced, why, and since when. [Plan] is the difference between
// what [State] wants and what the kernel has, withdrawals first. The FIB applies it over
// netlink. Each address has a nexthop group of the pods' links, which is resilient, so
// that a pod that comes or goes moves no flow of another pod, and up to two routes on
// it. The routing daemon learns and announces the one of metric 512. The one of metric
// 1024 stays on the node: it delivers what routers send that have not processed a
// withdrawal yet. The [Controller] is the one goroutine that owns all of it, and
// [Controller.Sync] repairs what another program changed.
//
// The package touches only nexthops with an ID of flock's range, and routes of flock's
// protocol that are on a nexthop. It touches no link, no address and not the routing
// daemon, which learns everything from the kernel.
//
// The invariants: a pod is announced only if the last report about it is Ready, none of
// the containers in that report has exited since, it is not being deleted, and its link
// is up. A withdrawal waits for nothing. Missing information changes nothing: routes of
// an earlier run of the agent stay until a source of pods has reported, and those of this
// run stay while the source is lost.
package anycast
