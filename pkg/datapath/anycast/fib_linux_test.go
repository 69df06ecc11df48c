package anycast

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// node is a namespace with links to pods' namespaces, the first pods[0] by links[0].
type node struct {
	*nettest.NS
	pods  []*nettest.NS
	links []int
}

func newNode(t testing.TB, pods int) *node {
	n := &node{NS: nettest.New(t)}
	n.Sysctl("ipv6/conf/all/forwarding", "1")
	n.Sysctl("ipv4/ip_forward", "1")
	for i := range pods {
		n.addPod(t, i)
	}
	return n
}

func (n *node) addPod(t testing.TB, i int) {
	pod := nettest.New(t)
	n.Veth(n.link(i), pod, "eth0")
	n.pods = append(n.pods, pod)
	n.links = append(n.links, n.index(t, i))
}

func (n *node) link(i int) string { return fmt.Sprint("pod", i) }

func (n *node) index(t testing.TB, i int) (index int) {
	var name string
	out := n.IP("-o", "link", "show", n.link(i))
	if _, err := fmt.Sscanf(out, "%d: %s", &index, &name); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return index
}

func (n *node) fib(t testing.TB) *FIB {
	t.Helper()
	var f *FIB
	var err error
	n.Run(func() { f, err = OpenFIB() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// via is an entry of the node's pods.
func (n *node) via(announced bool, pods ...int) Entry {
	e := Entry{Announced: announced, Local: len(pods) > 0}
	for _, p := range pods {
		e.Members = append(e.Members, Member{Link: n.links[p]})
	}
	return e
}

func (n *node) drains(e Entry, pod int) Entry {
	e.Members = append(slices.Clone(e.Members), Member{Link: n.links[pod], Drains: true})
	return e
}

// become applies what makes the kernel have want, and reads it back.
func become(t testing.TB, f *FIB, want map[netip.Addr]Entry) {
	t.Helper()
	if err := f.Apply(Plan(want, f.Actual())); err != nil {
		t.Fatal(err)
	}
}

// routes are those of the node's kernel that are flock's, as ip(8) shows them:
// "dst metric dev dev".
func (n *node) routes() []string {
	var found []string
	for _, family := range []string{"-6", "-4"} {
		for line := range strings.Lines(n.IP(family, "-o", "route", "show", "proto", "85")) {
			words := strings.Fields(line)
			metric, devs := "", ""
			for i, w := range words {
				switch w {
				case "metric":
					metric = words[i+1]
				case "dev":
					devs += " " + words[i+1]
				}
			}
			found = append(found, words[0]+" "+metric+devs)
		}
	}
	slices.Sort(found)
	return found
}

func wantRoutes(t testing.TB, n *node, want ...string) {
	t.Helper()
	if got := n.routes(); !slices.Equal(got, want) {
		t.Errorf("routes %q, want %q", got, want)
	}
}

func TestFIBRoutes(t *testing.T) {
	t.Parallel()
	n := newNode(t, 3)
	f := n.fib(t)
	if !f.Resilient() {
		t.Error("this kernel has resilient groups, and the FIB does not know")
	}
	for _, addr := range []netip.Addr{dns, dns4} {
		for _, step := range []struct {
			want   Entry
			routes []string
		}{
			{n.via(true, 0), []string{"%s 1024 pod0", "%s 512 pod0"}},
			{n.via(true, 0, 1, 2), []string{"%s 1024 pod0 pod1 pod2", "%s 512 pod0 pod1 pod2"}},
			{n.drains(n.via(true, 1, 2), 0), []string{"%s 1024 pod1 pod2 pod0", "%s 512 pod1 pod2 pod0"}},
			{n.via(true, 1), []string{"%s 1024 pod1", "%s 512 pod1"}},
			{n.via(false, 1), []string{"%s 1024 pod1"}},
			{n.via(true, 1), []string{"%s 1024 pod1", "%s 512 pod1"}},
			{Entry{}, nil},
		} {
			become(t, f, map[netip.Addr]Entry{addr: step.want})
			var want []string
			for _, r := range step.routes {
				want = append(want, fmt.Sprintf(r, addr))
			}
			wantRoutes(t, n, want...)
		}
	}
	if left := n.IP("nexthop"); left != "" {
		t.Errorf("nexthops are left: %s", left)
	}
}

// After any sequence of changes, links that go among them, the FIB has
// recorded what the kernel has.
func TestFIBRecordsWhatTheKernelHas(t *testing.T) {
	t.Parallel()
	n := newNode(t, 4)
	f, other := n.fib(t), n.fib(t)
	r := rand.New(rand.NewPCG(7, 7))
	addrs := []netip.Addr{dns, dns4, netip.MustParseAddr("2001:db8::54"), netip.MustParseAddr("192.0.2.54")}
	for step := range 150 {
		if p := r.IntN(4); r.IntN(8) == 0 {
			n.IP("link", "set", n.link(p), "down")
			f.LinkDown(n.links[p])
			n.IP("link", "set", n.link(p), "up")
		}
		want := map[netip.Addr]Entry{}
		for _, addr := range addrs {
			var e Entry
			drains := false
			for _, p := range r.Perm(4)[:r.IntN(5)] {
				e.Members = append(e.Members, Member{Link: n.links[p], Drains: drains})
				drains = drains || r.IntN(3) == 0
			}
			e.Local = len(e.Members) > 0
			e.Announced = e.Local && r.IntN(3) > 0
			if r.IntN(4) > 0 {
				want[addr] = e
			}
		}
		become(t, f, want)
		for addr, e := range want {
			if len(e.Members) > 0 && !reflect.DeepEqual(f.Actual()[addr], e) {
				t.Fatalf("step %d: %v is recorded as %v, want %v", step, addr, f.Actual()[addr], e)
			}
		}
		if _, err := other.Load(); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(other.Actual(), f.Actual()) {
			t.Fatalf("step %d: the kernel has %v, recorded %v", step, other.Actual(), f.Actual())
		}
		if want := len(f.groups) + len(f.hops); strings.Count(n.IP("nexthop"), "\n") != want {
			t.Fatalf("step %d: want %d nexthops, there are:\n%s", step, want, n.IP("nexthop"))
		}
	}
	become(t, f, maps.Collect(func(yield func(netip.Addr, Entry) bool) {
		for addr := range maps.Clone(f.Actual()) {
			yield(addr, Entry{})
		}
	}))
	if left := n.IP("nexthop"); left != "" || len(f.ids) != 0 {
		t.Errorf("left: %s and IDs %v", left, f.ids)
	}
}

func TestFIBWithoutResilientGroups(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2)
	f := n.fib(t)
	f.plain = true
	become(t, f, map[netip.Addr]Entry{dns: n.via(true, 0, 1), dns4: n.via(true, 1)})
	wantRoutes(t, n, "192.0.2.53 1024 pod1", "192.0.2.53 512 pod1", "2001:db8::53 1024 pod0 pod1", "2001:db8::53 512 pod0 pod1")
	if groups := n.IP("nexthop", "list", "groups"); strings.Contains(groups, "resilient") {
		t.Errorf("there is a resilient group: %s", groups)
	}
	become(t, f, map[netip.Addr]Entry{dns: n.via(true, 1), dns4: {}})
	wantRoutes(t, n, "2001:db8::53 1024 pod1", "2001:db8::53 512 pod1")
}

// Nothing but flock's own nexthops and the routes on them is touched, even where
// it looks alike.
func TestFIBLeavesWhatIsNotItsOwn(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2)
	n.IP("-6", "route", "add", "2001:db8::1/128", "dev", "pod0", "proto", "85", "metric", "1024") // a pod's
	n.IP("-6", "route", "add", "unreachable", "2001:db8:1::/64", "proto", "85", "metric", "512")  // a summary
	n.IP("-6", "route", "add", dns.String(), "dev", "pod1", "proto", "static", "metric", "512")
	n.IP("-6", "nexthop", "add", "id", fmt.Sprint(kernel.FirstNexthop), "dev", "pod0") // in the range, of another
	n.IP("-6", "nexthop", "add", "id", "7", "dev", "pod0", "proto", "85")              // flock's number, another's range
	n.IP("nexthop", "add", "id", "8", "group", "7", "proto", "85")                     //
	before := n.IP("-6", "route") + n.IP("nexthop")
	// Routes of flock's protocol are flock's, and these belong to no address.
	n.IP("-6", "route", "add", "2001:db8::2", "nhid", "8", "proto", "85")
	n.IP("-6", "route", "add", "2001:db8::3", "nhid", fmt.Sprint(kernel.FirstNexthop), "proto", "85")

	f := n.fib(t)
	if len(f.Actual()) != 0 {
		t.Errorf("takes %v for its own", f.Actual())
	}
	other := netip.MustParseAddr("2001:db8::4")
	become(t, f, map[netip.Addr]Entry{other: n.via(true, 0, 1)})
	become(t, f, map[netip.Addr]Entry{other: {}})
	if after := n.IP("-6", "route") + n.IP("nexthop"); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}

	// A foreign route in the way is an error that says so, not overwritten.
	err := f.Apply(Plan(map[netip.Addr]Entry{dns: n.via(true, 0)}, f.Actual()))
	if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "2001:db8::53") {
		t.Errorf("a foreign route in the way: %v", err)
	}
}

// A kill between any two requests leaves what the next Load understands or sweeps.
func TestFIBLoadSweepsWhatAKillLeft(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2)
	id := func(i int) string { return fmt.Sprint(kernel.FirstNexthop + i) }
	n.IP("-6", "nexthop", "add", "id", id(1), "dev", "pod0", "proto", "85") // used below
	n.IP("-6", "nexthop", "add", "id", id(2), "dev", "pod1", "proto", "85") // of no group
	n.IP("nexthop", "add", "id", id(3), "group", id(1)+",255", "type", "resilient", "buckets", "128", "proto", "85")
	n.IP("nexthop", "add", "id", id(4), "group", id(1)+",255", "type", "resilient", "buckets", "128", "proto", "85") // of no route
	n.IP("-6", "route", "add", dns.String(), "nhid", id(3), "proto", "85", "metric", "1024")
	f := n.fib(t)
	want := map[netip.Addr]Entry{dns: {Local: true, Members: []Member{{Link: n.links[0]}}}}
	if !reflect.DeepEqual(f.Actual(), want) {
		t.Errorf("understands %v, want %v", f.Actual(), want)
	}
	if got := strings.Count(n.IP("nexthop"), "\n"); got != 2 {
		t.Errorf("want the two nexthops in use, have:\n%s", n.IP("nexthop"))
	}
	become(t, f, map[netip.Addr]Entry{dns: n.via(true, 1)})
	wantRoutes(t, n, "2001:db8::53 1024 pod1", "2001:db8::53 512 pod1")
}

func TestFIBAfterWhatItDidNotSee(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2)
	f := n.fib(t)
	become(t, f, map[netip.Addr]Entry{dns: n.via(true, 0, 1), dns4: n.via(true, 0)})
	n.IP("link", "set", "pod0", "down")

	// What is to be deleted and is gone is no error.
	if err := f.Apply(Plan(map[netip.Addr]Entry{dns4: {}}, f.Actual())); err != nil {
		t.Error(err)
	}
	// A member that is gone is.
	err := f.Apply(Plan(map[netip.Addr]Entry{dns4: n.via(true, 0)}, f.Actual()))
	if err == nil {
		t.Error("no error about a link that is down")
	}
	if _, err := f.Load(); err != nil {
		t.Fatal(err)
	}
	if want := map[netip.Addr]Entry{dns: n.via(true, 1)}; !reflect.DeepEqual(f.Actual(), want) {
		t.Errorf("has %v, want %v", f.Actual(), want)
	}
	links, err := f.Links()
	if err != nil {
		t.Fatal(err)
	}
	if links.Up[n.links[0]] || !links.Up[n.links[1]] {
		t.Errorf("links up: %v, want %d, not %d", links.Up, n.links[1], n.links[0])
	}
}

// Where the daemon could not read the routes there are none, and that is said; links
// are followed, and what does not need anycast goes on.
func TestUnfitKernelServesWhatIsNotAnycast(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1)
	n.Sysctl("ipv4/nexthop_compat_mode", "0")
	f := n.fib(t)
	if err := f.Unfit(); err == nil || !strings.Contains(err.Error(), "nexthop_compat_mode") {
		t.Errorf("unfit: %v", err)
	}
	transitions := make(reported, 100)
	c, _ := run(t, Config{Kernel: f, Attached: []Attached{n.attached("a", 0)}, OnTransitions: transitions.add})
	c.Send(readiness("a", true, "ca/0"))
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Paths) == 0 {
		t.Fatal("no paths")
	}
	for _, p := range s.Paths {
		if p.Announced || p.Reason != Ready || !strings.Contains(p.Detail, "nexthop_compat_mode") {
			t.Errorf("path %+v: want it not announced, with the sysctl's name", p)
		}
	}
	if links, err := f.Links(); err != nil || !links.Up[n.links[0]] {
		t.Errorf("links %v, %v", links, err)
	}
	select {
	case tr := <-transitions:
		t.Errorf("reported %s", word(tr))
	default:
	}
	if routes := n.IP("-6", "route", "show", "proto", "85"); routes != "" {
		t.Errorf("routes: %s", routes)
	}
	if _, err := c.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "nexthop_compat_mode") {
		t.Errorf("Sync: %v", err)
	}
	// Somebody follows the advice.
	n.Sysctl("ipv4/nexthop_compat_mode", "1")
	if _, err := c.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	if routes := n.IP("-6", "route", "show", "proto", "85", "metric", "512"); routes == "" {
		t.Error("no routes")
	}
}

func TestOpenFIBHashesPorts(t *testing.T) {
	t.Parallel()
	n := newNode(t, 0)
	const v6, v4 = "ipv6/fib_multipath_hash_policy", "ipv4/fib_multipath_hash_policy"
	n.Sysctl(v4, "2") // the operator's choice
	n.fib(t)
	if got := n.ReadSysctl(v6) + n.ReadSysctl(v4); got != "12" {
		t.Errorf("hash policies of IPv6 and IPv4: %s, want 1 and 2", got)
	}
}

// A probe that failed for another reason than that the kernel lacks resilient groups says nothing
// of them: the next one finds that it has them.
func TestFailedProbeIsNoLackOfResilientGroups(t *testing.T) {
	t.Parallel()
	f := newNode(t, 1).fib(t)
	if err := f.Unfit(); err != nil || !f.Resilient() {
		t.Skipf("the kernel has no resilient groups: %v", err)
	}
	withoutNetAdmin(t, func() {
		if err := f.probe(); !errors.Is(err, unix.EPERM) {
			t.Errorf("%v, want that it is not permitted", err)
		}
	})
	if err := f.probe(); err != nil || !f.Resilient() {
		t.Errorf("%v, resilient %v: one failure decides for ever", err, f.Resilient())
	}
	for err, want := range map[error]bool{unix.EOPNOTSUPP: true, unix.EINVAL: true, unix.ENOMEM: false, unix.ENOBUFS: false, nil: false} {
		if plain, left := lacks(err); plain != want || want != (left == nil && err != nil) {
			t.Errorf("%v: lacks %v, and the error %v", err, plain, left)
		}
	}
}

// withoutNetAdmin runs f on a thread that may not change the network.
func withoutNetAdmin(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		t.Fatal(err)
	}
	less := before
	less[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &less[0]); err != nil {
		t.Fatal(err)
	}
	defer unix.Capset(&header, &before[0])
	f()
}
