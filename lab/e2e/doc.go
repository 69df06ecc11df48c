// Package e2e tests flock in a lab: real kubelets, containerds, API server and
// routers. It takes minutes and root, so it has a build tag and a target of its
// own, make test-cluster. Its labs are called test and ospf and leave a person's alone.
package e2e
