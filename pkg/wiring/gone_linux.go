package wiring

import (
	"context"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/wiring/rtnl"
)

// WatchGone calls gone with each host end that leaves the kernel after Open,
// whoever deleted it, until ctx ends. When the kernel could not keep up it calls
// lost instead: then List tells what is left. It may be called once.
func (h *Host) WatchGone(ctx context.Context, gone func(Link), lost func()) error {
	return h.links.Run(ctx, func(n rtnl.Notification) {
		switch n.Type {
		case 0:
			lost()
		case unix.RTM_DELLINK:
			if k, err := n.Link(); err == nil && k.Kind == "veth" && isHostIf(k.Name) {
				gone(listed(k))
			}
		}
	})
}
