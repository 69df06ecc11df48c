// Package sources tests what flock learns of a node's pods, and from whom,
// against a real kubelet, API server and containerd, in a lab of its own: the
// same story is told by each source.
package sources
