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
//
// # A pod's link
//
// Both ends are made by one request, the pod's directly in its namespace. Host
// end: fe80::1/64, a fixed MAC, no rp_filter, and no automatic link-local address.
// Pod end: its addresses as /128 and /32, a default route via fe80::1 and one via
// 169.254.1.1. Permanent neighbour entries on both sides: nothing is ever resolved
// on the link, so 169.254.1.1 needs neither an address nor proxy_arp on the host.
// Which sources a pod may have is pkg/sourceguard's, in both families. The kernel's
// rp_filter is off on pods' links: it knows IPv4 alone, and asks of a source that
// there is a route back to it, which an anycast address has not once it is
// withdrawn, while the pod still answers. The kernel takes the larger of the
// link's value and net.ipv4.conf.all.rp_filter: see [Host.SourceRoutesWanted].
//
// # Privileges
//
// In the node's network namespace (a hostNetwork container), of capabilities:
//
//	CAP_NET_ADMIN  all that changes links, addresses, neighbours, routes, sysctls
//	CAP_SYS_ADMIN  setns(2) into a pod's namespace: Attach and Check
//
// And /proc/sys/net writable, for [Host.ApplyNode] where the node does not forward
// yet, and for Attach where a default sysctl of node or sandbox is in the way
// (disable_ipv6, accept_ra); all other settings of links go over netlink.
//
// # Cost
//
// Each Attach is three batches of requests, of which creating the link is half.
// Deleting a link takes the kernel 16 ms and more, nearly as long for 32 links
// together: hence [Host.Unroute], which is at once, and the [Reaper]. Figures:
//
//	go test -run '^$' -bench . -benchtime 10x ./pkg/wiring
package wiring
