package anycast

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/wiring"
	"flock.fritzlab.net/flock/pkg/wiring/rtnl"
)

// FIB applies changes to the kernel's routes in the network namespace that it was
// opened in. For each anycast address it has a nexthop group with the members'
// links, and up to two routes on it. It has one owner; its methods, but for
// Watch, are not safe for concurrent use.
type FIB struct {
	conn  *rtnl.Conn
	watch *rtnl.Watch
	plain bool // no resilient groups
	// unfit is why no change is made here; nil: they are.
	unfit error

	// What the kernel is believed to have.
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

// Nexthops of flock have IDs in this range and routing protocol 85. The kernel
// numbers those for which nobody names an ID from 1 on, FRR from 1 and from
// 2×10^8 on.
const (
	firstID = 0x85000000
	lastID  = 0x85ffffff
)

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

// OpenFIB opens the kernel of the calling thread's network namespace. Where that
// cannot have anycast routes, as [FIB.Unfit] tells, it knows links all the same and
// refuses each change: all that does not need anycast goes on.
func OpenFIB() (*FIB, error) {
	conn, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	f := &FIB{conn: conn, last: lastID}
	if f.watch, err = rtnl.Subscribe(unix.RTNLGRP_LINK); err != nil {
		conn.Close()
		return nil, err
	}
	if f.unfit = prepare(); f.unfit == nil {
		f.unfit = f.probe()
	}
	return f, nil
}

// Unfit says why the kernel cannot have anycast routes; nil if it can.
func (f *FIB) Unfit() error { return f.unfit }

// prepare looks at the sysctls that matter, and sets those that may be.
func prepare() error {
	// Where this is off, a route on a nexthop does not say what link it leads
	// to, and the routing daemon does not know what to make of it.
	const compat = "/proc/sys/net/ipv4/nexthop_compat_mode"
	if b, err := os.ReadFile(compat); err == nil && strings.TrimSpace(string(b)) == "0" {
		return errors.New(`sysctl net.ipv4.nexthop_compat_mode=0: want 1, or the routing daemon cannot read anycast routes; set it with "sysctl net.ipv4.nexthop_compat_mode=1"`)
	}
	for _, family := range []string{"ipv6", "ipv4"} {
		if err := hashPorts(family); err != nil {
			return fmt.Errorf(`sysctl net.%s.fib_multipath_hash_policy: want 1, so that flows are spread by their ports too; set it with "sysctl net.%[1]s.fib_multipath_hash_policy=1": %w`, family, err)
		}
	}
	return nil
}

// hashPorts makes the kernel spread flows by their ports too, if it has its default
// of addresses alone. That would send all that one client says to one pod, and for
// IPv6 it takes in the flow label, which Linux clients change in mid-flow when an
// answer is late.
func hashPorts(family string) error {
	sysctl := filepath.Join(wiring.SysctlDir(), family, "fib_multipath_hash_policy")
	b, err := os.ReadFile(sysctl)
	switch {
	case errors.Is(err, fs.ErrNotExist): // a kernel without the family, or without ECMP
		return nil
	case err != nil:
		return err
	case strings.TrimSpace(string(b)) != "0":
		return nil // somebody has chosen
	}
	return os.WriteFile(sysctl, []byte("1"), 0o644)
}

// Close gives the FIB's sockets up. Routes stay.
func (f *FIB) Close() {
	f.watch.Close()
	f.conn.Close()
}

// Resilient tells whether the kernel has resilient nexthop groups. If not, flows
// are hashed anew over an address' pods whenever those change.
func (f *FIB) Resilient() bool { return !f.plain }

// probe finds out what kind of groups the kernel has, by making one that leads
// nowhere.
func (f *FIB) probe() error {
	if err := f.Load(); errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("anycast needs nexthop objects, kernel 5.3 or newer: %w", err)
	} else if err != nil {
		return err
	}
	single, group := f.newID(), f.newID()
	defer f.free(single)
	defer f.free(group)
	errs := f.conn.Do(
		rtnl.NewNexthop(rtnl.Nexthop{ID: single, Proto: wiring.RouteProtocol, IPv6: true, Blackhole: true}),
		rtnl.NewNexthop(rtnl.Nexthop{
			ID: group, Proto: wiring.RouteProtocol, Group: []rtnl.NexthopMember{{ID: single, Weight: weight}},
			Resilient: &rtnl.Resilient{Buckets: buckets},
		}),
		rtnl.DelNexthop(group),
		rtnl.DelNexthop(single),
	)
	if errs == nil {
		return nil
	}
	f.plain = errs[1] != nil
	return errors.Join(errs[0], errs[3])
}

// Load reads what the kernel has, and deletes nexthops of flock that lead from
// nowhere, as a kill between two steps leaves them.
func (f *FIB) Load() error {
	if f.unfit != nil {
		return nil
	}
	nexthops, err := f.conn.Nexthops()
	if err != nil {
		return err
	}
	routes, err := f.conn.Routes(rtnl.RouteFilter{Proto: wiring.RouteProtocol})
	if err != nil {
		return err
	}
	believed := f.entries
	f.entries, f.groups = map[netip.Addr]Entry{}, map[netip.Addr]uint32{}
	f.hops, f.ids = map[hop]*nexthop{}, map[uint32]bool{}
	ours := map[uint32]rtnl.Nexthop{}
	for _, n := range nexthops {
		f.ids[n.ID] = true
		if n.ID >= firstID && n.ID <= lastID && n.Proto == wiring.RouteProtocol {
			ours[n.ID] = n
		}
	}
	used := map[uint32]bool{}
	for _, r := range routes {
		addr := r.Dst.Addr()
		if n, ok := ours[r.Nexthop]; !ok || n.Group == nil || !r.Dst.IsSingleIP() {
			continue
		}
		if id, ok := f.groups[addr]; ok && id != r.Nexthop {
			continue // one group is the address'; the route goes with the other
		}
		f.groups[addr], used[r.Nexthop] = r.Nexthop, true
		e := f.entries[addr]
		e.Announced = e.Announced || r.Metric == wiring.MetricAnnounced
		e.Local = e.Local || r.Metric == wiring.MetricLocal
		f.entries[addr] = e
	}
	for addr, id := range f.groups {
		e := f.entries[addr]
		for _, member := range ours[id].Group {
			n := ours[member.ID]
			used[member.ID] = true
			e.Members = append(e.Members, Member{Link: n.Link, Drains: member.Weight == weightOff})
			h := hop{n.Link, n.IPv6}
			if f.hops[h] == nil {
				f.hops[h] = &nexthop{id: member.ID}
			}
			f.hops[h].uses++
		}
		f.entries[addr] = e
	}
	var stray []rtnl.Message
	for _, groups := range []bool{true, false} {
		for id, n := range ours {
			if !used[id] && (n.Group != nil) == groups {
				stray = append(stray, rtnl.DelNexthop(id))
				f.free(id)
			}
		}
	}
	for addr, e := range believed {
		if e.Announced && !f.entries[addr].Announced {
			f.tellGone(addr)
		}
	}
	return errors.Join(f.conn.Do(stray...)...)
}

// Actual is what the kernel is believed to have. It must not be changed.
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
			b.add(Ungroup, rtnl.DelNexthop(n.id))
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
		gone := errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) ||
			errors.Is(err, unix.EINVAL) // of an IPv4 route on a nexthop that is gone
		if b.ops[i] <= Ungroup && gone {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// add puts a change into a batch, and what is believed ahead to its end.
func (f *FIB) add(b *batch, c Change) {
	e := f.entries[c.Addr]
	switch c.Op {
	case Withdraw:
		b.add(c.Op, rtnl.DelRoute(f.route(c.Addr, wiring.MetricAnnounced)))
		e.Announced = false
	case Forsake:
		b.add(c.Op, rtnl.DelRoute(f.route(c.Addr, wiring.MetricLocal)))
		e.Local = false
	case Ungroup:
		id := f.groups[c.Addr]
		b.add(c.Op, rtnl.DelNexthop(id))
		f.leave(c.Addr, e.Members)
		delete(f.groups, c.Addr)
		f.free(id)
		e = Entry{}
	case Group, Regroup:
		members := f.join(b, c)
		f.leave(c.Addr, e.Members)
		if c.Op == Group {
			f.groups[c.Addr] = f.newID()
			b.add(c.Op, rtnl.NewNexthop(f.group(f.groups[c.Addr], members, c.Members, buckets)))
		} else {
			b.add(c.Op, rtnl.SetNexthop(f.group(f.groups[c.Addr], members, c.Members, 0)))
		}
		e.Members = c.Members
	case Deliver:
		b.add(c.Op, rtnl.NewRoute(f.route(c.Addr, wiring.MetricLocal)))
		e.Local = true
	case Announce:
		b.add(c.Op, rtnl.NewRoute(f.route(c.Addr, wiring.MetricAnnounced)))
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
		Metric: metric, Proto: wiring.RouteProtocol,
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
			b.add(c.Op, rtnl.NewNexthop(rtnl.Nexthop{ID: n.id, Proto: wiring.RouteProtocol, Link: h.link, IPv6: h.ipv6}))
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
	n := rtnl.Nexthop{ID: id, Proto: wiring.RouteProtocol, Group: nexthops}
	if f.plain {
		return n
	}
	n.Resilient = &rtnl.Resilient{Buckets: buckets, Idle: idleTime, Unbalanced: unbalancedTime}
	if slices.ContainsFunc(members, func(m Member) bool { return m.Drains }) {
		n.Resilient.Idle, n.Resilient.Unbalanced = drainIdleTime, 0
	}
	return n
}

// LinkDown is to be told of each link that has gone down or away: the kernel has
// deleted its nexthops, so it is in no group any more, and groups that it was the
// last in are gone with their routes.
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

// tellGone makes the kernel tell the routing daemon that an announced route has
// gone, where it went with its link: of an IPv4 route the kernel does not (as of
// 6.18), and the daemon would find out by its next scan only, some ten seconds
// later. A route like it, to nowhere, comes and goes in its place.
func (f *FIB) tellGone(addr netip.Addr) {
	if !addr.Is4() {
		return
	}
	r := rtnl.Route{
		Dst: netip.PrefixFrom(addr, 32), Unreachable: true,
		Metric: wiring.MetricAnnounced, Proto: wiring.RouteProtocol,
	}
	// If somebody's route is there after all, it is not touched.
	f.conn.Do(rtnl.NewRoute(r), rtnl.DelRoute(r))
}

// Links are the links that can carry packets.
func (f *FIB) Links() (Links, error) {
	up, err := f.conn.LinksUp()
	return Links{Up: up}, err
}

// LinkUp tells whether a link can carry packets.
func (f *FIB) LinkUp(link int) (bool, error) { return f.conn.LinkUp(link) }

// Watch tells of links' changes until the context ends. When some were missed it
// tells of all links.
func (f *FIB) Watch(ctx context.Context, tell func(Event)) error {
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
			tell(links)
		} else if s, ok := n.LinkState(); ok {
			tell(Link{Index: s.Index, Up: s.Up})
		}
	})
	return errors.Join(unread, err)
}

// newID gives an ID that no nexthop has. The range is never full: it is larger
// than the kernel's memory for what is in it.
func (f *FIB) newID() uint32 {
	for {
		if f.last++; f.last > lastID || f.last < firstID {
			f.last = firstID
		}
		if !f.ids[f.last] {
			f.ids[f.last] = true
			return f.last
		}
	}
}

func (f *FIB) free(id uint32) { delete(f.ids, id) }
