//go:build suite

// Package kubernetes pins the Kubernetes that a lab runs and the test suite that
// it is held against. It is a module of its own because k8s.io/kubernetes needs a
// replace line for each of its staging modules, which the lab and the benchmarks
// need not repeat. The programs are tools of go.mod; the import brings what the
// suite depends on into go.sum. Nothing builds this file.
package kubernetes

import _ "k8s.io/kubernetes/test/e2e"
