package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// events turns the kernel's notifications into kinds of objects that changed.
type events struct {
	netns  *os.File
	routes *rtnl.Watch
	tables *netlink.Watch
	// links are flock's host ends, by index. They are the goroutine's that reads routes, but
	// for what pending notes ask.
	mu      sync.Mutex // guards all below
	links   map[int]linkState
	service int // the index of the link of Services' addresses; 0: there is none
	pending []pending
	// stale: links are to be read again. It is the goroutine's that reads routes.
	stale bool
}

// linkState is a host end as of its last notification.
type linkState struct {
	rtnl.Link
	// active: it is a pod's, and has been up. Before that it is being made, after that it is
	// being deleted: what changes then is flock's doing.
	active bool
}

// pending is a change that is reported in a moment.
type pending struct {
	kind kernel.Kind
	link int // the host end that the object is on; 0: on none
	by   string
}

// settle is how long a change waits for those that come with it: a link that is taken down loses
// its routes before the kernel says that it is down, and why.
const settle = 5 * time.Millisecond

// Open subscribes to the kernel of the calling thread's network namespace.
func Open(c Config) (*Watcher, error) {
	w := newWatcher(c)
	w.events.links = map[int]linkState{}
	var err error
	if w.events.netns, err = sys.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("node's network namespace: %w", err)
	}
	groups := []int{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF}
	w.events.routes, err = rtnl.SubscribeFiltered(withoutNoise(), append(groups, unix.RTNLGRP_NEXTHOP)...)
	if errors.Is(err, unix.EINVAL) { // kernels before 5.3 have no nexthop objects
		w.events.routes, err = rtnl.SubscribeFiltered(withoutNoise(), groups...)
	}
	if err == nil {
		w.events.tables, err = nft.SubscribeGenerations()
	}
	if err == nil {
		err = w.events.readLinks()
	}
	if err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Close gives the sockets up. Run must have ended.
func (w *Watcher) Close() {
	e := &w.events
	if e.routes != nil {
		e.routes.Close()
	}
	if e.tables != nil {
		e.tables.Close()
	}
	e.netns.Close()
}

// Run calls the features' Sync until ctx ends: once at its begin, and whenever the kernel may
// differ from what they want. It leaves the kernel as it is.
func (w *Watcher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for _, r := range w.runners {
		running.Go(func() { r.run(ctx) })
	}
	errs := make(chan error, 2)
	go func() { errs <- w.events.routes.Run(ctx, w.routeEvent) }()
	go func() { errs <- w.events.tables.Run(ctx, w.tableEvent) }()
	err := <-errs
	cancel()
	return errors.Join(err, <-errs)
}

// notice reports a change in a moment.
func (w *Watcher) notice(kind kernel.Kind, link int, by string) {
	e := &w.events
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.pending) == 0 {
		time.AfterFunc(settle, w.report)
	}
	const most = 64 // behind so many, only the kind matters
	p := pending{kind, link, by}
	if len(e.pending) >= most {
		p = pending{kind: kind}
	}
	if !slices.Contains(e.pending, p) {
		e.pending = append(e.pending, p)
	}
}

func (w *Watcher) report() {
	e := &w.events
	e.mu.Lock()
	pending := e.pending
	e.pending = nil
	n := 0
	for _, p := range pending {
		if p.link == 0 || e.links[p.link].active {
			pending[n] = p
			n++
		}
	}
	e.mu.Unlock()
	for _, p := range pending[:n] {
		w.changed(p.kind, p.by)
	}
}

// tableEvent takes a notification of nftables: the end of a transaction.
func (w *Watcher) tableEvent(m netlink.Message) {
	if m.Type == 0 {
		w.changed(kernel.NFTables, "")
		return
	}
	if netlink.IsOwn(m.Port) {
		return
	}
	name, pid := nft.Writer(m)
	by := ""
	if name != "" {
		by = fmt.Sprintf("%s (pid %d)", name, pid)
	}
	w.notice(kernel.NFTables, 0, by)
}

// routeEvent takes a notification of rtnetlink.
func (w *Watcher) routeEvent(n rtnl.Notification) {
	e := &w.events
	if n.Type == 0 {
		// Some were lost: any may have changed, links too.
		e.stale = true
		for _, k := range kernel.Kinds {
			w.changed(k, "")
		}
	}
	if e.stale {
		e.stale = e.readLinks() != nil
	}
	if n.Type == 0 {
		return
	}
	if n.Type == unix.RTM_NEWLINK || n.Type == unix.RTM_DELLINK {
		if e.linkEvent(n) {
			w.notice(kernel.Link, 0, processOf(e.netns, n.Port))
		}
		return
	}
	if netlink.IsOwn(n.Port) {
		return
	}
	if kind, link, ok := e.about(n); ok && kind == kernel.Foreign {
		w.changed(kind, "")
	} else if ok {
		w.notice(kind, link, processOf(e.netns, n.Port))
	}
}

// about says what a notification is about: objects of flock's, or of another program's that may
// be in flock's way; false if it is of no interest.
func (e *events) about(n rtnl.Notification) (kind kernel.Kind, link int, ok bool) {
	switch n.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, ok, err := n.Route()
		if r.Nexthop != 0 || !e.isHostEnd(r.Link) {
			r.Link = 0
		}
		if err == nil && ok && r.Proto != kernel.RouteProtocol {
			switch r.Metric {
			case kernel.MetricAnnounced, kernel.MetricService, kernel.MetricStatic, kernel.MetricLocal:
				return kernel.Route, 0, true // perhaps in the place of one of flock's
			}
			return kernel.Foreign, 0, true
		}
		return kernel.Route, r.Link, err == nil && ok
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		h, err := n.Nexthop()
		if !e.isHostEnd(h.Link) {
			h.Link = 0
		}
		return kernel.Nexthop, h.Link, err == nil && kernel.IsNexthop(h.ID, kernel.RouteProtocol) // whatever it became
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, err := n.Addr()
		if err == nil && !e.isHostEnd(a.Link) {
			return kernel.Foreign, 0, true
		}
		return kernel.Address, a.Link, err == nil && n.Type == unix.RTM_DELADDR
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return kernel.Foreign, 0, true
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		neigh, err := n.Neigh()
		return kernel.Neighbour, neigh.Link, err == nil && e.isHostEnd(neigh.Link)
	case unix.RTM_NEWNETCONF:
		const all = -1
		c, err := n.Netconf()
		switch {
		case err != nil:
		case c.Link == all && c.Forwarding == 0:
			return kernel.Sysctl, 0, true
		case e.isHostEnd(c.Link):
			return kernel.Sysctl, c.Link, !c.IPv6 && (c.Forwarding == 0 || c.RPFilter > 0)
		case c.Link > 0 || c.Link == all:
			return kernel.Foreign, 0, true
		}
	}
	return "", 0, false
}

func (e *events) isHostEnd(index int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, is := e.links[index]
	return is
}

// linkEvent follows flock's links, and says whether another program has changed one.
func (e *events) linkEvent(n rtnl.Notification) bool {
	if _, ok := n.LinkState(); !ok {
		return false
	}
	l, err := n.Link()
	if err != nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if isService := n.Type == unix.RTM_NEWLINK && l.Name == kernel.ServiceLink; isService || l.Index == e.service {
		e.service = 0
		if isService {
			e.service = l.Index
		}
		return !netlink.IsOwn(n.Port)
	}
	was, known := e.links[l.Index]
	if n.Type == unix.RTM_DELLINK || !kernel.IsLink(l.Name) {
		delete(e.links, l.Index)
		return known && was.active && n.Type == unix.RTM_NEWLINK // renamed
	}
	is := linkState{l, was.active}
	if kernel.IsReleased(l.Group) {
		is.active = false
	} else if id, _ := kernel.ParseAlias(l.Alias); !was.active && l.Up && id != "" {
		is.active = true
	}
	e.links[l.Index] = is
	return was.active && is.active && (!l.Up || l.MTU != was.MTU || l.MAC != was.MAC || l.Alias != was.Alias || l.Group != was.Group || l.Master != was.Master)
}

// readLinks reads all links from the kernel.
func (e *events) readLinks() error {
	return netns.Do(e.netns, func() error {
		conn, err := rtnl.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		links, err := conn.Links("")
		if err != nil {
			return err
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		clear(e.links)
		e.service = 0
		for _, l := range links {
			switch {
			case kernel.IsLink(l.Name):
				e.links[l.Index] = linkState{l, !kernel.IsReleased(l.Group)}
			case l.Name == kernel.ServiceLink:
				e.service = l.Index
			}
		}
		return nil
	})
}
