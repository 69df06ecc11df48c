// Package wiring connects pods to the node, and the node's summary prefixes to
// the routing daemon, by way of the kernel over netlink.
//
// It does not decide about addresses: the caller says which ones a pod holds. It
// touches only flock's own objects: links with a name of [HostIfName] and flock's
// alias, routes of protocol [kernel.RouteProtocol] that are on no nexthop, and in
// the pod's namespace the one link that it made there. Policy, anycast routes and
// announcing belong to other packages.
//
// The invariant: [Host.Attach] leaves either the whole wiring of a pod or nothing
// of it. Run again over what a crash left, it ends in the same state.
//
// A [Host] knows what it has wired, as a value, and [Host.Sync] brings the host's
// side of the kernel to that: at the agent's start, for what [Host.Adopt] named, and
// whenever another program may have changed something. What a link is, is in the
// kernel: its name, its alias, and what is on it.
//
// # A pod's link
//
// Both ends are made by one request, the pod's directly in its namespace. Host
// end: fe80::1 with the pod's link-local address as its peer, a fixed MAC, no rp_filter,
// and no automatic link-local address.
// Pod end: its addresses as /128 and /32, a default route via fe80::1 and one via
// 169.254.1.1. Permanent neighbour entries on both sides: nothing is ever resolved
// on the link, so 169.254.1.1 needs neither an address nor proxy_arp on the host.
// pkg/datapath/sourceguard decides which sources a pod may use, in both families. The
// kernel's rp_filter is off on pods' links: it exists for IPv4 alone, and it drops
// packets from a source without a route back, such as an anycast address that is
// withdrawn while the pod still answers. The kernel takes the larger of the link's
// value and net.ipv4.conf.all.rp_filter: see [Host.RPFilterEnabled].
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
// Each Attach is three batches of requests; creating the link is half of it.
// Deleting a link takes the kernel 16 ms and more, and not much longer for 32 links
// together. So [Host.TakeDown] stops traffic at once, and the [Reaper] deletes links
// in batches. Figures:
//
//	go test -run '^$' -bench . -benchtime 10x ./pkg/datapath/wiring
package wiring
