// Package routing says what a node asks of its routing daemon.
//
// The kernel's FIB is the interface between flock and the daemon: the agent
// installs routes with flock's own protocol number, the daemon learns them over
// netlink and announces them. So an Intent holds only what changes with the
// node's configuration; a pod or an anycast address that comes or goes is a
// route in the kernel and never a new Intent.
//
// The package is pure. The daemons are behind it: package bird renders an Intent
// for BIRD and keeps the daemon to it.
package routing

import (
	"flock.fritzlab.net/flock/pkg/config"
)

const (
	// Protocol is the route protocol number (rtm_protocol, rtnetlink(7)) of
	// every route that the agent installs.
	Protocol = 85
	// LocalMetric is the metric of flock's routes that stay on the node: the
	// host routes of pods, which a summary covers. Every other metric means
	// that the route is to be announced.
	LocalMetric = 1024
)

// Intent is what a node asks of its routing daemon. The zero value announces
// nothing and imports nothing.
type Intent struct {
	// BGP is nil where the node does not speak it.
	BGP *config.BGP
}

// IntentOf is the routing part of a node's configuration.
func IntentOf(n config.Node) Intent {
	return Intent{BGP: n.BGP}
}
