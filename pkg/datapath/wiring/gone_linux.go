package wiring

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// WatchGone calls gone with each host end that was deleted after Open, by any program,
// until ctx ends. It calls lost if notifications were lost, and if a Sync misses a link: the
// caller must look at List then. Both may be called at the same time. It may be called once.
func (h *Host) WatchGone(ctx context.Context, gone func(Link), lost func()) error {
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	following.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-h.missed:
				lost()
			}
		}
	})
	defer following.Wait()
	defer cancel()
	return h.links.Run(ctx, func(n rtnl.Notification) {
		switch n.Type {
		case 0:
			lost()
		case unix.RTM_DELLINK:
			if k, err := n.Link(); err == nil && k.Kind == "veth" && kernel.IsLink(k.Name) {
				gone(listed(k))
			}
		}
	})
}
