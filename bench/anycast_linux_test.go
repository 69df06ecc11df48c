package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
)

// netNSFor is a namespace with its loopback up.
func netNSFor(t *testing.T) *netNS {
	t.Helper()
	ns := must(newNetNS())
	t.Cleanup(func() { ns.Close() })
	ip(t, ns, "link", "set", "lo", "up")
	return ns
}

func ip(t *testing.T, ns *netNS, args ...string) {
	t.Helper()
	err := ns.Do(func() error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Logf("ip %s: %s", strings.Join(args, " "), out)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// collect is a place for sightings of several goroutines.
type collect struct {
	mu   sync.Mutex
	all  []sighting
	more chan struct{}
}

func (c *collect) add(s sighting) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, s)
	c.more <- struct{}{}
}

// Only notifications of IPv6 host routes are reported; at the node only those of
// announced routes.
func TestWatchRoutes(t *testing.T) {
	ns := netNSFor(t)
	for what, want := range map[string]string{
		routed:    "2001:db8::1=true 2001:db8::2=true 2001:db8::3=true 2001:db8::1=false 2001:db8::2=false 2001:db8::3=false",
		installed: "2001:db8::2=true 2001:db8::3=true 2001:db8::2=false 2001:db8::3=false",
	} {
		t.Run(what, func(t *testing.T) {
			fd, err := listenRoutes(ns.Path(), mainRoutes)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			c := &collect{more: make(chan struct{}, 100)}
			ended := make(chan error)
			go func() { ended <- watchRoutes(ctx, fd, mainRoutes, what, c.add) }()
			before := monotonic()
			for _, do := range []string{"add", "del"} {
				for _, route := range []string{"2001:db8:1::/64 metric 512", "2001:db8::1 metric 1024", "2001:db8::2 metric 512", "2001:db8::3 metric 640"} {
					ip(t, ns, append([]string{"-6", "route", do, "unreachable"}, strings.Fields(route)...)...)
				}
			}
			for range strings.Fields(want) {
				<-c.more
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			var got []string
			for _, s := range c.all {
				if s.What != what || s.At <= before || s.At > monotonic() {
					t.Errorf("sighting %+v", s)
				}
				got = append(got, fmt.Sprintf("%s=%t", s.Addr, s.Yes))
			}
			if got := strings.Join(got, " "); got != want {
				t.Errorf("saw %s, want %s", got, want)
			}
		})
	}
}

// The prober tries an address from the request on, whatever routes there are, and
// reports the first connection.
func TestProber(t *testing.T) {
	ns := netNSFor(t)
	reached := make(chan netip.Addr, 10)
	p := newProber(ns.Path(), func(addr netip.Addr, _ int64) { reached <- addr })
	failed := make(map[string]int) // run's alone until it has ended
	wasRefused := make(chan struct{})
	began := monotonic()
	p.failed = func(addr netip.Addr, at int64, what string) {
		failed[what]++
		if what == refused && failed[what] == 1 {
			close(wasRefused)
		}
		if at < began || at > monotonic() {
			t.Errorf("a connection to %s is said to have begun at %d, the test at %d", addr, at, began)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.run(ctx) }()
	addr := netip.MustParseAddr("2001:db8::53")
	p.try(netip.MustParseAddr("2001:db8::54")) // has no route
	p.try(addr)
	for _, step := range [][]string{
		{"-6", "route", "add", "unreachable", "default"},
		{"-6", "route", "add", "blackhole", addr.String(), "metric", "1"},
	} {
		ip(t, ns, step...)
		select {
		case a := <-reached:
			t.Fatalf("%s was reached without a route", a)
		case <-time.After(20 * time.Millisecond):
		}
	}
	ip(t, ns, "address", "add", addr.String()+"/128", "dev", "lo", "nodad")
	ip(t, ns, "-6", "route", "del", "blackhole", addr.String(), "metric", "1") // now it is refused
	select {
	case <-wasRefused:
	case <-time.After(defaultTryFor):
		t.Error("no connection was refused")
	}
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = net.ListenTCP("tcp6", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, cluster.EchoPort)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	select {
	case a := <-reached:
		if a != addr {
			t.Errorf("%s was reached", a)
		}
	case <-time.After(defaultTryFor):
		t.Error("not reached")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if failed[unreachable] == 0 {
		t.Errorf("connections failed so: %v; want some of %s", failed, unreachable)
	}
}

func TestSightingsAwait(t *testing.T) {
	a, b := netip.MustParseAddr("2001:db8::a"), netip.MustParseAddr("2001:db8::b")
	s := &sightings{more: make(chan struct{})}
	for i, seen := range []sighting{{What: routed, Addr: a, Yes: true}, {What: routed, Addr: a}, {What: routed, Addr: b}, {What: published, Addr: a}, {What: routed, Addr: a}} {
		seen.At = int64(i + 1)
		s.add(seen, nil)
	}
	gone := marksOf(routed, false, []netip.Addr{a, b})
	got, err := s.await(t.Context(), 0, time.Minute, gone...)
	if err != nil || got[gone[0]] != 2 || got[gone[1]] != 3 {
		t.Errorf("the first of each: %v, %v", got, err)
	}
	got, err = s.await(t.Context(), 2, time.Minute, gone[0])
	if err != nil || got[gone[0]] != 5 {
		t.Errorf("the first after the second: %v, %v", got, err)
	}
	if _, err := s.await(t.Context(), 3, time.Millisecond, gone...); err == nil || !strings.Contains(err.Error(), "1 of 2 things were not seen within 1ms: routed=false of 2001:db8::b") {
		t.Errorf("what does not come: %v", err)
	}
	go s.add(sighting{At: 6, What: routed, Addr: b}, nil)
	if got, err := s.await(t.Context(), 3, time.Minute, gone...); err != nil || got[gone[1]] != 6 {
		t.Errorf("what comes later: %v, %v", got, err)
	}
	broken := errors.New("broken")
	go s.add(sighting{}, broken)
	if _, err := s.await(t.Context(), 6, time.Minute, gone...); !errors.Is(err, broken) {
		t.Errorf("the observer's end: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.err = nil
	if _, err := s.await(ctx, 6, time.Minute, gone...); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestTerminated(t *testing.T) {
	const log = `2026-11-23T23:40:22.1Z stdout F {"event":"listening","pod":"p","monotonic":1}
2026-11-23T23:40:22.1Z stderr F panic: not JSON
2026-11-23T23:40:23.1Z stdout F {"event":"terminating","pod":"p","monotonic":7}
2026-11-23T23:40:23.2Z stdout F {"event":"ended","pod":"p","monotonic":9}
`
	if at, err := terminated([]byte(log)); at != 7 || err != nil {
		t.Errorf("at %d, %v", at, err)
	}
	if _, err := terminated([]byte(log[:100])); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no SIGTERM: %v", err)
	}
}

// What the baseline writes is announced, as its router's kernel has it, once it is
// configured; and nothing is left.
func TestBaselineAnnounces(t *testing.T) {
	b, err := startBaseline(t.Context(), filepath.Join(t.TempDir(), "none.sock"), "x")
	if err != nil {
		t.Fatal(err)
	}
	dir := b.dir
	defer func() {
		// It polls every two seconds: whether it has found out that there is no
		// kubelet is no matter here.
		_ = b.close()
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}()
	fd, err := listenRoutes(b.router.Path(), mainRoutes)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := &collect{more: make(chan struct{}, 100)}
	ended := make(chan error)
	go func() { ended <- watchRoutes(ctx, fd, mainRoutes, routedBase, c.add) }()
	// The route to an own address, as when duplicate address detection ends, is none
	// that was announced.
	ip(t, b.router, "address", "add", "2001:db8:9::1/64", "dev", "eth0", "nodad")
	addr := anycastAddr(1, 300)
	for _, addrs := range [][]netip.Addr{{addr}, nil} {
		if err := b.write(addrs); err != nil {
			t.Fatal(err)
		}
		if out, err := b.birdc(ctx, "configure"); err != nil || !strings.Contains(out, "Reconfigured") {
			t.Fatalf("%v: %s", err, out)
		}
		<-c.more
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	var got []bool
	for _, s := range c.all {
		if s.Addr != addr {
			t.Errorf("address %s", s.Addr)
		}
		got = append(got, s.Yes)
	}
	if !slices.Equal(got, []bool{true, false}) {
		t.Errorf("its router's kernel says %t", got)
	}
}

func TestAnycastNeedsFlock(t *testing.T) {
	for _, b := range []Bench{anycastFlips, anycastThousand} {
		_, err := b.Run(t.Context(), &cluster.Lab{Settings: cluster.Settings{CNI: cluster.PTP}}, 1)
		if err == nil || !strings.Contains(err.Error(), "--cni flock") {
			t.Errorf("%s in a lab with another CNI: %v", b.Name, err)
		}
	}
}
