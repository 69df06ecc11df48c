// Package service decides which addresses of Services a node announces, and sets the kernel's
// routes accordingly.
//
// [Decide] is the policy for one address of one Service: from facts to a decision with its
// reason. It is pure. [State] holds the facts, and says which routes the kernel has to have;
// it is pure too: it takes events and the time. [Routes] owns the kernel's part: routes on a
// link that leads nowhere, and a guard that refuses what nobody has translated. The
// [Controller] is the goroutine between them. It changes routes itself; nftables is written
// beside it.
//
// The translation to pods is kube-proxy's. The invariants: an address is announced only while
// the kernel has kube-proxy's rules for it, and, where only endpoints of the node get the
// traffic, while one of these is Ready by what the kubelet said last. A withdrawal waits for
// nothing, neither for kube-proxy nor for nftables. Missing information changes nothing: what
// an earlier run of the agent announced stays until all that a decision needs is known.
package service
