// Package sourceguard lets a pod's packets leave only with source addresses that
// the pod holds (source address validation, RFC 7039; BCP 38 at the first hop). All
// others are dropped where they enter the node, and counted per pod.
//
// It decides nothing about addresses: a [Binding] is the caller's word. It touches
// only flock's own nftables tables, "inet flock" and "arp flock", and in them only
// what its names say: the chain pod-sources, and sets and counters that begin with
// pod-; other chains there are other packages'. It neither knows nor needs links.
//
// Two invariants. A packet from a link whose name begins with "flock" passes only
// if the kernel finds this very pair of link name and source address in a set;
// what is not known is dropped, so a link is guarded before it exists. And what is
// in the kernel is at any instant the whole of a binding or its predecessor:
// every change is one transaction, and stays when the agent is gone.
//
// The cost of a packet is one hash lookup, however many pods there are. The guard
// comes before defragmentation and connection tracking: what it drops leaves no
// trace in either.
package sourceguard
