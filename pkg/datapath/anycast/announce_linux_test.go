package anycast

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/internal/nettest"
)

var both = []Grant{{Addr: dns}, {Addr: dns4}}

// The router hears of an address exactly while a pod is Ready at it, whatever the
// number of pods behind, and the routing daemon is not configured for it.
func TestRouterHearsOfReadyPods(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	f.speakBGP()
	router := watchRoutes(t, f.router)
	configured := f.loaded()
	c, stop := run(t, Config{Kernel: f.fib})
	_, a := f.pod("a", both...)
	bns, b := f.pod("b", both...)
	c.Send(a)
	c.Send(b)
	addrs := []netip.Addr{dns, dns4}

	c.Send(readiness("a", true, "c1/0"))
	router.wantAll(addrs, true, 0)
	via := f.router.IP("-6", "route", "get", dns.String()) + f.router.IP("route", "get", dns4.String())
	if strings.Count(via, "via 2001:db8:0:1::11") != 1 || strings.Count(via, "via inet6 2001:db8:0:1::11") != 1 {
		t.Errorf("the router's routes (RFC 8950 for IPv4): %s", via)
	}

	// One, two and one pod again: nothing is withdrawn at the router.
	router.forget()
	c.Send(readiness("b", true, "d1/0"))
	c.Send(readiness("a", false, "c1/0"))
	settle(t, c)
	c.Send(Exited{ContainerID: "c1"})
	marker := f.marker(c, router)
	for _, addr := range addrs {
		for _, s := range router.of(addr) {
			if !s.there {
				t.Errorf("%v was withdrawn at the router while a pod was Ready: %+v", addr, router.of(addr))
			}
		}
	}
	c.Send(Detached{marker})

	// The last one's link goes. The kernel itself says nothing of IPv4 then,
	// and the daemon would not look for ten seconds.
	router.forget()
	start := time.Now()
	bns.IP("link", "del", "eth0")
	if took := router.wantAll(addrs, false, 0).Sub(start); took > 2*time.Second {
		t.Errorf("the router had the routes for another %v", took)
	}

	// Without the controller, at least IPv6 is withdrawn at once.
	cns, last := f.pod("c", both...)
	c.Send(last)
	c.Send(readiness("c", true, "c1/0"))
	router.wantAll(addrs, true, 0)
	stop()
	router.forget()
	cns.IP("link", "del", "eth0")
	router.want(dns, false, 0)
	if now := f.loaded(); now != configured {
		t.Errorf("BIRD was configured for it: %s, before %s", now, configured)
	}
}

// marker announces another address and waits for it at the router: all that was
// sent before has had its effect there.
func (f *fabric) marker(c *Controller, router *routeWatch) (containerID string) {
	f.t.Helper()
	addr := netip.MustParseAddr("2001:db8::ffff")
	_, z := f.pod("z", Grant{Addr: addr})
	c.Send(z)
	c.Send(readiness("z", true, "z1/0"))
	router.want(addr, true, 0)
	return z.ContainerID
}

func settle(t testing.TB, c *Controller) { t.Helper(); status(t, c) }

// What is still on its way when a pod's announcement is withdrawn is delivered to
// it: the router has withdrawn the route, and a router that has not heard of that
// still reaches the pod, for as long as it lives.
func TestWithdrawnIsStillDelivered(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		leave Event
	}{
		"deleted":     {terminating(readiness("a", true, "c1/0"))},
		"not Ready":   {readiness("a", false, "c1/0")},
		"source says": {Gone{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFabric(t)
			f.speakBGP()
			router := watchRoutes(t, f.router)
			c, _ := run(t, Config{Kernel: f.fib})
			ns, a := f.pod("a", both...)
			for _, addr := range []netip.Addr{dns, dns4} {
				serveUDP(t, ns, "a", addr)
			}
			c.Send(a)
			c.Send(readiness("a", true, "c1/0"))
			router.wantAll([]netip.Addr{dns, dns4}, true, 0)
			for _, addr := range []netip.Addr{dns, dns4} {
				f.ask(addr, "a")
			}
			router.forget()
			c.Send(tt.leave)
			router.wantAll([]netip.Addr{dns, dns4}, false, 0)

			// A router that has not heard.
			f.router.IP("-6", "route", "add", dns.String(), "via", "2001:db8:0:1::11")
			f.router.IP("route", "add", dns4.String(), "via", "192.0.2.11")
			for _, addr := range []netip.Addr{dns, dns4} {
				f.ask(addr, "a")
			}
			if repairs, err := f.host.Sync(t.Context()); len(repairs) != 0 || err != nil {
				t.Errorf("wiring takes routes of anycast addresses for its own: %v, %v", repairs, err)
			}
			c.Send(Detached{a.ContainerID})
			settle(t, c)
			for _, family := range []string{"-6", "-4"} {
				if left := f.node.IP(family, "route", "show", "proto", "85", "metric", "512"); strings.Contains(left, "53") {
					t.Errorf("routes are left: %s", left)
				}
				if left := f.node.IP(family, "route", "show", "proto", "85", "metric", "1024"); strings.Contains(left, "::53") || strings.Contains(left, "2.53") {
					t.Errorf("routes are left: %s", left)
				}
			}
		})
	}
}

const port = 5300

// serveUDP answers every datagram to addr, in the pod, with the pod's name.
func serveUDP(t testing.TB, ns *nettest.NS, name string, addr netip.Addr) {
	t.Helper()
	var conn *net.UDPConn
	var err error
	ns.Run(func() { conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port))) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			conn.WriteToUDPAddrPort([]byte(name), from)
		}
	}()
}

// serveTCP answers every byte that comes on a connection to addr with the pod's
// name, one letter.
func serveTCP(t testing.TB, ns *nettest.NS, name string, addr netip.Addr) {
	t.Helper()
	var l *net.TCPListener
	var err error
	ns.Run(func() { l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, port))) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go func() {
				for one := make([]byte, 1); ; {
					if _, err := conn.Read(one); err != nil {
						return
					}
					conn.Write([]byte(name[:1]))
				}
			}()
		}
	}()
}

// flow is a connected socket of the client.
type flow struct {
	net.Conn
	pod string // that answered last
}

func (f *fabric) dial(network string, addr netip.Addr) *flow {
	f.t.Helper()
	var conn net.Conn
	var err error
	d := net.Dialer{Timeout: 5 * time.Second}
	f.client.Run(func() { conn, err = d.Dial(network, netip.AddrPortFrom(addr, port).String()) })
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	return &flow{Conn: conn}
}

// ask sends a byte and returns the name of the pod that answers.
func (fl *flow) ask() (string, error) {
	fl.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := fl.Write([]byte{'?'}); err != nil {
		return "", err
	}
	b := make([]byte, 1)
	n, err := fl.Read(b)
	return string(b[:n]), err
}

func (f *fabric) ask(addr netip.Addr, want string) {
	f.t.Helper()
	if got, err := f.dial("udp", addr).ask(); got != want || err != nil {
		f.t.Errorf("%v: answer %q of %q, %v", addr, got, want, err)
	}
}

// flows opens count flows, and counts those of each pod.
func (f *fabric) flows(network string, addr netip.Addr, count int) ([]*flow, map[string]int) {
	f.t.Helper()
	all, by := make([]*flow, count), map[string]int{}
	for i := range all {
		all[i] = f.dial(network, addr)
		var err error
		if all[i].pod, err = all[i].ask(); err != nil {
			f.t.Fatal(err)
		}
		by[all[i].pod]++
	}
	return all, by
}

// moved asks on all flows; from counts those that another pod answers than
// before, or that broke, by the pod that they were with.
func moved(all []*flow) (from map[string]int) {
	from = map[string]int{}
	for _, fl := range all {
		if pod, err := fl.ask(); err != nil || pod != fl.pod {
			from[fl.pod]++
			if err == nil {
				fl.pod = pod
			}
		}
	}
	return from
}

// A pod's coming and going moves no flow but its own.
func TestOnlyAPodsOwnFlowsMove(t *testing.T) {
	t.Parallel()
	const count = 200
	for _, tt := range []struct {
		network string
		addr    netip.Addr
	}{{"tcp", dns}, {"udp", dns}, {"tcp", dns4}, {"udp", dns4}} {
		t.Run(fmt.Sprint(tt.network, tt.addr), func(t *testing.T) {
			t.Parallel()
			f := newFabric(t)
			f.router.IP("-6", "route", "add", dns.String(), "via", "2001:db8:0:1::11")
			f.router.IP("route", "add", dns4.String(), "via", "192.0.2.11")
			c, _ := run(t, Config{Kernel: f.fib})
			join := func(name string) {
				ns, a := f.pod(name, both...)
				serveUDP(t, ns, name, tt.addr)
				serveTCP(t, ns, name, tt.addr)
				c.Send(a)
				c.Send(readiness(name, true, name+"1/0"))
			}
			for _, name := range []string{"a", "b", "c"} {
				join(name)
			}
			settle(t, c)
			all, by := f.flows(tt.network, tt.addr, count)
			t.Logf("flows by pod: %v", by)
			for _, name := range []string{"a", "b", "c"} {
				if by[name] < count/6 {
					t.Errorf("%d of %d flows are with %s", by[name], count, name)
				}
			}

			// A bucket that was last used in the tick in which it moved counts as
			// never used; so all are used again.
			if m := moved(all); len(m) != 0 {
				t.Errorf("though nothing happened, flows moved: %v", m)
			}

			// One comes: it gets flows that are new, or have been silent.
			join("d")
			settle(t, c)
			if m := moved(all); len(m) != 0 {
				t.Errorf("as a pod came, flows moved: %v", m)
			}

			// One is deleted: it keeps what it is busy with, and the others
			// theirs.
			c.Send(terminating(readiness("b", true, "b1/0")))
			settle(t, c)
			if m := moved(all); len(m) != 0 {
				t.Errorf("as a pod was deleted, flows moved: %v", m)
			}
			// It ends: its flows, and no other.
			c.Send(Exited{ContainerID: "b1"})
			settle(t, c)
			m := moved(all)
			if m["b"] != by["b"] || len(m) != 1 {
				t.Errorf("as a pod ended with %d flows, flows moved: %v", by["b"], m)
			}

			// New flows go to who is left, the one that came among them.
			c.Send(Exited{ContainerID: "c1"})
			settle(t, c)
			_, by = f.flows(tt.network, tt.addr, count)
			t.Logf("new flows by pod: %v", by)
			if by["b"]+by["c"] != 0 || by["a"] == 0 {
				t.Errorf("new flows by pod: %v", by)
			}
		})
	}
}

// A draining pod that is busy with nothing gets nothing.
func TestDrainingPodGetsNoNewFlows(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	f.router.IP("-6", "route", "add", dns.String(), "via", "2001:db8:0:1::11")
	c, _ := run(t, Config{Kernel: f.fib})
	for _, name := range []string{"a", "b", "c"} {
		ns, a := f.pod(name, both...)
		serveUDP(t, ns, name, dns)
		c.Send(a)
		c.Send(readiness(name, true, name+"1/0"))
	}
	c.Send(terminating(readiness("b", true, "b1/0")))
	settle(t, c)
	if _, by := f.flows("udp", dns, 200); by["b"] != 0 || by["a"] == 0 || by["c"] == 0 {
		t.Errorf("new flows by pod: %v", by)
	}
	for _, p := range status(t, c).Paths {
		if p.Pod.Name == "b" && p.Role != Draining {
			t.Errorf("%+v", p)
		}
	}
}

// Groups that are not resilient show what those that are are for.
func TestPlainGroupsMoveFlowsOfOthers(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	f.fib.plain = true
	f.router.IP("-6", "route", "add", dns.String(), "via", "2001:db8:0:1::11")
	c, _ := run(t, Config{Kernel: f.fib})
	names := []string{"a", "b", "c"}
	for _, name := range names {
		ns, a := f.pod(name, both...)
		serveUDP(t, ns, name, dns)
		c.Send(a)
		c.Send(readiness(name, true, name+"1/0"))
	}
	settle(t, c)
	all, by := f.flows("udp", dns, 200)
	c.Send(terminating(readiness("a", true, "a1/0")))
	settle(t, c)
	m := moved(all)
	t.Logf("of %v moved %v", by, m)
	if m["a"] != by["a"] {
		t.Errorf("a pod is not announced any more, and keeps %d of %d flows", by["a"]-m["a"], by["a"])
	}
	if m["b"]+m["c"] == 0 {
		t.Error("no flow of another pod moved: are these groups resilient?")
	}
	if s := status(t, c); s.Resilient || slices.ContainsFunc(s.Paths, func(p Path) bool { return p.Role == Draining }) {
		t.Errorf("status %+v", s)
	}
}
