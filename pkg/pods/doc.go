// Package pods tells which pods this node has and what they are: what they ask
// for (annotations), whose they are, and whether they are Ready.
//
// It asks the kubelet first, over its Pods API (KEP-4188; a gRPC service on a
// unix socket of the node, on by default from Kubernetes 1.37): the kubelet
// knows a pod before its sandbox is made and its readiness before the API
// server does, with the API server down too. Where the kubelet does not answer,
// the API server is watched for the pods of this node, until the kubelet does.
//
// It keeps one invariant: what is told is never older than what was told
// before. A source that was cut off leaves what it said standing; one that
// knows less than its predecessor (a restarted kubelet, an API server that the
// kubelet has not reported to yet) does not take a verdict back.
//
// It decides nothing about a pod, and writes nothing anywhere.
package pods
