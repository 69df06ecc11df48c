package watch

import (
	"context"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// The kernel delivers what may concern flock, and none of what comes in floods.
func TestWithoutNoise(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	ns.IP("link", "add", "br0", "type", "bridge")
	ns.IP("link", "set", "br0", "up")
	var w *rtnl.Watch
	ns.Run(func() {
		var err error
		w, err = rtnl.SubscribeFiltered(withoutNoise(), unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_NEXTHOP)
		if err != nil {
			t.Fatal(err)
		}
	})
	defer w.Close()
	ns.Exec("sh", "-ec", `
		for proto in kernel bird bgp ospf zebra static 85 boot; do ip route add 192.0.2.0/24 dev br0 proto $proto; ip route del 192.0.2.0/24 dev br0 proto $proto; done
		ip neighbour replace 192.0.2.1 lladdr 02:00:00:00:00:01 dev br0 nud permanent
		ip neighbour del 192.0.2.1 dev br0
		ip nexthop add id 7 dev br0
		ip link set br0 alias end`)
	var routes []uint8
	types := map[uint16]int{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := w.Run(ctx, func(n rtnl.Notification) {
		types[n.Type]++
		if r, ok, err := n.Route(); (n.Type == unix.RTM_NEWROUTE || n.Type == unix.RTM_DELROUTE) && ok && err == nil {
			routes = append(routes, r.Proto)
		}
		if l, err := n.Link(); n.Type == unix.RTM_NEWLINK && err == nil && l.Alias == "end" {
			cancel()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []uint8{4, 4, 85, 85, 3, 3}; !slices.Equal(routes, want) {
		t.Errorf("routes of protocols %v, want %v", routes, want)
	}
	if types[unix.RTM_NEWNEIGH] == 0 || types[unix.RTM_DELNEIGH] == 0 || types[unix.RTM_NEWNEXTHOP] != 1 {
		t.Errorf("notifications by type: %v", types)
	}
}
