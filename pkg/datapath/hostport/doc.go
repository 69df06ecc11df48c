// Package hostport forwards ports of the node to pods (hostPort in a pod's spec), by an
// nftables table of its own.
//
// It translates the destination of connections to an address of the node, whether they
// come from outside, from a pod or from the node itself. It translates a source in two
// cases only, because the answer would not come back otherwise: where a pod reaches
// itself by a port of the node, and where a process of the node uses 127.0.0.1. A node
// without such pods has no table, and so no connection tracking for it. ::1 is not
// forwarded: the kernel sends nothing from it through a link.
//
// The table is small and always written as a whole, in one transaction. If two pods have
// the same port, the one that came last gets it.
package hostport
