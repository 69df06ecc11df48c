// Package contract holds what tells of a node's pods, pods' sources and the
// runtime's exits, to its word: the same story is told by each, in a lab of its
// own with a real kubelet, API server and containerd. The lab is another module,
// which pins all of Kubernetes; here it is a program, as it is for people.
package contract
