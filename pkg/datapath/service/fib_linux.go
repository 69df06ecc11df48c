package service

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/sysctl"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// fib applies changes to the kernel's routes in the network namespace that it was opened
// in. It has one owner; its methods are not safe for concurrent use.
type fib struct {
	netns  *os.File
	conn   *rtnl.Conn
	tables *nft.Conn

	// What the kernel had at the last Load, with the changes since.
	link    int // the index of the link, 0 if there is none
	entries map[netip.Prefix]Entry
	interim Interim
	// noNAT: the kernel cannot translate.
	noNAT bool
	// seen is a generation of nftables, and looks how often the guard was seen complete in it.
	seen  uint32
	looks int
}

// kinds are kinds of links that drop what is sent to them and ask no neighbour for it, the
// best first: the kernel may lack some. A bridge without ports is one.
var kinds = []string{"dummy", "ifb", "bridge"}

// sendBuffer, in bytes, holds the translations to thousands of pods in one transaction.
const sendBuffer = 8 << 20

// openFIB opens the kernel of the calling thread's network namespace. It changes nothing.
func openFIB() (*fib, error) {
	node, err := sys.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("node's network namespace: %w", err)
	}
	f := &fib{netns: node, entries: map[netip.Prefix]Entry{}, interim: Interim{}}
	if f.conn, err = rtnl.Dial(); err == nil {
		f.tables, err = nft.Dial()
	}
	if err == nil {
		err = f.tables.SetSendBuffer(sendBuffer)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close gives the sockets up. Routes and guard stay.
func (f *fib) Close() {
	if f.conn != nil {
		f.conn.Close()
	}
	if f.tables != nil {
		f.tables.Close()
	}
	f.netns.Close()
}

// Actual is what the kernel had at the last Load, with the changes since. It must not be
// changed.
func (f *fib) Actual() map[netip.Prefix]Entry { return f.entries }

// Load reads what the kernel has. If addresses are wanted, it brings the guard and then the
// link to what they have to be; otherwise it takes both away. It deletes routes of flock's
// protocol on the link that are none of its own. MTU is that of the link, in bytes: what a
// process of the node takes for the MTU of the path to a Service; 0 is the kernel's default.
// Interim are the connections that a guard which is made anew translates. After an error,
// Actual has the routes that could be read.
func (f *fib) Load(wanted bool, mtu int, interim Interim) (repairs []datapath.Repair, err error) {
	f.entries = map[netip.Prefix]Entry{}
	if !wanted {
		return f.takeAway()
	}
	defer func() {
		if err == nil {
			return
		}
		entries, again := f.peek()
		if again == nil {
			f.entries = entries
		}
		err = errors.Join(err, again)
	}()
	// The guard is first: without it nothing is refused, and senders wait.
	repairs, err = f.syncGuard(interim)
	if err != nil {
		return repairs, err
	}
	more, err := f.syncLink(mtu)
	repairs = append(repairs, more...)
	if err != nil {
		return repairs, err
	}
	strays, err := f.readRoutes(f.link, f.entries)
	for _, r := range strays {
		repairs = append(repairs, f.stray(r)...)
	}
	return repairs, err
}

// peek reads the link and the routes that are there, and changes nothing.
func (f *fib) peek() (map[netip.Prefix]Entry, error) {
	entries := map[netip.Prefix]Entry{}
	l, err := f.conn.LinkByName(kernel.ServiceLink)
	switch {
	case errors.Is(err, unix.ENODEV):
		return entries, nil
	case err != nil:
		return nil, err
	case !slices.Contains(kinds, l.Kind):
		return entries, nil
	}
	f.link = l.Index
	_, err = f.readRoutes(l.Index, entries)
	return entries, err
}

// takeAway deletes all that is there. The routes go first, so that the routing daemon is
// told of each.
func (f *fib) takeAway() (repairs []datapath.Repair, err error) {
	l, err := f.conn.LinkByName(kernel.ServiceLink)
	switch {
	case errors.Is(err, unix.ENODEV):
		f.link = 0
	case err != nil:
		return nil, err
	case slices.Contains(kinds, l.Kind):
		f.link = l.Index
		routes, err := f.conn.Routes(rtnl.RouteFilter{Proto: kernel.RouteProtocol, Link: l.Index})
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			repairs = append(repairs, f.stray(r)...)
		}
		if err := errors.Join(f.conn.Do(rtnl.DelLink(l.Index))...); err != nil && !errors.Is(err, unix.ENODEV) {
			return repairs, err
		}
		f.link = 0
		repairs = append(repairs, linkRepair(datapath.Stray))
	}
	deleted, err := f.deleteGuard()
	if deleted {
		repairs = append(repairs, datapath.Repair{Kind: kernel.NFTables, Object: "table " + table.String(), Found: datapath.Stray})
	}
	return repairs, err
}

func linkRepair(found string) datapath.Repair {
	return datapath.Repair{Kind: kernel.Link, Object: "link " + kernel.ServiceLink, Found: found}
}

// syncLink creates the link, or repairs it.
func (f *fib) syncLink(mtu int) (repairs []datapath.Repair, err error) {
	l, err := f.conn.LinkByName(kernel.ServiceLink)
	if errors.Is(err, unix.ENODEV) {
		if l, err = f.newLink(); err == nil {
			repairs = append(repairs, linkRepair(datapath.Missing))
		}
	}
	if err != nil {
		return nil, err
	}
	if !slices.Contains(kinds, l.Kind) {
		return nil, fmt.Errorf(`link %s is another program's (kind "%s"): flock needs the name for the routes to Services' addresses; rename it with "ip link set %[1]s name NAME"`, kernel.ServiceLink, l.Kind)
	}
	f.link = l.Index
	found := ""
	var c rtnl.LinkChange
	differs := func(is bool, set func(), how string) {
		if is {
			set()
			found = cmp.Or(found, how)
		}
	}
	on := true
	// A link-local address would be one more address of the node for others to see.
	none := uint8(rtnl.AddrGenNone)
	differs(l.HasIPv6 && l.AddrGenMode != rtnl.AddrGenNone, func() { c.AddrGenMode = &none }, "automatic link-local address on")
	differs(mtu != 0 && l.MTU != mtu, func() { c.MTU = &mtu }, fmt.Sprintf("mtu %d, want %d", l.MTU, mtu))
	differs(!l.NoARP, func() { c.NoARP = &on }, "neighbours are resolved on it")
	if found != "" { // before it is up
		if err := errors.Join(f.conn.Do(rtnl.SetLink(l.Index, c))...); err != nil {
			return repairs, err
		}
	}
	if l.HasIPv6 && l.IPv6.DisableIPv6 != 0 {
		found = cmp.Or(found, "IPv6 disabled by sysctl")
		name := kernel.LinkSysctl("ipv6", kernel.ServiceLink, "disable_ipv6")
		if err := netns.Do(f.netns, func() error { return sysctl.Write(name, "0") }); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return repairs, err
		}
	}
	if !l.Up {
		found = cmp.Or(found, "down")
		if err := errors.Join(f.conn.Do(rtnl.SetLink(l.Index, rtnl.LinkChange{Up: &on}))...); err != nil {
			return repairs, err
		}
	}
	if found != "" && len(repairs) == 0 {
		repairs = append(repairs, linkRepair(found))
	}
	return repairs, nil
}

// newLink creates the link, of the first kind that the kernel has.
func (f *fib) newLink() (rtnl.Link, error) {
	var err error
	for _, kind := range kinds {
		err = errors.Join(f.conn.Do(rtnl.NewLink(kind, kernel.ServiceLink))...)
		if err == nil || errors.Is(err, unix.EEXIST) {
			return f.conn.LinkByName(kernel.ServiceLink)
		}
		if !errors.Is(err, unix.EOPNOTSUPP) {
			break
		}
	}
	return rtnl.Link{}, fmt.Errorf("the link for routes to Services' addresses (the kernel needs one of the kinds %v): %w", kinds, err)
}

// readRoutes reads the routes on the link into entries, and returns those that are no
// entry's.
func (f *fib) readRoutes(link int, entries map[netip.Prefix]Entry) (strays []rtnl.Route, err error) {
	routes, err := f.conn.Routes(rtnl.RouteFilter{Proto: kernel.RouteProtocol, Link: link})
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Nexthop != 0 {
			continue // anycast's, which deletes what is not
		}
		e := entries[r.Dst]
		plain := !r.Gateway.IsValid() && !r.Src.IsValid()
		switch {
		case plain && r.Metric == kernel.MetricService:
			e.Announced = true
		case plain && r.Metric == kernel.MetricLocal:
			e.Local = true
		default:
			strays = append(strays, r)
			continue
		}
		entries[r.Dst] = e
	}
	return strays, nil
}

// stray deletes a route that is on the link and in none of the entries.
func (f *fib) stray(r rtnl.Route) []datapath.Repair {
	if err := errors.Join(f.conn.Do(rtnl.DelRoute(r))...); err != nil {
		return nil // the next look finds it again
	}
	return []datapath.Repair{{Kind: kernel.Route, Object: routeObject(r), Found: datapath.Stray}}
}

func routeObject(r rtnl.Route) string {
	return fmt.Sprintf("%v dev %s proto %d metric %d", r, kernel.ServiceLink, r.Proto, r.Metric)
}

func (f *fib) route(prefix netip.Prefix, metric uint32) rtnl.Route {
	return rtnl.Route{Dst: prefix, Link: f.link, Metric: metric, Proto: kernel.RouteProtocol}
}

// Apply makes changes, in order. After an error, what the kernel has is not known before
// the next Load.
func (f *fib) Apply(changes []Change) error {
	if f.link == 0 && len(changes) > 0 {
		return fmt.Errorf("link %s is not there yet", kernel.ServiceLink)
	}
	messages := make([]rtnl.Message, len(changes))
	for i, c := range changes {
		e := f.entries[c.Prefix]
		switch c.Op {
		case Withdraw:
			messages[i], e.Announced = rtnl.DelRoute(f.route(c.Prefix, kernel.MetricService)), false
		case DelLocal:
			messages[i], e.Local = rtnl.DelRoute(f.route(c.Prefix, kernel.MetricLocal)), false
		case AddLocal:
			messages[i], e.Local = rtnl.NewRoute(f.route(c.Prefix, kernel.MetricLocal)), true
		case Announce:
			messages[i], e.Announced = rtnl.NewRoute(f.route(c.Prefix, kernel.MetricService)), true
		}
		if e == (Entry{}) {
			delete(f.entries, c.Prefix)
		} else {
			f.entries[c.Prefix] = e
		}
	}
	errs := f.conn.Do(messages...)
	for i, err := range errs {
		if c := changes[i]; c.Op <= DelLocal && errors.Is(err, unix.ESRCH) {
			errs[i] = nil // it has gone with its link, or by another hand
		} else if errors.Is(err, unix.EEXIST) {
			errs[i] = fmt.Errorf("%v: a route of another program with the same metric is in the way (ip route show %v); delete it: %w", c, c.Prefix, err)
		}
	}
	return errors.Join(errs...)
}

// repair is a change in words, where it was not decided but found.
func (c Change) repair() datapath.Repair {
	metric := uint32(kernel.MetricService)
	if c.Op == DelLocal || c.Op == AddLocal {
		metric = kernel.MetricLocal
	}
	r := datapath.Repair{Kind: kernel.Route, Found: datapath.Missing}
	r.Object = routeObject(rtnl.Route{Dst: c.Prefix, Metric: metric, Proto: kernel.RouteProtocol})
	if c.Op == Withdraw || c.Op == DelLocal {
		r.Found = datapath.Stray
	}
	return r
}
