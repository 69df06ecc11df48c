package wiring

import (
	"context"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// WatchUplinks calls changed when what Addrs and UplinkMTU return may have changed since
// Open, except by a change of the default route, until ctx ends. It ignores links of pods
// and link-local addresses. It may be called once.
func (h *Host) WatchUplinks(ctx context.Context, changed func()) error {
	return h.uplinks.Run(ctx, func(n rtnl.Notification) {
		switch n.Type {
		case 0: // some were lost
			changed()
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if k, err := n.Link(); err == nil && !k.Loopback && !kernel.IsLink(k.Name) && k.Name != kernel.ServiceLink {
				changed()
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			if n.IsAddress() {
				changed()
			}
		}
	})
}
