// Package claim keeps two pods of a cluster from holding one address, where more
// than one node could give it: a static address from an AddressPool. The API server
// keeps one AddressClaim of a name, and its name is made of the address: who made it
// holds the address.
//
// It decides when a claim may be taken from a pod and when it is given up. It never
// touches the allocator, the records or the network, and it does not decide who may
// have an address at all.
//
// Invariants: an Acquire that the API server has answered returns nil for one pod
// only, from then until that pod is detached and going, or its object is gone; no
// claim of another pod is ever deleted in a release; what a pod holds it keeps while
// the API server is away.
//
// A claim is the pod's, not the sandbox's. A pod whose sandbox is made anew must find
// its address again, so detaching alone gives nothing up: the pod must also have been
// asked to go, have ended, or be gone. From another node a claim is taken only if the
// pod's object is gone: the API server drops it when the kubelet says that the sandbox
// is no more, or by force; that a pod has Succeeded or Failed says nothing of its
// sandbox, whose routes may stand for as long as its node's agent is away.
package claim
