// Package kubetest runs an API server for tests: etcd and kube-apiserver, found in
// PATH, in a network namespace of their own, with flock's deploy/ applied. There are no
// controllers and no kubelets: only the tests write objects.
package kubetest
