// Package wiring connects pods to the node, and the node's summary prefixes to
// the routing daemon, by way of the kernel over netlink.
//
// It decides nothing about addresses: which ones a pod holds is the caller's to
// say. It touches only what is flock's own: links whose names [HostIfName] makes
// and whose alias says so, routes of protocol [RouteProtocol], and in the pod's
// namespace the one link that it made there. Policy, anycast routes and the
// announcing itself are other packages'.
//
// The invariant: what [Host.Attach] leaves is either the whole wiring of a pod
// or nothing of it, and running it again, over whatever a crash left, ends in
// that same state. Nothing about a link is remembered in memory: name, alias and
// routes in the kernel are the record.
package wiring
