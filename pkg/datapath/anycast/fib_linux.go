package anycast

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// FIB applies changes to the kernel's routes in the network namespace that it was
// opened in. For each anycast address it has a nexthop group with the members'
// links, and up to two routes on it. It has one owner; its methods, but for
// Watch, are not safe for concurrent use.
type FIB struct {
	netns *os.File
	conn  *rtnl.Conn
	watch *rtnl.Watch
	plain bool // no resilient groups
	// unfit is why the kernel cannot have anycast routes; nil if it can.
	unfit error

	// What the kernel had at the last Load, with the changes since.
	entries map[netip.Addr]Entry
	groups  map[netip.Addr]uint32
	hops    map[hop]*nexthop

	ids  map[uint32]bool // taken, ours or not
	last uint32          // the ID that was given last
}

// hop is a link as a nexthop: the kernel wants one for each family.
type hop struct {
	link int
	ipv6 bool
}

type nexthop struct {
	id   uint32
	uses int // groups it is a member of
}

const (
	// buckets that the flows to an address are hashed over. The kernel gives a
	// member of weight 1 no bucket of so many beside one of weight 255.
	buckets   = 128
	weight    = 255
	weightOff = 1
	// idleTime is how long a flow may be silent before a pod that comes may
	// take it over, and unbalancedTime after what time it may take its share of
	// the others too.
	idleTime       = 10 * time.Second
	unbalancedTime = 60 * time.Second
	// drainIdleTime is how long a draining pod may take to answer before its
	// flow moves: it has no share, so all of its buckets are to be given away.
	drainIdleTime = 500 * time.Millisecond
)

// Close gives the FIB's sockets up. Routes stay.
func (f *FIB) Close() {
	f.watch.Close()
	f.conn.Close()
	f.netns.Close()
}

// Resilient reports whether the kernel has resilient nexthop groups. If not, flows
// are hashed again over an address' pods whenever those change.
func (f *FIB) Resilient() bool { return !f.plain }

// Load reads what the kernel has, sets the sysctls that flock depends on, and deletes what
// belongs to no address: nexthops of flock that no route is on, as a kill between two steps
// leaves them, and routes of its protocol on other nexthops or of other metrics.
func (f *FIB) Load() (repairs []datapath.Repair, err error) {
	if f.unfit != nil { // it may have been a setting, which somebody has changed since
		if err := netns.Do(f.netns, f.fit); err != nil {
			return nil, nil
		}
	}
	if err := netns.Do(f.netns, func() (err error) { repairs, err = prepare(); return err }); err != nil {
		return repairs, err
	}
	loaded, err := f.load()
	return append(repairs, loaded...), err
}

func (f *FIB) load() (repairs []datapath.Repair, err error) {
	nexthops, err := f.conn.Nexthops()
	if err != nil {
		return repairs, err
	}
	routes, err := f.conn.Routes(rtnl.RouteFilter{Proto: kernel.RouteProtocol})
	if err != nil {
		return repairs, err
	}
	before := f.entries
	f.entries, f.groups = map[netip.Addr]Entry{}, map[netip.Addr]uint32{}
	f.hops, f.ids = map[hop]*nexthop{}, map[uint32]bool{}
	ours := map[uint32]rtnl.Nexthop{}
	for _, n := range nexthops {
		f.ids[n.ID] = true
		if kernel.IsNexthop(n.ID, n.Proto) {
			ours[n.ID] = n
		}
	}
	used := map[uint32]bool{}
	var stray []rtnl.Message
	for _, r := range routes {
		if r.Nexthop == 0 {
			continue // wiring's
		}
		addr := r.Dst.Addr()
		n, ok := ours[r.Nexthop]
		id, known := f.groups[addr] // one group is the address'
		if !ok || n.Group == nil || r.Extra || !r.Dst.IsSingleIP() || known && id != r.Nexthop ||
			r.Metric != kernel.MetricAnnounced && r.Metric != kernel.MetricLocal {
			r.Link, r.Links, r.Gateway = 0, nil, netip.Addr{} // the nexthop's
			stray = append(stray, rtnl.DelRoute(r))
			repairs = append(repairs, datapath.Repair{Kind: kernel.Route, Object: fmt.Sprintf("%v proto %d metric %d", r, r.Proto, r.Metric), Found: datapath.Stray})
			continue
		}
		f.groups[addr], used[r.Nexthop] = r.Nexthop, true
		e := f.entries[addr]
		e.Announced = e.Announced || r.Metric == kernel.MetricAnnounced
		e.Local = e.Local || r.Metric == kernel.MetricLocal
		f.entries[addr] = e
	}
	for addr, id := range f.groups {
		e := f.entries[addr]
		for _, member := range ours[id].Group {
			n := ours[member.ID]
			used[member.ID] = true
			h := hop{n.Link, n.IPv6}
			if n.Via || n.Blackhole {
				h.link = -int(member.ID) // it leads elsewhere: Apply deletes it
			}
			if f.hops[h] == nil {
				f.hops[h] = &nexthop{id: member.ID}
			}
			if h.link < 0 || member.Weight != weight && member.Weight != weightOff {
				e.Members = append(e.Members, Member{}) // what another program made of it is no member
				continue
			}
			e.Members = append(e.Members, Member{Link: n.Link, Drains: member.Weight == weightOff})
			f.hops[h].uses++
		}
		f.entries[addr] = e
	}
	for _, groups := range []bool{true, false} {
		for id, n := range ours {
			if !used[id] && (n.Group != nil) == groups {
				stray = append(stray, rtnl.DelNexthop(id))
				repairs = append(repairs, datapath.Repair{Kind: kernel.Nexthop, Object: fmt.Sprintf("nexthop %d", id), Found: datapath.Stray})
				f.free(id)
			}
		}
	}
	for addr, e := range before {
		if e.Announced && !f.entries[addr].Announced {
			f.tellGone(addr)
		}
	}
	var errs []error
	for _, err := range f.conn.Do(stray...) {
		if !isNotFound(err) { // the routes go with their nexthop
			errs = append(errs, err)
		}
	}
	return repairs, errors.Join(errs...)
}

// Actual is what the kernel had at the last Load, with the changes since. It must not be
// changed.
func (f *FIB) Actual() map[netip.Addr]Entry { return f.entries }

// Apply makes changes, in order. After an error, what the kernel has is not known
// before the next Load.
func (f *FIB) Apply(changes []Change) error {
	if f.unfit != nil && len(changes) > 0 {
		return f.unfit
	}
	var b batch
	for _, c := range changes {
		f.add(&b, c)
	}
	// A hop may have lost its last use and been given another one since.
	for h, n := range f.hops {
		if n.uses == 0 {
			b.add(DelGroup, rtnl.DelNexthop(n.id))
			delete(f.hops, h)
			f.free(n.id)
		}
	}
	return f.send(b)
}

// batch is requests with the steps that they are part of.
type batch struct {
	messages []rtnl.Message
	ops      []Op
}

func (b *batch) add(op Op, m rtnl.Message) {
	b.messages, b.ops = append(b.messages, m), append(b.ops, op)
}

func (f *FIB) send(b batch) error {
	errs := f.conn.Do(b.messages...)
	for i, err := range errs {
		// What is to be deleted may be gone: the kernel itself deletes what
		// leads to a link that goes.
		if b.ops[i] <= DelGroup && isNotFound(err) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// isNotFound says that there was nothing to delete.
func isNotFound(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) ||
		errors.Is(err, unix.EINVAL) // of an IPv4 route on a nexthop that is gone
}

// add puts a change into a batch, and what the kernel will have into the entries.
func (f *FIB) add(b *batch, c Change) {
	e := f.entries[c.Addr]
	switch c.Op {
	case Withdraw:
		b.add(c.Op, rtnl.DelRoute(f.route(c.Addr, kernel.MetricAnnounced)))
		e.Announced = false
	case DelLocal:
		b.add(c.Op, rtnl.DelRoute(f.route(c.Addr, kernel.MetricLocal)))
		e.Local = false
	case DelGroup:
		id := f.groups[c.Addr]
		b.add(c.Op, rtnl.DelNexthop(id))
		f.leave(c.Addr, e.Members)
		delete(f.groups, c.Addr)
		f.free(id)
		e = Entry{}
	case AddGroup, SetGroup:
		members := f.join(b, c)
		f.leave(c.Addr, e.Members)
		if c.Op == AddGroup {
			f.groups[c.Addr] = f.newID()
			b.add(c.Op, rtnl.NewNexthop(f.group(f.groups[c.Addr], members, c.Members, buckets)))
		} else {
			b.add(c.Op, rtnl.SetNexthop(f.group(f.groups[c.Addr], members, c.Members, 0)))
		}
		e.Members = c.Members
	case AddLocal:
		b.add(c.Op, rtnl.NewRoute(f.route(c.Addr, kernel.MetricLocal)))
		e.Local = true
	case Announce:
		b.add(c.Op, rtnl.NewRoute(f.route(c.Addr, kernel.MetricAnnounced)))
		e.Announced = true
	}
	if len(e.Members) == 0 {
		delete(f.entries, c.Addr)
	} else {
		f.entries[c.Addr] = e
	}
}

func (f *FIB) route(addr netip.Addr, metric uint32) rtnl.Route {
	return rtnl.Route{
		Dst: netip.PrefixFrom(addr, addr.BitLen()), Nexthop: f.groups[addr],
		Metric: metric, Proto: kernel.RouteProtocol,
	}
}

// join makes the single nexthops of a group's members that are not there yet.
func (f *FIB) join(b *batch, c Change) []rtnl.NexthopMember {
	members := make([]rtnl.NexthopMember, len(c.Members))
	for i, m := range c.Members {
		h := hop{m.Link, c.Addr.Is6()}
		n := f.hops[h]
		if n == nil {
			n = &nexthop{id: f.newID()}
			f.hops[h] = n
			b.add(c.Op, rtnl.NewNexthop(rtnl.Nexthop{ID: n.id, Proto: kernel.RouteProtocol, Link: h.link, IPv6: h.ipv6}))
		}
		n.uses++
		members[i] = rtnl.NexthopMember{ID: n.id, Weight: weight}
		if m.Drains {
			members[i].Weight = weightOff
		}
	}
	return members
}

func (f *FIB) leave(addr netip.Addr, members []Member) {
	for _, m := range members {
		if n := f.hops[hop{m.Link, addr.Is6()}]; n != nil {
			n.uses--
		}
	}
}

func (f *FIB) group(id uint32, nexthops []rtnl.NexthopMember, members []Member, buckets uint16) rtnl.Nexthop {
	n := rtnl.Nexthop{ID: id, Proto: kernel.RouteProtocol, Group: nexthops}
	if f.plain {
		return n
	}
	n.Resilient = &rtnl.Resilient{Buckets: buckets, Idle: idleTime, Unbalanced: unbalancedTime}
	if slices.ContainsFunc(members, func(m Member) bool { return m.Drains }) {
		n.Resilient.Idle, n.Resilient.Unbalanced = drainIdleTime, 0
	}
	return n
}

// LinkDown must be called for each link that went down or was deleted. The kernel has
// deleted its nexthops: it is in no group any more, and groups without other members
// are gone with their routes.
func (f *FIB) LinkDown(link int) {
	for _, h := range []hop{{link, false}, {link, true}} {
		n := f.hops[h]
		if n == nil {
			continue
		}
		delete(f.hops, h)
		f.free(n.id)
		for addr, e := range f.entries {
			if addr.Is6() != h.ipv6 || !slices.ContainsFunc(e.Members, func(m Member) bool { return m.Link == link }) {
				continue
			}
			e.Members = slices.DeleteFunc(slices.Clone(e.Members), func(m Member) bool { return m.Link == link })
			if f.entries[addr] = e; len(e.Members) == 0 {
				if e.Announced {
					f.tellGone(addr)
				}
				f.free(f.groups[addr])
				delete(f.groups, addr)
				delete(f.entries, addr)
			}
		}
	}
}

// tellGone makes the kernel notify the routing daemon that an announced route is gone
// which went with its link. For IPv4 the kernel does not (as of 6.18), and the daemon
// would see it at its next scan, some ten seconds later. So a route like it, to
// nowhere, is added and deleted in its place.
func (f *FIB) tellGone(addr netip.Addr) {
	if !addr.Is4() {
		return
	}
	r := rtnl.Route{
		Dst: netip.PrefixFrom(addr, 32), Type: rtnl.Unreachable,
		Metric: kernel.MetricAnnounced, Proto: kernel.RouteProtocol,
	}
	// A route of another program in that place is not touched.
	f.conn.Do(rtnl.NewRoute(r), rtnl.DelRoute(r))
}

// Links are the links that can carry packets.
func (f *FIB) Links() (Links, error) {
	up, err := f.conn.LinksUp()
	return Links{Up: up}, err
}

// LinkUp reports whether a link can carry packets.
func (f *FIB) LinkUp(link int) (bool, error) { return f.conn.LinkUp(link) }

// Watch reports changes of links until the context ends, and all links if
// notifications were lost.
func (f *FIB) Watch(ctx context.Context, report func(Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var unread error
	err := f.watch.Run(ctx, func(n rtnl.Notification) {
		if n.Type == 0 {
			links, err := f.Links()
			if err != nil {
				unread = err
				cancel()
				return
			}
			report(links)
		} else if s, ok := n.LinkState(); ok {
			report(Link{Index: s.Index, Up: s.Up})
		}
	})
	return errors.Join(unread, err)
}

// newID returns an ID that no nexthop has. The range is never full: the kernel has no
// memory for so many.
func (f *FIB) newID() uint32 {
	for {
		if f.last++; f.last > kernel.LastNexthop || f.last < kernel.FirstNexthop {
			f.last = kernel.FirstNexthop
		}
		if !f.ids[f.last] {
			f.ids[f.last] = true
			return f.last
		}
	}
}

func (f *FIB) free(id uint32) { delete(f.ids, id) }
