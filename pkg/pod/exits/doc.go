// Package exits reports that a container of a pod on this node has exited, as soon as
// the runtime knows: well before the kubelet, which looks about once a second.
//
// It subscribes to containerd's own events, 3 ms after the fact, or to those of the CRI
// of any runtime (KEP-3386), some 50 ms after it. The pod of a container is learned when
// the container starts, so that nothing has to be asked when it exits. Exits that
// happened while the runtime was not watched are found in the runtime's lists: at the agent's start
// and after each loss of the connection. A container that is merely missing from a list
// is asked for, because a runtime leaves out containers with a slow shim.
//
// It does not say what an exit means for the pod, nor that a container runs. It changes
// nothing in the runtime. Without it everything works at the kubelet's pace.
package exits
