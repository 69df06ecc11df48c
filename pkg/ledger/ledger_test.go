package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"flock.fritzlab.net/flock/pkg/embed"
	"flock.fritzlab.net/flock/pkg/grant"
	"flock.fritzlab.net/flock/pkg/ipam"
	"flock.fritzlab.net/flock/pkg/store"
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
	l, err := Open(dir, c.now)
	if err != nil {
		t.Fatal(err)
	}
	l.Configure(nodeCfg)
	return l
}

func attachment(name string) store.Record {
	return store.Record{ID: store.ID{ContainerID: name, IfName: "eth0"}, PodNamespace: "shop", PodName: name, HostIf: "flock-" + name}
}

func promise(t *testing.T, l *Ledger, name string, plan grant.Plan) store.Record {
	t.Helper()
	r, _, err := l.Promise(attachment(name), plan, embed.Workload{})
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
	if len(a.Addrs) != 2 || !cidr6.Contains(a.Addrs[0].Addr) || !cidr4.Contains(a.Addrs[1].Addr) || a.State != store.Pending {
		t.Fatalf("promised %+v", a)
	}
	again, created, err := l.Promise(attachment("a"), dual, embed.Workload{})
	if err != nil || created || !reflect.DeepEqual(again, a) {
		t.Errorf("asked again: %+v, created %t, %v; want the same promise", again, created, err)
	}
	must(t, l.Commit(a.ID))

	l = open(t, dir, c)
	got, ok := l.Lookup(a.ID)
	if !ok || got.State != store.Committed || !reflect.DeepEqual(got.Addrs, a.Addrs) {
		t.Errorf("after a restart: %+v, %t", got, ok)
	}
	b := promise(t, l, "b", dual)
	if b.Addrs[0] == a.Addrs[0] || b.Addrs[1] == a.Addrs[1] {
		t.Errorf("b has an address of a: %v and %v", b.Addrs, a.Addrs)
	}
}

// An address is free neither between Release and Free nor in quarantine, and a
// restart at any of these points changes nothing about it.
func TestReleasedAddressRests(t *testing.T) {
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
			if _, ok, err := l.Release(a.ID); !ok || err != nil {
				t.Fatal(ok, err)
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
			if late := promise(t, l, "late", v4only); late.Addrs[0].Addr != a.Addrs[0].Addr {
				t.Errorf("after the quarantine got %v, want %v", late.Addrs[0], a.Addrs[0])
			}
		})
	}
}

// The host's clock may be set, in either direction: no address rests for longer than
// its quarantine because of that, and no record stays for ever.
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
	if b.Addrs[0].Addr != a.Addrs[0].Addr {
		t.Errorf("after the quarantine got %v, want %v", b.Addrs[0], a.Addrs[0])
	}
	_, records, err := store.Open(dir)
	must(t, err)
	if len(records) != 6 {
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
	full := filepath.Join(dir, ".tmp") // which each write makes anew
	must(t, os.Mkdir(full, 0o700))
	must(t, l.Free(a.ID))
	must(t, os.Remove(full))
	if _, _, err := l.Promise(attachment("b"), v4only, embed.Workload{}); err == nil {
		t.Error("the address is given out in its quarantine")
	}
	c.t = c.t.Add(time.Minute)
	promise(t, l, "b", v4only)
	if n := len(open(t, dir, c).Records()); n != 6 {
		t.Errorf("a restart finds %d records, want those of the 6 pods", n)
	}
}

func TestStaticAddressPassesToTheNextPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, t.TempDir(), &clock{epoch})
		addr := netip.MustParseAddr("2001:db8:1::5")
		static := grant.Plan{IPv6: &grant.Source{Static: &grant.Address{Addr: addr, CIDR: cidr6}}}
		old := promise(t, l, "old", static)
		next := l.HolderFor(attachment("new").ID)
		if h, ok := next(addr); !ok || h.Anycast || h.Pod != old.Pod() {
			t.Errorf("%v is held by %+v, %t", addr, h, ok)
		}
		if h, ok := l.HolderFor(old.ID)(addr); ok {
			t.Errorf("%v is held from its own pod by %+v", addr, h)
		}
		l.Release(old.ID)
		if h, ok := next(addr); ok {
			t.Errorf("%v was given up and is held by %+v", addr, h)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.AwaitFree(short, []netip.Addr{addr}); !errors.Is(err, ErrReleasing) {
			t.Errorf("the link is still there: %v, want %v", err, ErrReleasing)
		}
		time.AfterFunc(time.Hour, func() { l.Free(old.ID) })
		must(t, l.AwaitFree(t.Context(), []netip.Addr{addr}))
		if got := promise(t, l, "new", static); got.Addrs[0].Addr != addr {
			t.Errorf("the next pod has %v", got.Addrs)
		}
	})
}

// Two pods that were both granted an address before either had it.
func TestAddressIsEitherSharedOrNot(t *testing.T) {
	addr := netip.MustParseAddr("2001:db8:53::53")
	alone := grant.Plan{IPv6: &grant.Source{}, Further: []grant.Address{{Addr: addr, Pool: "p"}}}
	shared := grant.Plan{IPv6: &grant.Source{}, Anycast: []grant.Address{{Addr: addr, Pool: "p"}}}
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
			held := len(l.alloc.Leases())
			if _, _, err := l.Promise(attachment("second"), tt.second, embed.Workload{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that says %q", err, tt.want)
			}
			if n := len(l.alloc.Leases()); n != held {
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
	if n := len(l.alloc.Leases()); n != 6 {
		t.Errorf("%d addresses are held, want the 6 of the pods", n)
	}
}

func TestReleaseOfTheUnknown(t *testing.T) {
	l := open(t, t.TempDir(), &clock{epoch})
	if _, ok, err := l.Release(attachment("a").ID); ok || err != nil {
		t.Errorf("%t, %v; want nothing and no error", ok, err)
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
	if r, ok := open(t, dir, c).Lookup(a.ID); !ok || r.State != store.Released {
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
	reopened, err := Open(dir, c.now)
	must(t, err)
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
}

// TestModel drives a ledger through a random life, with restarts at any point,
// beside a plain map of who holds what.
func TestModel(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		dir, c := t.TempDir(), &clock{epoch}
		l := open(t, dir, c)
		held := map[store.ID][]store.Address{}
		for step := range 300 {
			c.t = c.t.Add(time.Duration(rnd.IntN(5000)) * time.Millisecond)
			r := attachment(fmt.Sprint("c", rnd.IntN(8)))
			switch rnd.IntN(6) {
			case 0, 1:
				got, _, err := l.Promise(r, dual, embed.Workload{})
				if err != nil {
					break // exhausted, or being released
				}
				if was, ok := held[r.ID]; ok && !reflect.DeepEqual(was, got.Addrs) {
					t.Fatalf("seed %d step %d: %s had %v, now %v", seed, step, r.ID, was, got.Addrs)
				}
				held[r.ID] = got.Addrs
			case 2:
				known, ok := l.Lookup(r.ID)
				if err := l.Commit(r.ID); (err == nil) != (ok && known.State != store.Released) {
					t.Fatalf("seed %d step %d: committed %+v: %v", seed, step, known, err)
				}
			case 3:
				_, ok, err := l.Release(r.ID)
				must(t, err)
				if _, known := held[r.ID]; known != ok {
					t.Fatalf("seed %d step %d: released %t, held %t", seed, step, ok, known)
				}
			case 4:
				must(t, l.Free(r.ID))
				delete(held, r.ID)
			case 5:
				l = open(t, dir, c)
			}
			owner := map[netip.Addr]store.ID{}
			for id, addrs := range held {
				for _, a := range addrs {
					if other, twice := owner[a.Addr]; twice {
						t.Fatalf("seed %d step %d: %v is held by %s and %s", seed, step, a, id, other)
					}
					owner[a.Addr] = id
				}
			}
			if got := len(l.alloc.Leases()); got != len(owner) || len(l.Records()) != len(held) {
				t.Fatalf("seed %d step %d: %d leases and %d records, want %d and %d", seed, step, got, len(l.Records()), len(owner), len(held))
			}
		}
	}
}
