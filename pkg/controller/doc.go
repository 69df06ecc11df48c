// Package controller composes flock-controller, which does what needs the whole cluster in
// view: it gives Services their addresses, ends the AddressClaims of nodes that are gone,
// turns the conditions of NodeConfigs of such nodes to Unknown, finds pod CIDRs of several
// nodes, says which nodes should run an agent, writes who uses an AddressPool, gives nodes the passwords that they share with routers, and lets them follow
// changes of templates in waves.
//
// Of several instances the one with the Lease works. Nothing depends on that for being right:
// each write names the version of the object that it is made from, and an address is claimed
// at the API server, in an AddressClaim, before it stands in a Service's status. So the late
// write of an instance that has lost the Lease is refused or does no harm.
//
// Nothing is remembered between two instances but what is in the API server, and nothing is
// decided before all objects that decisions depend on have been listed.
package controller
