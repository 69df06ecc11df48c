package ipam

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/address"
)

var t0 = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// take allocates n addresses, or fails the test.
func take(t testing.TB, a *Allocator, r Request, n int, now time.Time) []string {
	t.Helper()
	var out []string
	for range n {
		l, err := a.Allocate(r, now)
		if err != nil {
			t.Fatalf("after %d of %d: %v", len(out), n, err)
		}
		out = append(out, l.Addr.String())
	}
	return out
}

func want[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

func TestIPv4TakesTheAddressFreeForLongest(t *testing.T) {
	a := New(Config{IPv4: prefixes("10.1.0.0/29"), Quarantine: time.Minute}, rand.Reader)
	v4 := Request{Family: IPv4}
	want(t, "never used, without network and broadcast", take(t, a, v4, 3, t0), []string{"10.1.0.1", "10.1.0.2", "10.1.0.3"})
	a.Release(addr("10.1.0.3"), "", t0.Add(1*time.Second))
	a.Release(addr("10.1.0.1"), "", t0.Add(2*time.Second))
	want(t, "never used before released", take(t, a, v4, 3, t0.Add(time.Hour)), []string{"10.1.0.4", "10.1.0.5", "10.1.0.6"})
	want(t, "released first", take(t, a, v4, 2, t0.Add(time.Hour)), []string{"10.1.0.3", "10.1.0.1"})
}

func TestQuarantineIsNotCutShort(t *testing.T) {
	for _, tc := range []struct {
		family   Family
		cfg      Config
		capacity int
	}{
		{IPv4, Config{Node: "node1", IPv4: prefixes("10.1.0.0/30")}, 2},
		{IPv6, Config{Node: "node1", IPv6: prefixes("2001:db8::/126")}, 3},
	} {
		t.Run(tc.family.String(), func(t *testing.T) {
			tc.cfg.Quarantine = time.Minute
			a, r := New(tc.cfg, rand.Reader), Request{Family: tc.family}
			first := take(t, a, r, tc.capacity, t0)
			a.Release(addr(first[1]), "", t0.Add(time.Second))
			a.Release(addr(first[0]), "", t0.Add(2*time.Second))

			_, err := a.Allocate(r, t0.Add(time.Minute))
			var full *ExhaustedError
			if !errors.As(err, &full) {
				t.Fatalf("within quarantine: got error %v", err)
			}
			want(t, "next free", full.NextFree, t0.Add(61*time.Second))
			if want := "the first address leaves quarantine in 1s"; !strings.Contains(err.Error(), want) {
				t.Errorf("error %q does not say %q", err, want)
			}
			want(t, "at its end", take(t, a, r, 1, t0.Add(61*time.Second)), first[1:2])
			if l, err := a.Allocate(r, t0.Add(61*time.Second)); err == nil {
				t.Errorf("got %v, which is in quarantine for another second", l)
			}
		})
	}
}

func TestAComputedAddressComesBackAtOnce(t *testing.T) {
	a := New(Config{IPv6: prefixes("2001:db8::/64"), Quarantine: time.Hour}, rand.Reader)
	near := Request{Family: IPv6, Near: func(p netip.Prefix) netip.Addr { return addr("2001:db8::ab10") }, Owner: "shop/web"}
	got := take(t, a, near, 17, t0)
	want(t, "first", got[0], "2001:db8::ab10")
	want(t, "second", got[1], "2001:db8::ab11")
	want(t, "sixteenth", got[15], "2001:db8::ab1f")
	want(t, "seventeenth widens by a digit", got[16], "2001:db8::ab00")
	a.Release(addr("2001:db8::ab11"), "shop/web", t0)
	other := near
	other.Owner = "shop/thief"
	want(t, "another owner", take(t, a, other, 1, t0), []string{"2001:db8::ab01"})
	other.Owner = ""
	want(t, "nobody in particular", take(t, a, other, 1, t0), []string{"2001:db8::ab02"})
	want(t, "after a release", take(t, a, near, 1, t0), []string{"2001:db8::ab11"})
}

// TestReserveInQuarantine: an address that is asked for by name is another workload's
// only after its quarantine, however often it has changed hands.
func TestReserveInQuarantine(t *testing.T) {
	a := New(Config{IPv4: prefixes("10.0.0.0/24"), Quarantine: time.Minute}, rand.Reader)
	at := func(seconds int) time.Time { return t0.Add(time.Duration(seconds) * time.Second) }
	for _, static := range []address.Granted{{Addr: addr("10.0.0.7"), CIDR: prefixes("10.0.0.0/24")[0]}, {Addr: addr("2001:db8:200::7"), Pool: "shop"}} {
		reserve := func(owner Owner, seconds int) error { return a.ReserveFor(static, owner, at(seconds)) }
		want(t, "first", reserve("shop/web", 0), nil)
		a.Release(static.Addr, "shop/web", at(10))
		for _, owner := range []Owner{"", "shop/other", "dns/web"} {
			var e *QuarantineError
			if err := reserve(owner, 69); !errors.As(err, &e) || !e.Free.Equal(at(70)) {
				t.Errorf("%s for %q: %v, want a quarantine until %s", static.Addr, owner, err, at(70))
			}
		}
		want(t, "the same owner", reserve("shop/web", 20), nil)
		a.Release(static.Addr, "shop/web", time.Time{}) // its ADD failed: not used
		if err := reserve("shop/other", 69); err == nil {
			t.Errorf("%s: an ADD that was undone has ended the quarantine", static.Addr)
		}
		want(t, "the same owner again", reserve("shop/web", 30), nil)
		a.Release(static.Addr, "shop/web", at(40))
		if err := reserve("shop/other", 99); err == nil {
			t.Errorf("%s: the second release began no quarantine", static.Addr)
		}
		want(t, "another after the quarantine", reserve("shop/other", 100), nil)
		a.Release(static.Addr, "", at(200))
		if err := reserve("", 201); err == nil {
			t.Errorf("%s: nobody in particular got what nobody in particular released", static.Addr)
		}
		want(t, "nobody in particular, later", reserve("", 260), nil)
	}
}

// Of the owners no more is kept than of the quarantine.
func TestOwnersAreForgotten(t *testing.T) {
	a := New(Config{IPv4: prefixes("10.0.0.0/16"), Quarantine: time.Minute}, rand.Reader)
	for i := range 10_000 {
		now := t0.Add(time.Duration(i) * time.Second)
		l, err := a.Allocate(Request{Family: IPv4}, now)
		if err != nil {
			t.Fatal(err)
		}
		a.Release(l.Addr, Owner(fmt.Sprint("shop/web-", i)), now)
	}
	if q := a.quarantine; len(q.owners) > 61 || len(q.byOwn) > 61 || len(q.order) > 61 {
		t.Errorf("%d owners, %d of them with addresses, %d releases are kept, want those of a minute", len(q.owners), len(q.byOwn), len(q.order))
	}
}

func TestCIDRsAreUsedInOrder(t *testing.T) {
	a := New(Config{
		IPv4:    prefixes("10.1.0.0/30", "10.0.0.0/30"),
		IPv6:    prefixes("2001:db8:1::/127", "2001:db8::/127"),
		Exclude: prefixes("10.1.0.1/32"),
	}, rand.Reader)
	want(t, "IPv4", take(t, a, Request{Family: IPv4}, 3, t0), []string{"10.1.0.2", "10.0.0.1", "10.0.0.2"})
	want(t, "IPv6", take(t, a, Request{Family: IPv6}, 2, t0), []string{"2001:db8:1::1", "2001:db8::1"})
}

func TestWithinRestrictsToAPart(t *testing.T) {
	cfg := Config{Node: "node1", IPv4: prefixes("10.1.0.0/24", "10.2.0.0/24"), Quarantine: time.Minute}
	a := New(cfg, rand.Reader)
	part := Request{Family: IPv4, Within: netip.MustParsePrefix("10.2.0.16/31")}
	want(t, "the part", take(t, a, part, 2, t0), []string{"10.2.0.16", "10.2.0.17"})
	_, err := a.Allocate(part, t0)
	wantError(t, err, "no IPv4 address is free: 10.2.0.16/31 has 2 addresses, of which 2 are held, 0 in quarantine and 0 excluded: "+
		"delete pods on node node1, or ask the cluster's operator to add a CIDR to spec.podCIDRs.ipv4 of nodeconfig node1")
	a.Release(addr("10.2.0.17"), "", t0)
	want(t, "released in the part", take(t, a, part, 1, t0.Add(time.Minute)), []string{"10.2.0.17"})

	for _, outside := range []string{"10.3.0.0/24", "10.0.0.0/8", "2001:db8::/64"} {
		_, err := a.Allocate(Request{Family: IPv4, Within: netip.MustParsePrefix(outside)}, t0)
		wantError(t, err, outside+" is neither one of the IPv4 CIDRs of node node1 nor a part of one: choose from 10.1.0.0/24, 10.2.0.0/24")
	}
	_, err = a.Allocate(Request{Family: IPv6}, t0)
	wantError(t, err, "node node1 has no IPv6 addresses for pods: ask the cluster's operator to add a CIDR to spec.podCIDRs.ipv6 of nodeconfig node1, or turn IPv6 off for the pod")
}

func wantError(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || err.Error() != text {
		t.Errorf("error:\n got %v\nwant %s", err, text)
	}
}

func TestEveryAddressOfASmallRangeIsGivenOnce(t *testing.T) {
	for _, tc := range []struct {
		cidr    string
		family  Family
		exclude []netip.Prefix
		want    int
	}{
		{"10.0.0.0/31", IPv4, nil, 2},
		{"10.0.0.0/30", IPv4, nil, 2},
		{"10.0.0.0/24", IPv4, nil, 254},
		{"10.0.0.0/24", IPv4, prefixes("10.0.0.0/25", "10.0.0.255/32"), 127},
		{"10.0.0.0/24", IPv4, prefixes("10.0.0.0/8"), 0},
		{"10.0.0.0/22", IPv4, prefixes("10.0.1.0/24", "2001:db8::/32"), 766},
		{"2001:db8::/120", IPv6, nil, 255},
		{"2001:db8::/116", IPv6, prefixes("2001:db8::100/120"), 4095 - 256},
		{"2001:db8::200:5eff:fe00:0/112", IPv6, nil, 0},
		{"2001:db8::fdff:ffff:ffff:ff00/120", IPv6, nil, 127},
		{"2001:db8::fdff:ffff:ffff:ff80/121", IPv6, nil, 0},
	} {
		t.Run(tc.cidr, func(t *testing.T) {
			cfg := Config{IPv6: nil, Exclude: tc.exclude}
			cidr := netip.MustParsePrefix(tc.cidr)
			if tc.family == IPv4 {
				cfg.IPv4 = []netip.Prefix{cidr}
			} else {
				cfg.IPv6 = []netip.Prefix{cidr}
			}
			a, seen := New(cfg, rand.Reader), map[netip.Addr]bool{}
			for {
				l, err := a.Allocate(Request{Family: tc.family}, t0)
				if err != nil {
					break
				}
				if seen[l.Addr] || !cidr.Contains(l.Addr) || cfg.KeptBack(l.Addr) != "" {
					t.Fatalf("%s: given before: %v, kept back: %q", l.Addr, seen[l.Addr], cfg.KeptBack(l.Addr))
				}
				seen[l.Addr] = true
			}
			want(t, "addresses given", len(seen), tc.want)
		})
	}
}

func TestReservedIdentifiersAreKeptBack(t *testing.T) {
	cfg := Config{
		IPv6:    prefixes("2001:db8:1::/48", "2001:db8:2:0:8000::/80"),
		IPv4:    prefixes("10.0.0.0/24", "10.0.1.0/31"),
		Exclude: prefixes("10.0.0.64/26"),
	}
	for in, reason := range map[string]string{
		"2001:db8:1::":                     "the subnet-router anycast address of 2001:db8:1::/48 (RFC 4291 section 2.6.1)",
		"2001:db8:1:7::":                   "the subnet-router anycast address (RFC 4291 section 2.6.1)",
		"2001:db8:2:0:8000::":              "the subnet-router anycast address of 2001:db8:2:0:8000::/80 (RFC 4291 section 2.6.1)",
		"2001:db8:1:7:200:5eff:fe00:5213":  "an interface identifier reserved by IANA (RFC 5453)",
		"2001:db8:1:7:200:5eff:feff:ffff":  "an interface identifier reserved by IANA (RFC 5453)",
		"2001:db8:1:7:200:5eff:ff00:0":     "",
		"2001:db8:1:7:fdff:ffff:ffff:ff80": "a reserved subnet anycast address (RFC 2526)",
		"2001:db8:1:7:fdff:ffff:ffff:ff7f": "",
		"2001:db8:1:7::1":                  "",
		"10.0.0.0":                         "the network address of 10.0.0.0/24",
		"10.0.0.255":                       "the broadcast address of 10.0.0.0/24",
		"10.0.0.100":                       "in the excluded range 10.0.0.64/26 (spec.podCIDRs.exclude)",
		"10.0.0.1":                         "",
		"10.0.1.0":                         "",
		"10.0.1.1":                         "",
	} {
		want(t, in, cfg.KeptBack(addr(in)), reason)
	}

	// A computed address that is reserved gives way like one that is taken.
	for in, got := range map[string]string{
		"2001:db8:1:7::":                   "2001:db8:1:7::1",
		"2001:db8:1:7:fdff:ffff:ffff:fff0": "2001:db8:1:7:fdff:ffff:ffff:ff70",
		"2001:db8:1:7:200:5eff:fe00:10":    "2001:db8:1:7:200:5eff:ff00:10",
	} {
		a := New(cfg, rand.Reader)
		want(t, in, take(t, a, Request{Family: IPv6, Near: func(netip.Prefix) netip.Addr { return addr(in) }}, 1, t0), []string{got})
	}
}

func TestReserve(t *testing.T) {
	cfg := Config{IPv4: prefixes("10.0.0.0/24"), IPv6: prefixes("2001:db8::/64"), Quarantine: time.Minute}
	a := New(cfg, rand.Reader)
	if err := a.Reserve(address.Granted{Addr: addr("10.0.0.1"), CIDR: cfg.IPv4[0]}); err != nil {
		t.Fatal(err)
	}
	want(t, "a reserved address is passed over", take(t, a, Request{Family: IPv4}, 1, t0), []string{"10.0.0.2"})
	wantError(t, a.Reserve(address.Granted{Addr: addr("10.0.0.2")}), "10.0.0.2 is held already: choose another address, or wait until the pod that holds it has gone")
	a.Release(addr("10.0.0.2"), "", t0)
	if err := a.Reserve(address.Granted{Addr: addr("10.0.0.2"), CIDR: cfg.IPv4[0]}); err != nil {
		t.Errorf("an address of the store in quarantine: %v", err)
	}
	if err := a.Reserve(address.Granted{Addr: addr("192.0.2.7")}); err != nil {
		t.Errorf("an address from a pool: %v", err)
	}
	want(t, "leases", a.AllHeld(), []address.Granted{
		{Addr: addr("10.0.0.1"), CIDR: cfg.IPv4[0]}, {Addr: addr("10.0.0.2"), CIDR: cfg.IPv4[0]}, {Addr: addr("192.0.2.7")},
	})
	want(t, "a pool's address retires no CIDR", len(a.Retired()), 0)
	want(t, "release of what is not held", a.Release(addr("10.0.0.9"), "", t0), false)
	for _, bad := range []netip.Addr{{}, addr("::ffff:10.0.0.7"), addr("fe80::1%eth0")} {
		if a.Reserve(address.Granted{Addr: bad}) == nil {
			t.Errorf("%v was reserved", bad)
		}
	}

	// A CIDR that comes later may cover what a pool granted before.
	cfg.IPv4 = prefixes("192.0.2.0/28")
	a.Configure(cfg)
	for _, got := range take(t, a, Request{Family: IPv4}, 13, t0) {
		if got == "192.0.2.7" {
			t.Error("192.0.2.7 was given out twice")
		}
	}
}

func TestARestartKeepsTheQuarantine(t *testing.T) {
	cfg := Config{IPv4: prefixes("10.0.0.0/30"), Quarantine: time.Minute}
	a := New(cfg, rand.Reader)
	if err := a.Reserve(address.Granted{Addr: addr("10.0.0.1"), CIDR: cfg.IPv4[0]}); err != nil {
		t.Fatal(err)
	}
	a.Release(addr("10.0.0.1"), "", t0.Add(-10*time.Second))
	want(t, "the other", take(t, a, Request{Family: IPv4}, 1, t0), []string{"10.0.0.2"})
	if l, err := a.Allocate(Request{Family: IPv4}, t0); err == nil {
		t.Errorf("got %v within its quarantine", l)
	}
	want(t, "after it", take(t, a, Request{Family: IPv4}, 1, t0.Add(50*time.Second)), []string{"10.0.0.1"})
}

func TestARemovedCIDRStaysUntilItsLastPodIsGone(t *testing.T) {
	cfg := Config{IPv6: prefixes("2001:db8:a::/64", "2001:db8:b::/64"), IPv4: prefixes("10.0.0.0/24")}
	a := New(cfg, rand.Reader)
	inA := Request{Family: IPv6, Within: cfg.IPv6[0]}
	old := take(t, a, inA, 2, t0)
	take(t, a, Request{Family: IPv4}, 1, t0)

	cfg.IPv6 = cfg.IPv6[1:]
	cfg.IPv4 = prefixes("10.0.0.0/16") // contains the old one, so no pod's address is retired
	a.Configure(cfg)
	want(t, "retired", a.Retired(), prefixes("2001:db8:a::/64"))
	if _, err := a.Allocate(inA, t0); err == nil {
		t.Error("a new pod got an address of the removed CIDR")
	}

	restarted := New(cfg, rand.Reader)
	for _, l := range a.AllHeld() {
		if err := restarted.Reserve(l); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "retired after a restart", restarted.Retired(), a.Retired())

	a.Release(addr(old[0]), "", t0)
	want(t, "with one left", a.Retired(), prefixes("2001:db8:a::/64"))
	a.Release(addr(old[1]), "", t0)
	want(t, "with none left", len(a.Retired()), 0)
	want(t, "usage", a.Usage(), []Usage{{CIDR: cfg.IPv6[0]}, {CIDR: cfg.IPv4[0], Held: 1}})
}

func TestAFailingRandomSource(t *testing.T) {
	a := New(Config{IPv6: prefixes("2001:db8::/64")}, io.LimitReader(rand.Reader, 20))
	take(t, a, Request{Family: IPv6}, 1, t0)
	if l, err := a.Allocate(Request{Family: IPv6}, t0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, %v", l, err)
	}
	want(t, "leases", len(a.AllHeld()), 1)
}

// Memory follows what is in use and in quarantine, not what was ever used.
func TestNothingIsRememberedForever(t *testing.T) {
	cfg := Config{IPv4: prefixes("10.0.0.0/8"), IPv6: prefixes("2001:db8::/48"), Quarantine: time.Minute}
	a, now := New(cfg, rand.Reader), t0
	for range 2 * remembered {
		now = now.Add(10 * time.Millisecond)
		for _, f := range []Family{IPv4, IPv6} {
			l, err := a.Allocate(Request{Family: f}, now)
			if err != nil {
				t.Fatal(err)
			}
			a.Release(l.Addr, "", now)
		}
	}
	for i, most := range []int{6001, remembered} {
		if u := a.Usage()[i]; u.Quarantined > most {
			t.Errorf("%s: %d addresses remembered, want at most %d", u.CIDR, u.Quarantined, most)
		}
	}
}
