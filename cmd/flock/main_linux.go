// Command flock is the CNI plugin: a runtime starts it for each pod that comes
// or goes, and it passes the call on to flock-agent. See docs/cmd-flock.md.
package main

import (
	"syscall"

	"flock.fritzlab.net/flock/pkg/cni/plugin"
	"flock.fritzlab.net/flock/pkg/version"
)

func main() {
	syscall.Exit(plugin.Plugin{
		Socket:         plugin.DefaultSocket,
		TimeoutSeconds: plugin.DefaultTimeoutSeconds,
		Release:        version.Version,
	}.Run())
}
