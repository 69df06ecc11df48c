package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/netlink"
)

func dial(t testing.TB, ns *nettest.NS) (c *Conn) {
	t.Helper()
	ns.Run(func() {
		var err error
		if c, err = Dial(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(c.Close)
	return c
}

// bridges makes n links, enough of them that their dump takes several reads.
func bridges(t testing.TB, c *Conn, n int) {
	t.Helper()
	for i := range n {
		bridge(t, c, fmt.Sprintf("br%d", i))
	}
}

func bridge(t testing.TB, c *Conn, name string) {
	t.Helper()
	m := newMessage("create "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg))
	m.b.Str(unix.IFLA_IFNAME, name)
	m.b.Nest(unix.IFLA_LINKINFO, func() { m.b.Str(unix.IFLA_INFO_KIND, "bridge") })
	if errs := c.Do(m); errs != nil {
		t.Fatal(errs)
	}
}

// A dump during which the table changed is never believed: it is taken again.
func TestInterruptedDumpIsTakenAgain(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	c, other := dial(t, ns), dial(t, ns)
	bridges(t, other, 120)
	attempts := 0
	c.onBody = func(n int) {
		if n > 0 {
			return
		}
		// The first part is there, the rest is not yet.
		if attempts++; attempts == 1 {
			bridge(t, other, "late")
		}
	}
	links, err := c.Links("bridge")
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 121 {
		t.Errorf("%d links, want the 120 and the one that came during the dump", len(links))
	}
	if attempts != 2 {
		t.Errorf("the dump was taken %d times, want twice", attempts)
	}
}

func TestDumpThatNeverHoldsStillIsAnError(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	c, other := dial(t, ns), dial(t, ns)
	bridges(t, other, 120)
	attempts := 0
	c.onBody = func(n int) {
		if n == 0 {
			attempts++
			bridge(t, other, fmt.Sprintf("late%d", attempts))
		}
	}
	if links, err := c.Links(""); !errors.Is(err, netlink.ErrInterrupted) || links != nil {
		t.Errorf("%d links, error %v; want none and %v", len(links), err, netlink.ErrInterrupted)
	}
	if attempts != dumpAttempts {
		t.Errorf("the dump was taken %d times, want %d", attempts, dumpAttempts)
	}
	c.onBody = nil
	if _, err := c.Links(""); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// The kernel goes on after a refusal; each error belongs to its request.
func TestBatchTellsWhichRequestFailed(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	c := dial(t, ns)
	bridge(t, c, "br0")
	l, err := c.LinkByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	up := true
	errs := c.Do(
		SetLink(l.Index, LinkChange{Up: &up}),
		SetLink(4711, LinkChange{Up: &up}),
		NewAddr(Addr{Link: l.Index, Prefix: netip.MustParsePrefix("10.0.0.1/32")}),
		NewRoute(Route{Dst: netip.MustParsePrefix("10.0.0.2/32"), Link: l.Index, Proto: 85}),
		NewRoute(Route{Dst: netip.MustParsePrefix("10.0.0.2/32"), Link: l.Index, Proto: 85}),
	)
	if len(errs) != 5 || errs[0] != nil || !errors.Is(errs[1], unix.ENODEV) || errs[2] != nil || errs[3] != nil || !errors.Is(errs[4], unix.EEXIST) {
		t.Errorf("errors %v, want ENODEV of the second, EEXIST of the last", errs)
	}
	if got := errs[4].Error(); got != "add route 10.0.0.2/32: file exists" {
		t.Errorf("error %q does not say what was refused", got)
	}
	if errs := c.Do(DelRoute(Route{Dst: netip.MustParsePrefix("10.0.0.2/32"), Link: l.Index, Proto: 85})); errs != nil {
		t.Errorf("a batch without errors: %v", errs)
	}
}

func TestErrorCarriesTheKernelsWords(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.New(t))
	errs := c.Do(NewRoute(Route{Dst: netip.MustParsePrefix("10.0.0.2/32"), Gateway: netip.MustParseAddr("10.9.9.9"), Proto: 85}))
	if errs == nil || !errors.Is(errs[0], unix.ENETUNREACH) || !strings.Contains(errs[0].Error(), "Nexthop has invalid gateway") {
		t.Errorf("error %v, want the kernel's explanation", errs)
	}
}

// More refusals than the socket can hold at once are all reported.
func TestLargeBatch(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.New(t))
	var ms []Message
	for i := range 3000 {
		ms = append(ms, DelLink(10000+i))
	}
	errs := c.Do(ms...)
	if len(errs) != len(ms) {
		t.Fatalf("%d errors, want %d", len(errs), len(ms))
	}
	for i, err := range errs {
		if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), fmt.Sprint(10000+i)) {
			t.Fatalf("error %d: %v, want ENODEV of link %d", i, err, 10000+i)
		}
	}
}

// What an exchange that was given up left behind does not confuse the next.
func TestLateAnswersAreSkipped(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.New(t))
	giveUp := func(int, netlink.Message) (bool, error) { return true, nil }
	if err := c.conn.Exchange(join([]Message{DelLink(4711), getLink("lo", 1)}), giveUp); err != nil {
		t.Fatal(err)
	}
	l, err := c.LinkByName("lo")
	if err != nil || l.Index != 1 || !l.Loopback {
		t.Errorf("link %+v, %v; want the loopback", l, err)
	}
	c.conn.Exchange(join([]Message{getLink("all", 0), DelLink(4711)}), giveUp)
	if links, err := c.Links(""); err != nil || len(links) != 1 {
		t.Errorf("links %+v, %v; want the loopback alone", links, err)
	}
}

func TestConnServesManyGoroutines(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	c := dial(t, ns)
	bridges(t, c, 20)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			name := fmt.Sprintf("br%d", i)
			for range 20 {
				if l, err := c.LinkByName(name); err != nil || l.Name != name {
					t.Errorf("link %+v, %v; want %s", l, err, name)
				}
				if links, err := c.Links("bridge"); err != nil || len(links) != 20 {
					t.Errorf("%d links, %v; want 20", len(links), err)
				}
			}
		})
	}
	wg.Wait()
}

func TestClosedConn(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.New(t))
	c.Close()
	if _, err := c.LinkByName("lo"); !errors.Is(err, unix.EBADF) {
		t.Errorf("error %v, want %v", err, unix.EBADF)
	}
	if errs := c.Do(DelLink(1), DelLink(2)); len(errs) != 2 || errs[0] == nil || errs[1] == nil {
		t.Errorf("errors %v, want one for each request", errs)
	}
	if _, err := c.Routes(RouteFilter{}); !errors.Is(err, unix.EBADF) {
		t.Errorf("error %v, want %v", err, unix.EBADF)
	}
}

// The main table of IPv4 does not exist before a route was in it, as on a node that has
// IPv6 only.
func TestRoutesWithoutATable(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.New(t))
	if routes, err := c.Routes(RouteFilter{}); err != nil || len(routes) != 0 {
		t.Errorf("got %v, %v; want no routes", routes, err)
	}
}

// Reading returns what was written, and iproute2 shows the same.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	ns, peer := nettest.New(t), nettest.New(t)
	c, pc := dial(t, ns), dial(t, peer)
	macs := [2][6]byte{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}
	if errs := c.Do(NewVeth(VethPair{Name: "veth0", PeerName: "eth0", MAC: macs[0], PeerMAC: macs[1], MTU: 1400, PeerNetns: peer.File()})); errs != nil {
		t.Fatal(errs)
	}
	l, err := c.LinkByName("veth0")
	if err != nil {
		t.Fatal(err)
	}
	far, err := pc.LinkByIndex(l.Peer)
	if err != nil || far.Name != "eth0" || far.Peer != l.Index || far.MAC != macs[1] || far.MTU != 1400 || far.Up {
		t.Errorf("the other end %+v, %v", far, err)
	}
	if l.Kind != "veth" || l.MAC != macs[0] || l.MTU != 1400 || l.Up || l.Running || l.Loopback || !l.HasIPv6 || l.AddrGenMode == AddrGenNone {
		t.Errorf("the new link %+v", l)
	}

	up, mtu, group, alias, mode := true, 1300, uint32(7), "someone's", uint8(AddrGenNone)
	change := LinkChange{MTU: &mtu, Group: &group, Alias: &alias, AddrGenMode: &mode, MAC: &macs[1], IPv4: &IPv4Conf{Forwarding: 1, RPFilter: 2}}
	addr := Addr{Link: l.Index, Prefix: netip.MustParsePrefix("2001:db8::1/64"), Proto: 85}
	neigh := Neigh{Link: l.Index, Addr: netip.MustParseAddr("2001:db8::2"), MAC: macs[1]}
	routes := []Route{
		{Dst: netip.MustParsePrefix("2001:db8:1::/48"), Gateway: netip.MustParseAddr("2001:db8::2"), Link: l.Index, Metric: 7, Proto: 85},
		{Dst: netip.MustParsePrefix("2001:db8:2::/48"), Metric: 512, Proto: 85, Type: Unreachable},
		{Dst: netip.MustParsePrefix("10.0.0.0/8"), Link: l.Index, Metric: 1024, Proto: 85},
	}
	ms := []Message{SetLink(l.Index, change), SetLink(l.Index, LinkChange{Up: &up}), NewAddr(addr), NewNeigh(neigh)}
	for _, r := range routes {
		ms = append(ms, NewRoute(r))
	}
	if errs := c.Do(ms...); errs != nil {
		t.Fatal(errs)
	}
	got, err := c.LinkByIndex(l.Index)
	want := l
	want.MTU, want.Group, want.Alias, want.AddrGenMode, want.MAC, want.Up = mtu, group, alias, mode, macs[1], true
	want.IPv4 = IPv4Conf{Forwarding: 1, RPFilter: 2}
	if err != nil || got != want {
		t.Errorf("link %+v, %v; want %+v", got, err, want)
	}
	if got, err := c.Addrs(l.Index); err != nil || len(got) != 1 || got[0] != addr {
		t.Errorf("addresses %+v, %v; want %+v", got, err, addr)
	}
	if got, err := c.Neighs(l.Index); err != nil || len(got) != 1 || got[0] != neigh {
		t.Errorf("neighbours %+v, %v; want %+v", got, err, neigh)
	}
	if got, err := c.Routes(RouteFilter{Proto: 85}); err != nil || fmt.Sprint(got) != fmt.Sprint([]Route{routes[0], routes[1], routes[2]}) && fmt.Sprint(got) != fmt.Sprint([]Route{routes[1], routes[0], routes[2]}) {
		t.Errorf("routes %+v, %v; want %+v", got, err, routes)
	}
	if got, err := c.Routes(RouteFilter{Link: l.Index, Proto: 85}); err != nil || len(got) != 2 {
		t.Errorf("routes of the link %+v, %v; want two", got, err)
	}
	if out := ns.IP("-6", "route", "show", "proto", "85"); !strings.Contains(out, "2001:db8:1::/48 via 2001:db8::2 dev veth0 metric 7") || !strings.Contains(out, "unreachable 2001:db8:2::/48 dev lo metric 512") {
		t.Errorf("iproute2 shows something else:\n%s", out)
	}

	ms = []Message{DelAddr(addr)}
	for _, r := range routes {
		ms = append(ms, DelRoute(r))
	}
	if errs := c.Do(append(ms, DelLink(l.Index))...); errs != nil {
		t.Error(errs)
	}
	if _, err := pc.LinkByIndex(far.Index); !errors.Is(err, unix.ENODEV) {
		t.Errorf("the other end outlived its peer: %v", err)
	}
}

func TestDelLinkGroup(t *testing.T) {
	t.Parallel()
	c := dial(t, nettest.New(t))
	bridges(t, c, 3)
	group := uint32(77)
	for _, name := range []string{"br0", "br2"} {
		l, err := c.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if errs := c.Do(SetLink(l.Index, LinkChange{Group: &group})); errs != nil {
			t.Fatal(errs)
		}
	}
	if errs := c.Do(DelLinkGroup(group)); errs != nil {
		t.Fatal(errs)
	}
	links, err := c.Links("bridge")
	if err != nil || len(links) != 1 || links[0].Name != "br1" {
		t.Errorf("left %+v, %v; want br1", links, err)
	}
	if errs := c.Do(DelLinkGroup(group)); errs == nil || !errors.Is(errs[0], unix.ENODEV) {
		t.Errorf("an empty group: %v, want ENODEV", errs)
	}
}
