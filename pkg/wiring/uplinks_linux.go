package wiring

import (
	"context"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/wiring/rtnl"
)

// WatchUplinks calls changed when something of the node's own links or addresses may
// have changed, since Open and until ctx ends: what Addrs and UplinkMTU return, but
// for a default route that moves. Links of pods and link-local addresses are passed
// over. It may be called once.
func (h *Host) WatchUplinks(ctx context.Context, changed func()) error {
	return h.uplinks.Run(ctx, func(n rtnl.Notification) {
		switch n.Type {
		case 0: // some were lost
			changed()
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if k, err := n.Link(); err == nil && !k.Loopback && !isHostIf(k.Name) {
				changed()
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			if n.IsAddress() {
				changed()
			}
		}
	})
}
