// Package sourceguard lets a pod's packets leave only with source addresses that
// the pod holds (source address validation, RFC 7039; BCP 38 at the first hop). All
// others are dropped where they enter the node, and counted per pod.
//
// It does not decide about addresses: the caller gives a [Binding] for each pod. It
// touches only the nftables tables "inet flock" and "arp flock", and in them only the
// chain pod-sources and the sets and counters with names that begin with pod-. It does
// not need the links to exist.
//
// Two invariants. A packet from a link with a name that begins with "flock" passes only
// if its pair of link name and source address is in a set. All others are dropped, so a
// link is guarded before it exists. And the kernel has at any time either the whole of a
// binding or the whole of the one before: every change is one transaction, and it stays
// when the agent ends.
//
// A packet costs one hash lookup, however many pods there are. The guard comes before
// defragmentation and connection tracking: what it drops leaves no trace in either.
//
// [Guard.Sync] reads the tables back, with the definitions of chains, rules and sets,
// and repairs what another program changed.
package sourceguard
