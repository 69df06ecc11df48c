// Package contract runs the same tests against each source of pods and each source of
// exits, in a lab of its own with a real kubelet, API server and containerd. The lab is
// another module, which pins all of Kubernetes, so the tests run it as a program.
package contract
