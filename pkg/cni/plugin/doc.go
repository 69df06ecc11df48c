// Package plugin is what runs inside the CNI plugin's process: it opens the
// pod's network namespace, sends the request with that file to the agent, and
// prints the answer.
//
// A runtime starts it for every pod that comes and goes, so what counts here is
// how soon it is done: it uses system calls, and neither package os, fmt, net nor
// encoding/json, whose start-up would cost more than its work. It judges nothing
// that the agent could judge. What it says by itself is only VERSION, and what
// there is to say when the agent does not answer.
package plugin
