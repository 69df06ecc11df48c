// Package source reports which pods this node has: their annotations, their owners,
// and whether they are Ready.
//
// It asks the kubelet first, over its Pods API (KEP-4188; a gRPC service on a
// unix socket of the node, on by default from Kubernetes 1.37): the kubelet
// knows a pod before its sandbox is made and its readiness before the API
// server does, with the API server down too. Where the kubelet does not answer,
// the API server is watched for the pods of this node, until the kubelet does.
//
// It keeps one invariant: a report is never older than the report before it. After the
// loss of a source its last reports stay valid. A source that knows less than its
// predecessor (a restarted kubelet, an API server that the kubelet has not reported to
// yet) does not revert readiness.
//
// It decides nothing about a pod, and writes nothing anywhere.
package source
