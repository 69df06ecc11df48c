// Package policy enforces NetworkPolicy and ClusterNetworkPolicy on a node's pods,
// with nftables at the forward hook.
//
// An [Index] turns policies, pods, namespaces and nodes into a [Ruleset] (pure), and
// says what changes in it when one of them changes. A [Table] carries that into the
// kernel. docs/policy.md says what the table looks like.
//
// Policies of one direction that select local pods by one and the same selector are
// a group: their allowed peers are merged into sets. The pods that the same groups
// select share a profile: a chain of lookups in these sets. Interfaces find their
// profile through a map, so that a pod's profile is in force before its interface
// exists.
//
// Names are made of what they name: a chain of its rules, a set of its group, a set
// of intervals of its group and its elements. So chains and sets of intervals never
// change, and a restarted agent finds its own table unchanged.
//
// What the policies of a namespace may have in sets is limited: tenants write them.
// What is over the budget allows nothing, and is a [Finding].
//
// The invariant: a packet that has passed was judged by policies that were in force
// when it came to the forward hook. Each connection carries in its ct mark the
// generation of the policies that judged it. A change that can revoke a connection
// comes with a new generation in the same transaction, so that every connection is
// judged again at its next packet.
//
// The package touches the table "inet flock-policy" and the bits of the ct mark that
// it was given, nothing else.
package policy
