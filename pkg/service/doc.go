// Package service decides which Service of type LoadBalancer has which addresses. It is
// pure: Assign holds all Services, AddressPools and AddressClaims against one another, and
// returns for each Service what it is to have and why it does not have more.
//
// A Service keeps what it has: over a restart of the controller, when a pool is narrowed or
// deleted, and when a lower address becomes free. It loses an address only if it no longer
// wants it, or if another has a better right to it: a pod by its claim, or a Service that has
// held the same port longer.
//
// Invariants of a decision: a new address comes from a pool with use service that admits the
// namespace of the Service, and of overlapping pools the longest prefix decides alone. Nothing
// else has the address: no pod, no node, no router, no Service that flock does not manage. Two
// Services have one address only if the pool allows it, they agree, and no port of one is a
// port of the other. What is released by a decision is not given to others by the same one.
package service
