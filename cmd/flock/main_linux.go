// Command flock is the CNI plugin. The runtime starts it for each pod that starts
// or ends, and it passes the call on to flock-agent. See docs/cmd-flock.md.
package main

import (
	"syscall"

	"flock.fritzlab.net/flock/internal/version"
	"flock.fritzlab.net/flock/pkg/cni/plugin"
)

func main() {
	syscall.Exit(plugin.Plugin{
		Socket:         plugin.DefaultSocket,
		TimeoutSeconds: plugin.DefaultTimeoutSeconds,
		Release:        version.Version,
	}.Run())
}
