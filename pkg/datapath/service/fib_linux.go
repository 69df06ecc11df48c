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
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// fib is the routes to Services' addresses and the link that they are on, in the network
// namespace that it was opened in. Apply waits for nothing that the methods which look wait
// for: they have a socket of their own.
type fib struct {
	netns *os.File
	conn  *rtnl.Conn // of Apply
	looks *rtnl.Conn // of all others

	// What the kernel had at the last look, with the changes since.
	link    int // the index of the link, 0 if there is none
	entries map[netip.Prefix]Entry
}

// kinds are kinds of links that drop what is sent to them and ask no neighbour for it, the
// best first: the kernel may lack some. A bridge without ports is one.
var kinds = []string{"dummy", "ifb", "bridge"}

// openFIB opens the kernel of the calling thread's network namespace. It changes nothing.
func openFIB() (*fib, error) {
	node, err := sys.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("node's network namespace: %w", err)
	}
	f := &fib{netns: node, entries: map[netip.Prefix]Entry{}}
	if f.conn, err = rtnl.Dial(); err == nil {
		f.looks, err = rtnl.Dial()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close gives the sockets up. Routes and link stay.
func (f *fib) Close() {
	for _, conn := range []*rtnl.Conn{f.conn, f.looks} {
		if conn != nil {
			conn.Close()
		}
	}
	f.netns.Close()
}

// Actual is what the kernel had at the last look, with the changes since. It must not be
// changed.
func (f *fib) Actual() map[netip.Prefix]Entry { return f.entries }

// look is what was seen of link and routes.
type look struct {
	link    int // 0: there is none
	entries map[netip.Prefix]Entry
}

// learn takes in what was seen.
func (f *fib) learn(is look) { f.link, f.entries = is.link, is.entries }

// peek reads the link and the routes that are there, and changes nothing.
func (f *fib) peek() (look, error) {
	l, err := f.looks.LinkByName(kernel.ServiceLink)
	switch {
	case errors.Is(err, unix.ENODEV):
		return look{entries: map[netip.Prefix]Entry{}}, nil
	case err != nil:
		return look{}, err
	case !slices.Contains(kinds, l.Kind):
		return look{entries: map[netip.Prefix]Entry{}}, nil
	}
	entries, _, err := f.readRoutes(l.Index)
	return look{l.Index, entries}, err
}

// Load brings the link to what it has to be, reads the routes on it, and deletes those of
// flock's protocol that are no entry's. MTU is that of the link, in bytes: what a process of
// the node takes for the MTU of the path to a Service; 0 is the kernel's default.
func (f *fib) Load(mtu int) (is look, repairs []datapath.Repair, err error) {
	link, repairs, err := f.syncLink(mtu)
	if err != nil {
		return is, repairs, err
	}
	entries, strays, err := f.readRoutes(link)
	for _, r := range strays {
		repairs = append(repairs, f.stray(r)...)
	}
	return look{link, entries}, repairs, err
}

// takeAway deletes routes and link. The routes go first, so that the routing daemon is told
// of each.
func (f *fib) takeAway() (repairs []datapath.Repair, err error) {
	l, err := f.looks.LinkByName(kernel.ServiceLink)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, nil
	case err != nil:
		return nil, err
	case !slices.Contains(kinds, l.Kind):
		return nil, nil
	}
	routes, err := f.looks.Routes(rtnl.RouteFilter{Proto: kernel.RouteProtocol, Link: l.Index})
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		repairs = append(repairs, f.stray(r)...)
	}
	if err := errors.Join(f.looks.Do(rtnl.DelLink(l.Index))...); err != nil && !errors.Is(err, unix.ENODEV) {
		return repairs, err
	}
	return append(repairs, linkRepair(datapath.Stray)), nil
}

func linkRepair(found string) datapath.Repair {
	return datapath.Repair{Kind: kernel.Link, Object: "link " + kernel.ServiceLink, Found: found}
}

// syncLink creates the link, or repairs it.
func (f *fib) syncLink(mtu int) (link int, repairs []datapath.Repair, err error) {
	l, err := f.looks.LinkByName(kernel.ServiceLink)
	if errors.Is(err, unix.ENODEV) {
		if l, err = f.newLink(); err == nil {
			repairs = append(repairs, linkRepair(datapath.Missing))
		}
	}
	if err != nil {
		return 0, nil, err
	}
	if !slices.Contains(kinds, l.Kind) {
		return 0, nil, fmt.Errorf(`link %s is another program's (kind "%s"): flock needs the name for the routes to Services' addresses; rename it with "ip link set %[1]s name NAME"`, kernel.ServiceLink, l.Kind)
	}
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
		if err := errors.Join(f.looks.Do(rtnl.SetLink(l.Index, c))...); err != nil {
			return 0, repairs, err
		}
	}
	if l.HasIPv6 && l.IPv6.DisableIPv6 != 0 {
		found = cmp.Or(found, "IPv6 disabled by sysctl")
		name := kernel.LinkSysctl("ipv6", kernel.ServiceLink, "disable_ipv6")
		if err := netns.Do(f.netns, func() error { return sysctl.Write(name, "0") }); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, repairs, err
		}
	}
	if !l.Up {
		found = cmp.Or(found, "down")
		if err := errors.Join(f.looks.Do(rtnl.SetLink(l.Index, rtnl.LinkChange{Up: &on}))...); err != nil {
			return 0, repairs, err
		}
	}
	if found != "" && len(repairs) == 0 {
		repairs = append(repairs, linkRepair(found))
	}
	return l.Index, repairs, nil
}

// newLink creates the link, of the first kind that the kernel has.
func (f *fib) newLink() (rtnl.Link, error) {
	var err error
	for _, kind := range kinds {
		err = errors.Join(f.looks.Do(rtnl.NewLink(kind, kernel.ServiceLink))...)
		if err == nil || errors.Is(err, unix.EEXIST) {
			return f.looks.LinkByName(kernel.ServiceLink)
		}
		if !errors.Is(err, unix.EOPNOTSUPP) {
			break
		}
	}
	return rtnl.Link{}, fmt.Errorf("the link for routes to Services' addresses (the kernel needs one of the kinds %v): %w", kinds, err)
}

// readRoutes reads the routes on the link, and returns those that are no entry's, too.
func (f *fib) readRoutes(link int) (entries map[netip.Prefix]Entry, strays []rtnl.Route, err error) {
	routes, err := f.looks.Routes(rtnl.RouteFilter{Proto: kernel.RouteProtocol, Link: link})
	if err != nil {
		return nil, nil, err
	}
	entries = map[netip.Prefix]Entry{}
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
	return entries, strays, nil
}

// stray deletes a route that is on the link and in none of the entries.
func (f *fib) stray(r rtnl.Route) []datapath.Repair {
	if err := errors.Join(f.looks.Do(rtnl.DelRoute(r))...); err != nil {
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

// Apply makes changes, in order. What the kernel refuses stays as it was.
func (f *fib) Apply(changes []Change) error {
	if f.link == 0 && len(changes) > 0 {
		return fmt.Errorf("link %s is not there yet", kernel.ServiceLink)
	}
	messages := make([]rtnl.Message, len(changes))
	for i, c := range changes {
		switch c.Op {
		case Withdraw:
			messages[i] = rtnl.DelRoute(f.route(c.Prefix, kernel.MetricService))
		case DelLocal:
			messages[i] = rtnl.DelRoute(f.route(c.Prefix, kernel.MetricLocal))
		case AddLocal:
			messages[i] = rtnl.NewRoute(f.route(c.Prefix, kernel.MetricLocal))
		case Announce:
			messages[i] = rtnl.NewRoute(f.route(c.Prefix, kernel.MetricService))
		}
	}
	errs := f.conn.Do(messages...)
	for i, c := range changes {
		if errs != nil && errs[i] != nil {
			if c.Op <= DelLocal && errors.Is(errs[i], unix.ESRCH) {
				errs[i] = nil // it has gone with its link, or by another hand
			} else if errors.Is(errs[i], unix.EEXIST) {
				errs[i] = fmt.Errorf("%v: a route of another program with the same metric is in the way (ip route show %v); delete it: %w", c, c.Prefix, errs[i])
			}
			if errs[i] != nil {
				continue
			}
		}
		e := f.entries[c.Prefix]
		switch c.Op {
		case Withdraw, Announce:
			e.Announced = c.Op == Announce
		case DelLocal, AddLocal:
			e.Local = c.Op == AddLocal
		}
		if e == (Entry{}) {
			delete(f.entries, c.Prefix)
		} else {
			f.entries[c.Prefix] = e
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
