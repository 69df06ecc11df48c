// Package claim keeps two pods of a cluster from holding one address, where more
// than one node could give it: a static address from an AddressPool. The API server
// keeps one AddressClaim of a name, and its name is made of the address: who made it
// holds the address.
//
// It decides when a claim may be taken from a pod and when it is released: Keeper for the
// agent of a node, Collector for flock-controller. It never touches the allocator, the records or the network, and it does not decide who may
// have an address at all.
//
// Invariants: an Acquire that the API server has answered returns nil for one pod
// only, from then until that pod is detached and going, or its object is gone; no
// claim of another pod is ever deleted in a release; what a pod holds it keeps while
// the API server is away; between two workloads an address rests for its quarantine, on
// whatever nodes they run.
//
// A claim belongs to the pod, not to the sandbox. A pod with a new sandbox must find
// its address again, so detaching alone does not release the claim: the pod must also be
// terminating, have ended, or be gone. Only the pod's own node releases it, for only its
// agent knows whether the sandbox and its routes are gone. If nothing is heard of the node,
// flock-controller ends the claim once the pod's object is gone: the API server deletes the
// object when the kubelet says that the sandbox is gone, or by force. That a pod has Succeeded
// or Failed does not mean that its sandbox is gone.
package claim
