package wiring

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

var errInjected = errors.New("injected")

// A fault strikes at one request, counted from 0 over all that a Host makes.
type fault struct {
	at int
	// dead: from that request on nothing is carried out, as if the agent had
	// been killed. Otherwise only that request is refused.
	dead bool
	// before is called when the request's turn has come.
	before func()
	seen   int
}

// inject makes h suffer f; f.seen counts its requests.
func inject(h *Host, f *fault) {
	h.exec = func(c *rtnl.Conn, ms []rtnl.Message) []error {
		errs := make([]error, len(ms))
		failed := false
		for i, m := range ms {
			n := f.seen
			f.seen++
			if n == f.at && f.before != nil {
				f.before()
			}
			switch {
			case n == f.at && f.before == nil, n > f.at && f.dead:
				errs[i] = fmt.Errorf("%s: %w", m.What, errInjected)
			default:
				if e := c.Do(m); e != nil {
					errs[i] = e[0]
				}
			}
			failed = failed || errs[i] != nil
		}
		if !failed {
			return nil
		}
		return errs
	}
}

const never = 1 << 30

// wholeWiring is what the kernel holds of a pod wired without trouble, and how
// many requests that took.
func wholeWiring(t *testing.T) (host, pod string, requests int) {
	t.Helper()
	node := newNode(t)
	p := node.podWith(t, "c0ffee", "2001:db8:100::5", "10.244.0.5", "2001:db8:a::53")
	f := &fault{at: never}
	inject(node.Host, f)
	node.attach(t, p)
	if f.seen < 15 {
		t.Fatalf("%d requests: not all go through exec", f.seen)
	}
	return listing(node.ns), listing(p.NS), f.seen
}

// Wherever the agent dies, the next one's Attach ends in the same state.
func TestAttachConvergesAfterDeathAtEveryStep(t *testing.T) {
	t.Parallel()
	host, pod, requests := wholeWiring(t)
	for at := range requests {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			p := node.podWith(t, "c0ffee", "2001:db8:100::5", "10.244.0.5", "2001:db8:a::53")
			killed := node.open(t)
			inject(killed, &fault{at: at, dead: true})
			_, err := killed.Attach(p.File(), p.Attachment)
			if !errors.Is(err, errInjected) {
				t.Fatalf("error %v, want the injected one", err)
			}
			if at > 0 && !strings.Contains(err.Error(), "undo: ") {
				t.Errorf("error %q does not say that something is left", err)
			}
			node.attach(t, p)
			same(t, "host", node.ns, host)
			same(t, "pod", p.NS, pod)
		})
	}
}

// Whatever the kernel refuses, nothing of the attempt is left, and the error
// says which pod and which of its parts.
func TestAttachUndoesWhatItDid(t *testing.T) {
	t.Parallel()
	_, _, requests := wholeWiring(t)
	for at := range requests {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			p := node.podWith(t, "c0ffee", "2001:db8:100::5", "10.244.0.5", "2001:db8:a::53")
			host, pod := listing(node.ns), listing(p.NS)
			inject(node.Host, &fault{at: at})
			_, err := node.Attach(p.File(), p.Attachment)
			if !errors.Is(err, errInjected) {
				t.Fatalf("error %v, want the injected one", err)
			}
			if !strings.Contains(err.Error(), "test/c0ffee") && at > 0 {
				t.Errorf("error %q does not name the pod", err)
			}
			same(t, "host", node.ns, host)
			// The loopback was up before; everything else went with the link.
			same(t, "pod", p.NS, pod)
		})
	}
}

// The failed repair of a link that was there leaves it, without the routes that
// the repair had added.
func TestFailedRepairLeavesTheLink(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p := node.podWith(t, "c0ffee", "2001:db8:100::5", "10.244.0.5")
	node.attach(t, p)
	p.IP("link", "set", "eth0", "mtu", "1400")
	node.ns.IP("route", "del", "2001:db8:100::5", "dev", p.HostIf)
	node.ns.IP("route", "del", "10.244.0.5", "dev", p.HostIf)
	host := listing(node.ns)
	inject(node.Host, &fault{at: 3}) // create, mtu, route; then the second route
	if _, err := node.Attach(p.File(), p.Attachment); !errors.Is(err, errInjected) {
		t.Fatalf("error %v, want the injected one", err)
	}
	same(t, "host", node.ns, host)
	node.attach(t, p)
	if err := node.Check(p.File(), p.Attachment); err != nil {
		t.Error(err)
	}
}

func TestAttachAgainChangesNothing(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p := node.pod(t)
	first := node.attach(t, p)
	host, pod := listing(node.ns), listing(p.NS)
	f := &fault{at: never}
	inject(node.Host, f)
	if second := node.attach(t, p); second != first {
		t.Errorf("second answer %+v, first %+v", second, first)
	}
	if f.seen != 1 {
		t.Errorf("%d requests, want only the attempt to create", f.seen)
	}
	same(t, "host", node.ns, host)
	same(t, "pod", p.NS, pod)
}

// An attachment that has changed replaces what the old one said, and leaves what
// others added alone.
func TestAttachReplacesAddresses(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	p := node.podWith(t, "c0ffee", "2001:db8:100::5", "10.244.0.5")
	node.attach(t, p)
	p.IP("address", "add", "172.16.0.1/32", "dev", "eth0")
	p.IP("route", "add", "172.16.1.0/24", "dev", "eth0")
	node.ns.IP("route", "add", "2001:db8:a::53", "dev", p.HostIf, "proto", "85", "metric", "512")

	p.Addrs = parseAddrs("2001:db8:100::6", "10.244.0.6")
	p.Routed = p.Addrs
	node.attach(t, p)
	if err := node.Check(p.File(), p.Attachment); err != nil {
		t.Error(err)
	}
	host, pod := listing(node.ns), listing(p.NS)
	for _, old := range []string{"2001:db8:100::5", "10.244.0.5"} {
		if strings.Contains(pod, old) {
			t.Errorf("the pod still has %s:\n%s", old, pod)
		}
		if _, err := node.ns.Try("ip", "route", "get", old, "from", "192.0.2.1", "iif", p.HostIf); err == nil {
			t.Errorf("the host still routes %s", old)
		}
	}
	for _, theirs := range []string{"172.16.0.1/32", "172.16.1.0/24"} {
		if !strings.Contains(pod, theirs) {
			t.Errorf("the pod lost %s that flock had not added:\n%s", theirs, pod)
		}
	}
	if !strings.Contains(host, "2001:db8:a::53 dev "+p.HostIf) {
		t.Errorf("the announced route, another's, is gone:\n%s", host)
	}
}

// A link on which nothing flows is not handed out.
func TestAttachWithoutCarrier(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p := node.pod(t)
	host := listing(node.ns)
	node.readyTimeout = 50 * time.Millisecond
	exec := node.exec
	node.exec = func(c *rtnl.Conn, ms []rtnl.Message) []error {
		errs := exec(c, ms)
		p.Try("ip", "link", "set", "eth0", "down")
		return errs
	}
	_, err := node.Attach(p.File(), p.Attachment)
	if err == nil || !strings.Contains(err.Error(), "has no carrier") || !strings.Contains(err.Error(), p.Alias) {
		t.Errorf("error %v, want one about the carrier of %s", err, p.Alias)
	}
	same(t, "host", node.ns, host)
}

// The pod's end, and with it the host's, may vanish at any moment: Attach says
// so, and leaves nothing.
func TestLinkVanishesAtEveryStep(t *testing.T) {
	t.Parallel()
	_, _, requests := wholeWiring(t)
	for at := 1; at <= requests; at++ {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			p := node.podWith(t, "c0ffee", "2001:db8:100::5", "10.244.0.5", "2001:db8:a::53")
			host := listing(node.ns)
			f := &fault{at: at, before: func() { p.IP("link", "del", "eth0") }}
			if at == requests {
				f.before, f.at = nil, never
				exec := node.exec
				inject(node.Host, f)
				inner := node.exec
				node.exec = func(c *rtnl.Conn, ms []rtnl.Message) []error {
					errs := inner(c, ms)
					if f.seen == requests {
						p.IP("link", "del", "eth0")
						node.exec = exec
					}
					return errs
				}
			} else {
				inject(node.Host, f)
			}
			if _, err := node.Attach(p.File(), p.Attachment); !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("error %v, want one about a link that is not there", err)
			}
			same(t, "host", node.ns, host)
		})
	}
}

// When the sandbox's namespace goes, the kernel takes the link with it.
func TestNamespaceVanishes(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p := node.pod(t)
	node.attach(t, p)
	p.Delete()
	nettest.Await(t, "the link goes with the namespace", func() bool {
		links, err := node.List()
		if err != nil {
			t.Fatal(err)
		}
		return len(links) == 0
	})
	if _, ok, err := node.TakeDown(p.ContainerID); ok || err != nil {
		t.Errorf("unroute = %t, %v; want nothing to do", ok, err)
	}
	if _, err := node.Attach(p.File(), p.Attachment); err == nil {
		t.Error("a closed namespace was attached")
	}
}

// same fails the test if the namespace does not come to hold what want lists; the
// kernel's workers may have something left to do.
func same(t *testing.T, what string, ns *nettest.NS, want string) {
	t.Helper()
	got := listing(ns)
	for deadline := time.Now().Add(3 * time.Second); got != want && time.Now().Before(deadline); got = listing(ns) {
		time.Sleep(10 * time.Millisecond)
	}
	if got == want {
		return
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
	for _, l := range wantLines {
		if !slices.Contains(gotLines, l) {
			t.Errorf("%s lacks:  %s", what, l)
		}
	}
	for _, l := range gotLines {
		if !slices.Contains(wantLines, l) {
			t.Errorf("%s has besides:  %s", what, l)
		}
	}
}
