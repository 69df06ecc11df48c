package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/address/ipam"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/pod"
)

var (
	epoch   = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	dual    = grant.Plan{IPv6: &grant.Source{}, IPv4: &grant.Source{}}
	v4only  = grant.Plan{IPv4: &grant.Source{}}
	cidr6   = netip.MustParsePrefix("2001:db8:1::/64")
	cidr4   = netip.MustParsePrefix("10.0.0.0/29") // six addresses
	nodeCfg = ipam.Config{Node: "node1", IPv6: []netip.Prefix{cidr6}, IPv4: []netip.Prefix{cidr4}, Quarantine: time.Minute}
)

// clock is a time that only the test moves.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func open(t *testing.T, dir string, c *clock) *Ledger {
	t.Helper()
	l := Open(Config{Dir: dir, Now: c.now, Log: slog.New(slog.DiscardHandler)})
	l.Configure(nodeCfg)
	return l
}

func attachment(name string) Record {
	return Record{ID: ID{Network: "flock", ContainerID: name, IfName: "eth0"}, Pod: pod.Ref{Namespace: "shop", Name: name, UID: pod.UID(name)}, HostIf: "flock-" + name}
}

func promise(t *testing.T, l *Ledger, name string, plan grant.Plan) Record {
	t.Helper()
	r, _, err := l.Promise(attachment(name), plan, embed.Workload{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// promiseOf is promise for a pod of a workload.
func promiseOf(t *testing.T, l *Ledger, app, name string, plan grant.Plan) Record {
	t.Helper()
	r, _, err := l.Promise(attachment(name), plan, embed.Workload{Namespace: "shop", App: app})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestPromiseIsKeptOverRestarts(t *testing.T) {
	dir, c := t.TempDir(), &clock{epoch}
	l := open(t, dir, c)
	a := promise(t, l, "a", dual)
	if len(a.Primary) != 2 || !cidr6.Contains(a.Primary[0].Addr) || !cidr4.Contains(a.Primary[1].Addr) || a.State != Pending {
		t.Fatalf("promised %+v", a)
	}
	again, created, err := l.Promise(attachment("a"), dual, embed.Workload{})
	if err != nil || created || !reflect.DeepEqual(again, a) {
		t.Errorf("asked again: %+v, created %t, %v; want the same promise", again, created, err)
	}
	must(t, l.Commit(a.ID))

	l = open(t, dir, c)
	got, ok := l.Lookup(a.ID)
	if !ok || got.State != Committed || !reflect.DeepEqual(got.Primary, a.Primary) {
		t.Errorf("after a restart: %+v, %t", got, ok)
	}
	b := promise(t, l, "b", dual)
	if b.Primary[0] == a.Primary[0] || b.Primary[1] == a.Primary[1] {
		t.Errorf("b has an address of a: %v and %v", b.Primary, a.Primary)
	}
}

// An address is free neither between Release and Free nor in quarantine, and a
// restart at any of these points changes nothing about it.
func TestReleasedAddressIsQuarantined(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%t", restart), func(t *testing.T) {
			dir, c := t.TempDir(), &clock{epoch}
			l := open(t, dir, c)
			reopen := func() {
				if restart {
					l = open(t, dir, c)
				}
			}
			a := promise(t, l, "a", v4only)
			for i := range 5 {
				promise(t, l, fmt.Sprint("other", i), v4only)
			}
			refused := func(when string) {
				t.Helper()
				reopen()
				var full *ipam.ExhaustedError
				if _, _, err := l.Promise(attachment("late"), v4only, embed.Workload{}); !errors.As(err, &full) {
					t.Fatalf("%s: %v, want the CIDR to be exhausted", when, err)
				}
			}
			refused("all held")
			if _, ok := l.Release(a.ID); !ok {
				t.Fatal("there is nothing to release")
			}
			refused("released, link not gone")
			if _, _, err := l.Promise(attachment("a"), v4only, embed.Workload{}); !errors.Is(err, ErrReleasing) {
				t.Errorf("asked for the released attachment: %v, want %v", err, ErrReleasing)
			}
			must(t, l.Free(a.ID))
			must(t, l.Free(a.ID)) // told twice
			c.t = c.t.Add(59 * time.Second)
			refused("in quarantine")
			c.t = c.t.Add(time.Second)
			reopen()
			if late := promise(t, l, "late", v4only); late.Primary[0].Addr != a.Primary[0].Addr {
				t.Errorf("after the quarantine got %v, want %v", late.Primary[0], a.Primary[0])
			}
		})
	}
}

// The host's clock may be set, in either direction: no quarantine lasts longer
// because of that, and no record stays for ever.
func TestClockIsSetBack(t *testing.T) {
	dir, c := t.TempDir(), &clock{epoch}
	l := open(t, dir, c)
	a := promise(t, l, "a", v4only)
	for i := range 5 {
		promise(t, l, fmt.Sprint("other", i), v4only)
	}
	l.Release(a.ID)
	must(t, l.Free(a.ID))
	c.t = c.t.Add(-24 * time.Hour)
	l = open(t, dir, c)
	c.t = c.t.Add(59 * time.Second)
	if _, _, err := l.Promise(attachment("b"), v4only, embed.Workload{}); err == nil {
		t.Error("the address is given out in its quarantine")
	}
	c.t = c.t.Add(time.Second)
	b := promise(t, l, "b", v4only)
	if b.Primary[0].Addr != a.Primary[0].Addr {
		t.Errorf("after the quarantine got %v, want %v", b.Primary[0], a.Primary[0])
	}
	if _, records := openFiles(t, dir); len(records) != 6 {
		t.Errorf("%d records, want those of the 6 pods", len(records))
	}
}

// Where nothing can be written any more, as on a full tmpfs, what is gone must not be
// held for ever: the runtime asks no second time.
func TestFreeWithoutRoom(t *testing.T) {
	dir, c := t.TempDir(), &clock{epoch}
	l := open(t, dir, c)
	a := promise(t, l, "a", v4only)
	for i := range 5 {
		promise(t, l, fmt.Sprint("other", i), v4only)
	}
	l.Release(a.ID)
	full := filepath.Join(dir, ".a@eth0.json.new", "x") // in the way of the next write
	must(t, os.MkdirAll(full, 0o700))
	must(t, l.Free(a.ID))
	must(t, os.RemoveAll(filepath.Dir(full)))
	if _, _, err := l.Promise(attachment("b"), v4only, embed.Workload{}); err == nil {
		t.Error("the address is given out in its quarantine")
	}
	c.t = c.t.Add(time.Minute)
	promise(t, l, "b", v4only)
	if n := len(open(t, dir, c).Records()); n != 6 {
		t.Errorf("a restart finds %d records, want those of the 6 pods", n)
	}
}

// The end of a pod is not refused because it cannot be written down.
func TestReleaseWithoutRoom(t *testing.T) {
	dir, c := t.TempDir(), &clock{epoch}
	l := open(t, dir, c)
	a := promise(t, l, "a", v4only)
	must(t, l.Commit(a.ID))
	must(t, os.MkdirAll(filepath.Join(dir, ".a@eth0.json.new", "x"), 0o700)) // in the way of the next write
	if r, ok := l.Release(a.ID); !ok || r.State != Released {
		t.Errorf("released %+v, %t", r, ok)
	}
	if r, ok := l.Lookup(a.ID); !ok || r.State != Released {
		t.Errorf("remembered as %+v, %t", r, ok)
	}
	must(t, l.Free(a.ID))
	if n := len(open(t, dir, c).Records()); n != 0 {
		t.Errorf("a restart finds %d records", n)
	}
}

// Two networks may have the same container: what one says of its attachment is
// nothing to the other's.
func TestNetworksAreApart(t *testing.T) {
	dir, c := t.TempDir(), &clock{epoch}
	l := open(t, dir, c)
	a := promise(t, l, "a", v4only)
	other, unknown := a.ID, a.ID
	other.Network, unknown.Network = "second", ""
	if _, ok := l.Lookup(other); ok {
		t.Error("another network sees the attachment")
	}
	if _, ok := l.Release(other); ok {
		t.Error("another network releases the attachment")
	}
	if err := l.Commit(other); !errors.Is(err, ErrNotHeld) {
		t.Errorf("another network commits the attachment: %v", err)
	}
	must(t, l.Free(other))
	r := attachment("a")
	r.ID = other
	var taken *HostIfError
	if _, _, err := l.Promise(r, v4only, embed.Workload{}); !errors.As(err, &taken) {
		t.Errorf("another network attaches the same interface: %v", err)
	}
	if r, ok := open(t, dir, c).Lookup(unknown); !ok || r.Network != "flock" {
		t.Errorf("by container and interface there is %+v, %t", r, ok)
	}

	// A record of a release that did not keep the network is any network's.
	must(t, os.WriteFile(filepath.Join(dir, "c1@eth0.json"), []byte(oldCommitted), 0o600))
	l = open(t, dir, c)
	if r, ok := l.Lookup(ID{"second", "c1", "eth0"}); !ok || r.Pod.UID != "u1" {
		t.Errorf("the record of the previous release: %+v, %t", r, ok)
	}
}

// What a newer release has recorded is given up by the runtime alone.
func TestRecordOfANewerRelease(t *testing.T) {
	dir, c := t.TempDir(), &clock{epoch}
	newer := strings.Replace(strings.Replace(oldCommitted, "{", `{"version":2,`, 1), "203.0.113.7", "10.0.0.1", 1)
	must(t, os.WriteFile(filepath.Join(dir, "c1@eth0.json"), []byte(newer), 0o600))
	l := open(t, dir, c)
	id := ID{"flock", "c1", "eth0"}
	r := attachment("c1")
	if _, _, err := l.Promise(r, v4only, embed.Workload{}); !errors.Is(err, ErrUnknownState) {
		t.Errorf("promised again: %v", err)
	}
	if err := l.Commit(id); !errors.Is(err, ErrNotHeld) {
		t.Errorf("committed: %v", err)
	}
	for range 5 {
		if r, _, err := l.Promise(attachment(fmt.Sprint("other", len(l.Records()))), v4only, embed.Workload{}); err != nil || r.Primary[0].Addr == netip.MustParseAddr("10.0.0.1") {
			t.Errorf("promised %+v, %v", r, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "c1@eth0.json")); err != nil || string(b) != newer {
		t.Errorf("the file holds %s, %v", b, err)
	}
	if _, ok := l.Release(id); !ok {
		t.Error("a DEL finds nothing")
	}
	must(t, l.Free(id))
	c.t = c.t.Add(time.Minute)
	if got := promise(t, l, "late", v4only); got.Primary[0].Addr != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("after its end and the quarantine the next pod has %v", got.Primary)
	}
}

func TestStaticAddressPassesToTheNextPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, t.TempDir(), &clock{epoch})
		addr := netip.MustParseAddr("2001:db8:1::5")
		static := grant.Plan{IPv6: &grant.Source{Static: &address.Granted{Addr: addr, CIDR: cidr6}}}
		old := promiseOf(t, l, "web", "old", static)
		next := l.HolderFor(attachment("new").ID, "new")
		if h, ok := next(addr); !ok || h.Anycast || h.Pod != old.Pod.String() {
			t.Errorf("%v is held by %+v, %t", addr, h, ok)
		}
		if h, ok := l.HolderFor(old.ID, "old")(addr); ok {
			t.Errorf("%v is held from its own pod by %+v", addr, h)
		}
		l.Release(old.ID)
		if h, ok := next(addr); ok {
			t.Errorf("%v was given up and is held by %+v", addr, h)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.AwaitFree(short, static.Held()); !errors.Is(err, ErrReleasing) {
			t.Errorf("the link is still there: %v, want %v", err, ErrReleasing)
		}
		time.AfterFunc(time.Hour, func() { l.Free(old.ID) })
		must(t, l.AwaitFree(t.Context(), static.Held()))
		if got := promiseOf(t, l, "web", "new", static); got.Primary[0].Addr != addr {
			t.Errorf("the next pod has %v", got.Primary)
		}
	})
}

// A static address is another workload's only after its quarantine, also over a restart:
// the same workload in another namespace, or a pod that has only the name of one.
func TestStaticAddressInQuarantine(t *testing.T) {
	for _, from := range []address.Granted{{Addr: netip.MustParseAddr("2001:db8:1::5"), CIDR: cidr6}, {Addr: netip.MustParseAddr("2001:db8:200::5"), Pool: "p"}} {
		for _, restart := range []bool{false, true} {
			dir, c := t.TempDir(), &clock{epoch}
			l := open(t, dir, c)
			static := grant.Plan{IPv6: &grant.Source{Static: &from}}
			a := promiseOf(t, l, "web", "web-0", static)
			l.Release(a.ID)
			must(t, l.Free(a.ID))
			c.t = c.t.Add(59 * time.Second)
			if restart {
				l = open(t, dir, c)
			}
			for i, thief := range []embed.Workload{{}, {Namespace: "shop", App: "thief"}, {Namespace: "bank", App: "web"}} {
				r := attachment(fmt.Sprint("thief", i))
				r.Pod.Namespace = cmp.Or(thief.Namespace, "bank")
				var refused *grant.Refusal
				if _, _, err := l.Promise(r, static, thief); !errors.As(err, &refused) || !strings.Contains(err.Error(), "is in quarantine until 2030-01-01T00:01:00Z") {
					t.Errorf("%s, restart %t: %v for %+v, want a refusal until the end of the quarantine", from.Addr, restart, err, thief)
				}
			}
			b := promiseOf(t, l, "web", "web-0-again", static)
			l.Release(b.ID)
			must(t, l.Free(b.ID))
			c.t = c.t.Add(time.Minute)
			if restart {
				l = open(t, dir, c)
			}
			promiseOf(t, l, "other", "later", static)
		}
	}
}

// What the agent frees at its start, before it knows how long a quarantine is, ends none.
func TestQuarantineIsNotKnownYet(t *testing.T) {
	dir, c := t.TempDir(), &clock{epoch}
	l := open(t, dir, c)
	static := grant.Plan{IPv6: &grant.Source{Static: &address.Granted{Addr: netip.MustParseAddr("2001:db8:1::5"), CIDR: cidr6}}}
	a, b := promise(t, l, "a", static), promise(t, l, "b", dual)
	l.Release(a.ID)
	must(t, l.Free(a.ID))
	c.t = c.t.Add(time.Second)
	starting := Open(Config{Dir: dir, Now: c.now, Log: slog.New(slog.DiscardHandler)})
	starting.Release(b.ID)
	must(t, starting.Free(b.ID))
	for _, l := range []*Ledger{starting, open(t, dir, c)} {
		l.Configure(nodeCfg)
		if _, _, err := l.Promise(attachment("thief"), static, embed.Workload{}); err == nil {
			t.Error("a restart has ended the quarantine")
		}
	}
}

// The limit of a namespace holds for pods that come at the same time: it is checked with
// the promise, not only with the decision.
func TestNamespaceLimit(t *testing.T) {
	in := grant.Input{
		Namespace: "shop", NodeName: "node1",
		Node:   config.Node{IPv6: []netip.Prefix{cidr6}, Static: &config.StaticGrant{Namespaces: labels.Everything(), MaxPerNamespace: 2}},
		Holder: func(netip.Addr) (grant.Holder, bool) { return grant.Holder{}, false },
	}
	l := open(t, t.TempDir(), &clock{epoch})
	var plans []grant.Plan
	for i := range 3 {
		in.Request = annotation.Request{IPv6: true, Static: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x", i+5))}}
		plan, err := grant.Decide(in)
		must(t, err)
		plans = append(plans, plan)
	}
	first := promise(t, l, "a", plans[0])
	promise(t, l, "b", plans[1])
	promise(t, l, "allocated", dual)
	var refused *grant.Refusal
	if _, _, err := l.Promise(attachment("c"), plans[2], embed.Workload{}); !errors.As(err, &refused) {
		t.Errorf("the third: %v, want a refusal", err)
	}
	elsewhere := attachment("c")
	elsewhere.Pod.Namespace = "bank"
	if _, _, err := l.Promise(elsewhere, plans[2], embed.Workload{}); err != nil {
		t.Errorf("in another namespace: %v", err)
	}
	if again, created, err := l.Promise(attachment("a"), plans[0], embed.Workload{}); err != nil || created || again.ID != first.ID {
		t.Errorf("a retry of the first: %+v, %v", again, err)
	}
}

// The earlier sandbox of a pod does not keep the pod from its own address.
func TestStaticAddressPassesToThePodsNextSandbox(t *testing.T) {
	l := open(t, t.TempDir(), &clock{epoch})
	addr := netip.MustParseAddr("2001:db8:1::5")
	static := grant.Plan{IPv6: &grant.Source{Static: &address.Granted{Addr: addr, CIDR: cidr6}}}
	old := promise(t, l, "old", static)
	promise(t, l, "other", dual)
	next := attachment("next")
	next.Pod = old.Pod
	if h, ok := l.HolderFor(next.ID, next.Pod.UID)(addr); ok {
		t.Errorf("%v is held from its own pod by %+v", addr, h)
	}
	if _, ok := l.HolderFor(next.ID, "")(addr); !ok {
		t.Error("a pod without a UID is taken for the holder")
	}
	if got := l.HeldByPod("", next.ID, static.Held()); len(got) != 0 {
		t.Errorf("of a pod without a UID: %v", got)
	}
	if got := l.HeldByPod(old.Pod.UID, next.ID, static.Held()); len(got) != 1 || got[0].ID != old.ID {
		t.Errorf("held by %v, want %v", got, old.ID)
	}
	l.Release(old.ID)
	if got := l.HeldByPod(old.Pod.UID, next.ID, static.Held()); len(got) != 0 {
		t.Errorf("after its release it is held by %v", got)
	}
	must(t, l.Free(old.ID))
	if r, _, err := l.Promise(next, static, embed.Workload{}); err != nil || r.Primary[0].Addr != addr {
		t.Errorf("the next sandbox has %v, %v", r.Primary, err)
	}
}

// Two pods that were both granted an address before either had it.
func TestAddressIsEitherSharedOrNot(t *testing.T) {
	addr := netip.MustParseAddr("2001:db8:53::53")
	alone := grant.Plan{IPv6: &grant.Source{}, Secondary: []address.Granted{{Addr: addr, Pool: "p"}}}
	shared := grant.Plan{IPv6: &grant.Source{}, Anycast: []address.Granted{{Addr: addr, Pool: "p"}}}
	for _, tt := range []struct {
		name          string
		first, second grant.Plan
		want          string
	}{
		{"alone, then shared", alone, shared, "as an address of its own"},
		{"shared, then alone", shared, alone, "is held by pod shop/first"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := open(t, t.TempDir(), &clock{epoch})
			promise(t, l, "first", tt.first)
			held := len(l.alloc.AllHeld())
			if _, _, err := l.Promise(attachment("second"), tt.second, embed.Workload{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that says %q", err, tt.want)
			}
			if n := len(l.alloc.AllHeld()); n != held {
				t.Errorf("%d addresses are held after the refusal, want %d", n, held)
			}
		})
	}
	l := open(t, t.TempDir(), &clock{epoch})
	promise(t, l, "first", shared)
	promise(t, l, "second", shared)
}

func TestFailedPromiseHoldsNothing(t *testing.T) {
	l := open(t, t.TempDir(), &clock{epoch})
	for i := range 6 {
		promise(t, l, fmt.Sprint(i), v4only)
	}
	if _, _, err := l.Promise(attachment("a"), dual, embed.Workload{}); err == nil || !strings.Contains(err.Error(), "10.0.0.0/29") {
		t.Errorf("%v, want an error that names the full CIDR", err)
	}
	if n := len(l.alloc.AllHeld()); n != 6 {
		t.Errorf("%d addresses are held, want the 6 of the pods", n)
	}
}

func TestReleaseOfTheUnknown(t *testing.T) {
	l := open(t, t.TempDir(), &clock{epoch})
	if r, ok := l.Release(attachment("a").ID); ok {
		t.Errorf("released %+v, want nothing", r)
	}
	must(t, l.Free(attachment("a").ID))
}

// What is not promised any more may be another's.
func TestOnlyAPromiseIsCommitted(t *testing.T) {
	dir, c := t.TempDir(), &clock{epoch}
	l := open(t, dir, c)
	refused := func(when string) {
		t.Helper()
		if err := l.Commit(attachment("a").ID); !errors.Is(err, ErrNotHeld) {
			t.Errorf("%s: %v, want %v", when, err, ErrNotHeld)
		}
	}
	refused("never promised")
	a := promise(t, l, "a", dual)
	must(t, l.Commit(a.ID))
	must(t, l.Commit(a.ID)) // an ADD that is repeated
	l.Release(a.ID)
	refused("given up")
	if r, ok := open(t, dir, c).Lookup(a.ID); !ok || r.State != Released {
		t.Errorf("a restart finds %+v, %t, want it given up", r, ok)
	}
	must(t, l.Free(a.ID))
	refused("gone")
}

func TestRetiredCIDRLastsUntilItsLastPod(t *testing.T) {
	dir, c := t.TempDir(), &clock{epoch}
	l := open(t, dir, c)
	a := promise(t, l, "a", dual)
	without := nodeCfg
	without.IPv4 = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}
	reopened := Open(Config{Dir: dir, Now: c.now, Log: slog.New(slog.DiscardHandler)})
	changes := 0
	l.onRetired = func() { changes++ }
	for name, l := range map[string]*Ledger{"running": l, "restarted": reopened} {
		l.Configure(without)
		if got := l.Retired(); !reflect.DeepEqual(got, []netip.Prefix{cidr4}) {
			t.Errorf("%s: retired %v, want %v", name, got, cidr4)
		}
	}
	l.Release(a.ID)
	if got := l.Retired(); len(got) != 1 {
		t.Errorf("retired %v while the link is there", got)
	}
	must(t, l.Free(a.ID))
	if got := l.Retired(); len(got) != 0 {
		t.Errorf("retired %v after the last pod", got)
	}
	promise(t, l, "b", dual)
	if changes != 1 {
		t.Errorf("%d changes were reported, want that of the last pod's end", changes)
	}
	// Granted before its CIDR was taken away, promised after.
	promise(t, l, "a", grant.Plan{IPv4: &grant.Source{Static: &address.Granted{Addr: cidr4.Addr().Next(), CIDR: cidr4}}})
	if changes != 2 || len(l.Retired()) != 1 {
		t.Errorf("%d changes were reported, retired %v; want one more, by the static address", changes, l.Retired())
	}
}

// TestModel drives a ledger through a random life, with restarts at any point,
// beside a plain map of who holds what.
func TestModel(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		dir, c := t.TempDir(), &clock{epoch}
		l := open(t, dir, c)
		held := map[ID][]address.Granted{}
		for step := range 300 {
			c.t = c.t.Add(time.Duration(rnd.IntN(5000)) * time.Millisecond)
			r := attachment(fmt.Sprint("c", rnd.IntN(8)))
			switch rnd.IntN(6) {
			case 0, 1:
				got, _, err := l.Promise(r, dual, embed.Workload{})
				if err != nil {
					break // exhausted, or being released
				}
				if was, ok := held[r.ID]; ok && !reflect.DeepEqual(was, got.Primary) {
					t.Fatalf("seed %d step %d: %s had %v, now %v", seed, step, r.ID, was, got.Primary)
				}
				held[r.ID] = got.Primary
			case 2:
				known, ok := l.Lookup(r.ID)
				if err := l.Commit(r.ID); (err == nil) != (ok && known.State != Released) {
					t.Fatalf("seed %d step %d: committed %+v: %v", seed, step, known, err)
				}
			case 3:
				_, ok := l.Release(r.ID)
				if _, known := held[r.ID]; known != ok {
					t.Fatalf("seed %d step %d: released %t, held %t", seed, step, ok, known)
				}
			case 4:
				must(t, l.Free(r.ID))
				delete(held, r.ID)
			case 5:
				l = open(t, dir, c)
			}
			owner := map[netip.Addr]ID{}
			for id, addrs := range held {
				for _, a := range addrs {
					if other, twice := owner[a.Addr]; twice {
						t.Fatalf("seed %d step %d: %v is held by %s and %s", seed, step, a, id, other)
					}
					owner[a.Addr] = id
				}
			}
			if got := len(l.alloc.AllHeld()); got != len(owner) || len(l.Records()) != len(held) {
				t.Fatalf("seed %d step %d: %d addresses and %d records, want %d and %d", seed, step, got, len(l.Records()), len(owner), len(held))
			}
		}
	}
}
