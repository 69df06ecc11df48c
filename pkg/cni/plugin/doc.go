// Package plugin is what runs inside the CNI plugin's process: it opens the
// pod's network namespace, sends the request with that file to the agent, and
// prints the answer.
//
// A runtime starts it for every pod that comes and goes, so what counts here is
// how soon it is done: it uses system calls, and neither package os, fmt, net nor
// encoding/json, because their start-up would cost more than its work. As it is
// shipped, it does not even wait for Go's runtime to start: see quick. It decides
// nothing that the agent can decide. By itself it answers only VERSION, and reports
// that the agent does not answer.
package plugin

// Entry is the program's entry point in a build that is quick to start, for the
// linker's flag -E. A build without it does the same, a millisecond later.
const Entry = "flock.fritzlab.net/flock/pkg/cni/plugin.start"
