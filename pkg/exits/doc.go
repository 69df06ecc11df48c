// Package exits tells when a container of a pod on this node has ended, as soon
// as the runtime knows: well before the kubelet does, which looks about once a
// second, and so before anyone whose word is the kubelet's.
//
// It asks containerd for its own events, 3 ms after the fact, or any runtime for
// those of the CRI (KEP-3386), some 50 ms after it. Which pod a container is of is
// learned when it starts, so that nothing has to be asked when it ends. What
// ended while the runtime could not be reached is told when it can be again.
//
// It does not say what an exit means for the pod, and not that one is up: a
// container that is not told to have ended may have. It changes nothing in the
// runtime. Without it everything works at the kubelet's pace.
package exits
