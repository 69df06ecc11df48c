// Package cni is the agent's side of the Container Network Interface (spec
// 0.3.1 to 1.1.0). The plugin that a runtime starts (cmd/flock) only forwards
// what it was given, in the language of package wire; here a call is parsed and
// checked, handed to a [Backend], and its answer turned into the JSON of the
// spec version that the network configuration asks for.
//
// It decides what is a valid call, what a runtime may see of an error, and that
// calls for one container never overlap. It never touches a link, an address or
// a store: that is the Backend's. What it keeps: a Backend sees only calls that
// are well formed, with a network namespace that is one and is not the node's
// own, and every call gets an answer, whatever the Backend does.
package cni
