package rtnl

import (
	"context"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// A Watch receives the kernel's notifications of the groups that it joined. What
// happens between Subscribe and Run is kept for Run.
type Watch struct{ watch *netlink.Watch }

// A Notification is one change in the kernel.
type Notification struct {
	// Type is RTM_NEWLINK, RTM_DELLINK, …; 0: notifications were lost, and the
	// tables must be read again.
	Type uint16
	// Port is as in [netlink.Message].
	Port uint32
	body []byte
}

// IsAddress reports whether the notification is about a routable address, so neither
// link-local nor host scope.
func (n Notification) IsAddress() bool {
	if n.Type != unix.RTM_NEWADDR && n.Type != unix.RTM_DELADDR || len(n.body) < unix.SizeofIfAddrmsg {
		return false
	}
	scope := n.body[3] // struct ifaddrmsg, rtnetlink(7)
	return scope != unix.RT_SCOPE_LINK && scope != unix.RT_SCOPE_HOST
}

// Link is the link that a notification of links is about.
func (n Notification) Link() (Link, error) { return parseLink(n.body) }

// Route is the route that a notification of routes is about; false if it is of another table.
func (n Notification) Route() (r Route, ok bool, err error) { return parseRoute(n.body) }

// Addr is the address that a notification of addresses is about.
func (n Notification) Addr() (Addr, error) { return parseAddr(n.body) }

// Neigh is the neighbour that a notification of neighbours is about, whatever its state.
func (n Notification) Neigh() (Neigh, error) {
	neigh, _, err := parseNeigh(n.body)
	return neigh, err
}

// Nexthop is the nexthop that a notification of nexthops is about.
func (n Notification) Nexthop() (Nexthop, error) { return parseNexthop(n.body) }

// Netconf are the settings of a link that a notification (RTM_NEWNETCONF) is about; those that
// it says nothing of are -1. Link is -1 for net.ipvX.conf.all and -2 for default.
type Netconf struct {
	IPv6                 bool
	Link                 int
	Forwarding, RPFilter int
}

// Netconf are the settings that a notification is about.
func (n Notification) Netconf() (Netconf, error) {
	const sizeofNetconfmsg, ifindex, forwarding, rpFilter = 4, 1, 2, 3 // of linux/netconf.h
	if len(n.body) < sizeofNetconfmsg {
		return Netconf{}, netlink.ErrShort
	}
	c := Netconf{IPv6: n.body[0] == unix.AF_INET6, Forwarding: -1, RPFilter: -1}
	err := netlink.Attributes(n.body[sizeofNetconfmsg:], func(typ uint16, v []byte) error {
		switch typ {
		case ifindex:
			c.Link = int(int32(getU32(v)))
		case forwarding:
			c.Forwarding = int(int32(getU32(v)))
		case rpFilter:
			c.RPFilter = int(int32(getU32(v)))
		}
		return nil
	})
	return c, err
}

// LinkState is a link after a change.
type LinkState struct {
	Index int
	// Up: it is there, administratively up, and has a carrier.
	Up bool
}

// LinkState is what became of a link; false if the notification is of something
// else. It costs less than Link.
func (n Notification) LinkState() (LinkState, bool) {
	if n.Type != unix.RTM_NEWLINK && n.Type != unix.RTM_DELLINK || len(n.body) < unix.SizeofIfInfomsg {
		return LinkState{}, false
	}
	// Bridge ports have notifications of another family, with other contents.
	if n.body[0] != unix.AF_UNSPEC {
		return LinkState{}, false
	}
	return LinkState{
		Index: int(int32(native.Uint32(n.body[4:]))),
		Up:    n.Type == unix.RTM_NEWLINK && usable(native.Uint32(n.body[8:])),
	}, true
}

// Subscribe joins groups (RTNLGRP_LINK, …) in the calling thread's network
// namespace.
func Subscribe(groups ...int) (*Watch, error) { return SubscribeFiltered(nil, groups...) }

// SubscribeFiltered is Subscribe for those notifications that pass a filter of
// [netlink.Subscribe].
func SubscribeFiltered(filter []unix.SockFilter, groups ...int) (*Watch, error) {
	w, err := netlink.Subscribe(unix.NETLINK_ROUTE, filter, groups...)
	if err != nil {
		return nil, err
	}
	return &Watch{w}, nil
}

// Close gives the socket up.
func (w *Watch) Close() { w.watch.Close() }

// Run calls f with each notification until ctx ends, which is no error. f must
// not keep the notification.
func (w *Watch) Run(ctx context.Context, f func(Notification)) error {
	return w.watch.Run(ctx, func(m netlink.Message) { f(Notification{m.Type, m.Port, m.Body}) })
}
