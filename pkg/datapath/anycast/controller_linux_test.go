package anycast

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// attached is a pod of the node, as "a" is of pods[0], at dns.
func (n *node) attached(pod string, delay time.Duration) Attached {
	return sandbox(pod, n.links[pod[0]-'a'], delay)
}

// deaf is a kernel that reports no link, so that time in a bubble can pass: a
// wait for the kernel would keep it from that.
type deaf struct{ *FIB }

func (deaf) Watch(ctx context.Context, _ func(Event)) error {
	<-ctx.Done()
	return nil
}

// run starts a controller, and ends it with the test or by the function returned.
func run(t testing.TB, cfg Config) (c *Controller, stop func()) {
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	c = NewController(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return c, stop
}

// reported collects transitions as "a+Ready" and "a-NotReady".
type reported chan Transition

func (ch reported) add(all []Transition) {
	for _, t := range all {
		ch <- t
	}
}

func (ch reported) want(t testing.TB, want string) Transition {
	t.Helper()
	select {
	case tr := <-ch:
		if got := word(tr); got != want {
			t.Fatalf("reported %s, want %s", got, want)
		}
		return tr
	case <-time.After(5 * time.Second):
		t.Fatalf("nothing reported, want %s", want)
	}
	panic("not reached")
}

func (ch reported) wantNothing(t testing.TB) {
	t.Helper()
	select {
	case tr := <-ch:
		t.Fatalf("reported %s, want nothing", word(tr))
	default:
	}
}

func word(t Transition) string {
	sign := "-"
	if t.Announced {
		sign = "+"
	}
	return t.Pod.Name + sign + string(t.Reason)
}

func status(t testing.TB, c *Controller) Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestControllerFollowsPodsAndLinks(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2)
	transitions := make(reported, 100)
	c, _ := run(t, Config{Kernel: n.fib(t), OnTransitions: transitions.add})
	c.Send(n.attached("a", 0))
	c.Send(n.attached("b", 0))
	c.Send(readiness("a", true, "c1/0"))
	transitions.want(t, "a+Ready")
	wantRoutes(t, n, "2001:db8::53 1024 pod0", "2001:db8::53 512 pod0")
	c.Send(readiness("b", true, "d1/0"))
	transitions.want(t, "b+Ready")
	wantRoutes(t, n, "2001:db8::53 1024 pod0 pod1", "2001:db8::53 512 pod0 pod1")

	n.IP("link", "set", "pod0", "down")
	transitions.want(t, "a-LinkDown")
	wantRoutes(t, n, "2001:db8::53 1024 pod1", "2001:db8::53 512 pod1")
	n.IP("link", "set", "pod0", "up")
	transitions.want(t, "a+Ready")
	wantRoutes(t, n, "2001:db8::53 1024 pod0 pod1", "2001:db8::53 512 pod0 pod1")
	n.pods[0].IP("link", "set", "eth0", "down") // the carrier goes
	transitions.want(t, "a-LinkDown")

	c.Send(Exited{ContainerID: "d1"})
	transitions.want(t, "b-ContainerExited")
	wantRoutes(t, n, "2001:db8::53 1024 pod1")
	n.IP("link", "del", "pod1")
	c.Send(Detached{"sb" + fmt.Sprint(n.links[1])})
	s := status(t, c)
	if len(s.Paths) != 1 || s.Fault != "" || !s.Resilient {
		t.Errorf("status %+v", s)
	}
	wantRoutes(t, n)
	transitions.wantNothing(t)
}

// A controller's end leaves everything as it is, and another takes it over without
// a change, until a source has spoken.
func TestControllerTakesOverFromAnEarlierRun(t *testing.T) {
	t.Parallel()
	n := newNode(t, 3)
	attached := []Attached{n.attached("a", time.Hour), n.attached("b", 0)}
	first := make(reported, 100)
	c, stop := run(t, Config{Kernel: n.fib(t), Attached: []Attached{n.attached("a", 0), n.attached("b", 0), n.attached("c", 0)}, OnTransitions: first.add})
	c.Send(Resync{[]Readiness{readiness("a", true), readiness("b", true), readiness("c", true)}})
	for _, want := range []string{"a+Ready", "b+Ready", "c+Ready"} {
		first.want(t, want)
	}
	stop()
	both := []string{"2001:db8::53 1024 pod0 pod1", "2001:db8::53 512 pod0 pod1"}
	wantRoutes(t, n, "2001:db8::53 1024 pod0 pod1 pod2", "2001:db8::53 512 pod0 pod1 pod2")

	second := make(reported, 100)
	c, _ = run(t, Config{Kernel: n.fib(t), Attached: attached, OnTransitions: second.add})
	for _, p := range status(t, c).Paths {
		if !p.Announced || p.Reason != Kept {
			t.Errorf("taken over: %+v", p)
		}
	}
	wantRoutes(t, n, both...) // without the pod that has gone meanwhile
	c.Send(Resync{[]Readiness{readiness("a", true)}})
	second.want(t, "b-NotFound")
	second.wantNothing(t)
}

func TestControllerTriesAgainWhatTheKernelRefused(t *testing.T) {
	n := newNode(t, 2)
	fib := n.fib(t)
	n.IP("-6", "route", "add", dns.String(), "dev", "pod1", "proto", "static", "metric", "512")
	synctest.Test(t, func(t *testing.T) {
		transitions := make(reported, 100)
		other := n.attached("b", 0)
		other.Grants[0].Addr = dns4
		c, _ := run(t, Config{Kernel: deaf{fib}, Attached: []Attached{n.attached("a", 0), other}, OnTransitions: transitions.add})
		c.Send(readiness("a", true, "c1/0"))
		synctest.Wait()
		s := status(t, c)
		for _, p := range s.Paths {
			if p.Announced || p.Pod.Name == "a" && !strings.Contains(p.Detail, "2001:db8::53") {
				t.Errorf("the route is somebody else's, and the status %+v", p)
			}
		}
		if s.Fault == "" {
			t.Error("no fault")
		}
		// A route that was never in the kernel is not reported as withdrawn.
		c.Send(readiness("a", false, "c1/0"))
		settle(t, c)
		c.Send(readiness("a", true, "c1/0"))
		settle(t, c)
		transitions.wantNothing(t)
		// Another address is none the worse.
		c.Send(readiness("b", true, "d1/0"))
		transitions.want(t, "b+Ready")
		transitions.wantNothing(t)

		n.IP("-6", "route", "del", dns.String(), "proto", "static")
		time.Sleep(retryMax)
		tr := transitions.want(t, "a+Ready")
		if l := tr.Latency(); l < retryMin || l > retryMax {
			t.Errorf("reported after %v", l)
		}
		if s := status(t, c); s.Fault != "" || !s.Paths[0].Announced || !s.Paths[1].Announced {
			t.Errorf("status %+v", s)
		}
	})
}

func TestControllerHoldsTheAnnounceDelay(t *testing.T) {
	n := newNode(t, 1)
	fib := n.fib(t)
	synctest.Test(t, func(t *testing.T) {
		transitions := make(reported, 100)
		c, _ := run(t, Config{Kernel: deaf{fib}, Attached: []Attached{n.attached("a", 10*time.Second)}, OnTransitions: transitions.add})
		begin := time.Now()
		c.Send(readiness("a", true, "c1/0"))
		time.Sleep(9 * time.Second)
		c.Send(readiness("a", false, "c1/0"))
		time.Sleep(time.Second)
		c.Send(readiness("a", true, "c1/0"))
		time.Sleep(9 * time.Second)
		synctest.Wait()
		transitions.wantNothing(t)
		wantRoutes(t, n)
		time.Sleep(time.Second)
		if tr := transitions.want(t, "a+Ready"); tr.Applied.Sub(begin) != 20*time.Second || tr.Latency() != 0 {
			t.Errorf("announced after %v, %v late", tr.Applied.Sub(begin), tr.Latency())
		}
		c.Send(readiness("a", false, "c1/0"))
		if tr := transitions.want(t, "a-NotReady"); tr.Latency() != 0 {
			t.Errorf("withdrawn after %v", tr.Latency())
		}
		wantRoutes(t, n, "2001:db8::53 1024 pod0")
		time.Sleep(LingerTime)
		synctest.Wait()
		wantRoutes(t, n)
	})
}

// What went on in the kernel without word of it is found when it is in the way.
func TestControllerRecoversFromWhatItWasNotTold(t *testing.T) {
	n := newNode(t, 2)
	fib := n.fib(t)
	synctest.Test(t, func(t *testing.T) {
		transitions := make(reported, 100)
		c, _ := run(t, Config{Kernel: deaf{fib}, Attached: []Attached{n.attached("a", 0), n.attached("b", 0)}, OnTransitions: transitions.add})
		c.Send(readiness("a", true, "c1/0"))
		transitions.want(t, "a+Ready")
		n.IP("link", "set", "pod0", "down")
		c.Send(readiness("b", true, "d1/0"))
		transitions.want(t, "a-LinkDown")
		transitions.want(t, "b+Ready")
		wantRoutes(t, n, "2001:db8::53 1024 pod1", "2001:db8::53 512 pod1")

		n.IP("link", "set", "pod1", "down")
		n.IP("link", "set", "pod1", "up") // what hung on it does not come back
		n.IP("link", "set", "pod0", "up")
		links, err := fib.Links()
		if err != nil {
			t.Fatal(err)
		}
		c.Send(links) // as when some were missed
		transitions.want(t, "a+Ready")
		wantRoutes(t, n, "2001:db8::53 1024 pod0 pod1", "2001:db8::53 512 pod0 pod1")
		if s := status(t, c); s.Fault != "" {
			t.Error(s.Fault)
		}
	})
}

// Word of a link's being down that is late, as of when it was made, changes
// nothing; but what the kernel dropped meanwhile comes back.
func TestControllerChecksThatALinkIsDown(t *testing.T) {
	n := newNode(t, 1)
	fib := n.fib(t)
	routes := []string{"192.0.2.53 1024 pod0", "192.0.2.53 512 pod0", "2001:db8::53 1024 pod0", "2001:db8::53 512 pod0"}
	synctest.Test(t, func(t *testing.T) {
		transitions := make(reported, 100)
		a := n.attached("a", 0)
		a.Grants = append(a.Grants, Grant{Addr: dns4})
		c, _ := run(t, Config{Kernel: deaf{fib}, Attached: []Attached{a}, OnTransitions: transitions.add})
		c.Send(readiness("a", true, "c1/0"))
		transitions.want(t, "a+Ready")
		transitions.want(t, "a+Ready")
		watch := n.IP("nexthop")
		c.Send(Link{Index: n.links[0]})
		settle(t, c)
		if after := n.IP("nexthop"); after != watch {
			t.Errorf("before: %s, after: %s", watch, after)
		}
		n.IP("link", "set", "pod0", "down")
		n.IP("link", "set", "pod0", "up")
		wantRoutes(t, n)
		c.Send(Link{Index: n.links[0]})
		c.Send(Link{Index: n.links[0], Up: true})
		settle(t, c)
		wantRoutes(t, n, routes...)
		transitions.wantNothing(t)
	})
}

func TestControllerEndsWhenTheKernelCannotBeRead(t *testing.T) {
	t.Parallel()
	n := newNode(t, 0)
	f := n.fib(t)
	f.conn.Close()
	if err := NewController(Config{Kernel: f}).Run(t.Context()); err == nil {
		t.Error("no error of a closed socket")
	}
}

// grants are count addresses.
func grants(count int) []Grant {
	gs := make([]Grant, count)
	for i := range gs {
		gs[i].Addr = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(i >> 8), 15: byte(i)})
	}
	return gs
}
