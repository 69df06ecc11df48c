// Package flockctl answers an operator's questions: what a node, a pod or an anycast
// address is doing, and why; and which configuration BIRD would get from a NodeConfig
// that is not applied yet.
//
// It only reads, but for flockctl drain. What it knows is what the agents have written to the API server and
// what they go by there. Reading (cluster.go) is apart from answering: the answers are
// made of objects and a clock by pure functions, which the golden files hold.
package flockctl
