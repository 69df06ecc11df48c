// Package nodeguard keeps pods from services of the node that are not for them, and from
// using up the node's neighbor table. It has an nftables table of its own.
//
// Closed to pods is what belongs to the node's routing and to its links: the routing
// daemon (BGP, BFD, OSPF) at every address of the node, also through an address of a
// Service that is translated to it; and everything but ICMPv6 at link-local and multicast
// addresses, at which the node's programs listen without knowing it, because [::] and
// 0.0.0.0 include them. All else that listens on the node's addresses is for NetworkPolicies
// and firewalls to decide about, and must go on working: the API server, DNS, the kubelet.
//
// A packet to an address on a subnet of the node makes an entry in the neighbor table,
// whether anybody has the address or not (RFC 6583). The table has one limit for all links
// and network namespaces, and an entry without an answer stays for 3 s. So packets of pods
// to such addresses are limited in how many new ones there are each second, for each pod
// and for the node; addresses from which packets have come are not new.
//
// The rules are the same for all pods, and match links by flock's prefix: a pod's start or
// end changes nothing here.
package nodeguard
