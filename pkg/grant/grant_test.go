package grant_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"flock.fritzlab.net/flock/pkg/annotation"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/embed"
	"flock.fritzlab.net/flock/pkg/grant"
	"flock.fritzlab.net/flock/pkg/ipam"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func pool(name, selector, uses string, cidrs ...string) config.Pool {
	s, err := labels.Parse(selector)
	if err != nil {
		panic(err)
	}
	p := config.Pool{Name: name, Namespaces: s, Static: strings.Contains(uses, "static"), Anycast: strings.Contains(uses, "anycast")}
	for _, c := range cidrs {
		p.CIDRs = append(p.CIDRs, prefix(c))
	}
	return p
}

var node = config.Node{
	IPv6:    []netip.Prefix{prefix("2001:db8:100:1::/64"), prefix("2001:db8:100:8001::/64")},
	IPv4:    []netip.Prefix{prefix("10.244.1.0/24")},
	Exclude: []netip.Prefix{prefix("10.244.1.128/25")},
}

func input(r annotation.Request, pools ...config.Pool) grant.Input {
	held := map[netip.Addr]grant.Holder{
		addr("2001:db8:100:1::77"): {Pod: "shop/old-0"},
		addr("2001:db8:200::77"):   {Pod: "shop/old-0 on node2"},
		addr("2001:db8:200::53"):   {Pod: "shop/resolver-0", Anycast: true},
	}
	return grant.Input{
		Request: r, Namespace: "shop", NamespaceLabels: map[string]string{"team": "shop"},
		NodeName: "node1", Node: node, NodeAddrs: []netip.Addr{addr("2001:db8:100:1::1"), addr("192.0.2.11")},
		Pools:  pools,
		Holder: func(a netip.Addr) (grant.Holder, bool) { h, ok := held[a]; return h, ok },
	}
}

func static(as ...string) annotation.Request {
	r := annotation.Request{IPv6: true, IPv4: true}
	for _, a := range as {
		r.Static = append(r.Static, addr(a))
	}
	return r
}

func anycast(as ...string) annotation.Request {
	r := annotation.Request{IPv6: true}
	for _, a := range as {
		r.Anycast = append(r.Anycast, addr(a))
	}
	return r
}

// text is a plan in short: each address with what it is granted by.
func text(p grant.Plan) string {
	granted := func(a grant.Address) string {
		if a.Pool != "" {
			return fmt.Sprintf("%s by %s", a.Addr, a.Pool)
		}
		return fmt.Sprintf("%s of %s", a.Addr, a.CIDR)
	}
	var out []string
	for _, s := range []*grant.Source{p.IPv6, p.IPv4} {
		switch {
		case s == nil:
			out = append(out, "-")
		case s.Static != nil:
			out = append(out, granted(*s.Static))
		case s.Within.IsValid():
			out = append(out, fmt.Sprintf("any of %s %v", s.Within, s.Algo))
		default:
			out = append(out, fmt.Sprintf("any %v", s.Algo))
		}
	}
	for _, a := range p.Further {
		out = append(out, "and "+granted(a))
	}
	for _, a := range p.Anycast {
		out = append(out, "anycast "+granted(a))
	}
	return strings.Join(out, ", ")
}

func TestDecide(t *testing.T) {
	const addresses, anycastKey = "annotation flock.fritzlab.net/addresses: ", "annotation flock.fritzlab.net/anycast: "
	shop := pool("shop", "team=shop", "static,anycast", "2001:db8:200::/64", "203.0.113.0/24")
	wide := pool("wide", "", "static,anycast", "2001:db8:200::/48")
	nobody := pool("nobody", "team=dns", "static", "2001:db8:200::/64")
	for _, tc := range []struct {
		name  string
		in    grant.Input
		want  string
		error string
	}{
		{"allocated", input(annotation.Request{IPv6: true, IPv4: true, IPAlgo: []v1alpha1.IPAlgo{"app"}}), "any [app], any []", ""},
		{"one family", input(annotation.Request{IPv4: true}), "-, any []", ""},
		{"a part", input(annotation.Request{IPv6: true, CIDR6: prefix("2001:db8:100:8001:f::/80")}), "any of 2001:db8:100:8001:f::/80 [], -", ""},
		{"another node's CIDR", input(annotation.Request{IPv4: true, CIDR4: prefix("10.244.2.0/24")}), "",
			"annotation flock.fritzlab.net/cidr4: 10.244.2.0/24 is neither one of the IPv4 CIDRs of node node1 nor a part of one: choose from 10.244.1.0/24, or let the pod run on another node"},
		{"more than a CIDR", input(annotation.Request{IPv6: true, CIDR6: prefix("2001:db8:100::/48")}), "",
			"annotation flock.fritzlab.net/cidr6: 2001:db8:100::/48 is neither one of the IPv6 CIDRs of node node1 nor a part of one: choose from 2001:db8:100:1::/64, 2001:db8:100:8001::/64, or let the pod run on another node"},

		{"static in the node", input(static("2001:db8:100:1::7", "10.244.1.7")), "2001:db8:100:1::7 of 2001:db8:100:1::/64, 10.244.1.7 of 10.244.1.0/24", ""},
		{"static of one family, the other is allocated", input(static("10.244.1.7")), "any [], 10.244.1.7 of 10.244.1.0/24", ""},
		{"further addresses", input(static("203.0.113.7", "2001:db8:100:1::7", "203.0.113.8", "2001:db8:200::7"), shop),
			"2001:db8:100:1::7 of 2001:db8:100:1::/64, 203.0.113.7 by shop, and 2001:db8:200::7 by shop, and 203.0.113.8 by shop", ""},
		{"static, held here", input(static("2001:db8:100:1::77")), "", addresses + "2001:db8:100:1::77 is held by pod shop/old-0: choose another address, or wait until that pod has gone"},
		{"static, held elsewhere", input(static("2001:db8:200::77"), shop), "", addresses + "2001:db8:200::77 is held by pod shop/old-0 on node2: choose another address, or wait until that pod has gone"},
		{"static, held as anycast", input(static("2001:db8:200::53"), shop), "", addresses + "2001:db8:200::53 is held by pod shop/resolver-0: choose another address, or wait until that pod has gone"},
		{"a further one is held", input(static("2001:db8:100:1::7", "2001:db8:100:1::77")), "", addresses + "2001:db8:100:1::77 is held by pod shop/old-0: choose another address, or wait until that pod has gone"},
		{"static, the node's", input(static("2001:db8:100:1::1")), "", addresses + "2001:db8:100:1::1 is an address of node node1 itself: choose another"},
		{"static, the network's", input(static("10.244.1.0")), "", addresses + "10.244.1.0 is the network address of 10.244.1.0/24: choose another address of 10.244.1.0/24"},
		{"static, excluded", input(static("10.244.1.200")), "", addresses + "10.244.1.200 is in the excluded range 10.244.1.128/25 (spec.podCIDRs.exclude): choose another address of 10.244.1.0/24"},
		{"static, reserved", input(static("2001:db8:100:1::")), "", addresses + "2001:db8:100:1:: is the subnet-router anycast address of 2001:db8:100:1::/64 (RFC 4291 section 2.6.1): choose another address of 2001:db8:100:1::/64"},

		{"no pool", input(static("2001:db8:300::7"), shop), "", addresses + `2001:db8:300::7 is outside the pod CIDRs of node node1, and no AddressPool covers it: ask the cluster's operator for one with use "static" that admits namespace shop`},
		{"anycast by a pool", input(anycast("2001:db8:200::9", "2001:db8:200::53"), shop), "any [], -, anycast 2001:db8:200::9 by shop, anycast 2001:db8:200::53 by shop", ""},
		{"anycast, held as static", input(anycast("2001:db8:200::77"), shop), "", anycastKey + "2001:db8:200::77 is held by pod shop/old-0 on node2 as an address of its own: choose another address, or wait until that pod has gone"},
		{"anycast, the node's", input(anycast("192.0.2.11"), shop), "", anycastKey + "192.0.2.11 is an address of node node1 itself: choose another"},
		{"anycast in the node", input(anycast("2001:db8:100:1::53"), pool("all", "", "anycast", "2001:db8::/32")), "", anycastKey + "2001:db8:100:1::53 lies in 2001:db8:100:1::/64, which is always routed to node node1: an anycast address has to be outside the nodes' pod CIDRs, in an AddressPool"},

		{"the longest prefix decides", input(static("2001:db8:200::7"), wide, shop), "2001:db8:200::7 by shop, any []", ""},
		{"and decides alone", input(static("2001:db8:200::7"), wide, nobody), "", addresses + "2001:db8:200::7 is granted to namespace shop by no AddressPool: AddressPool nobody (2001:db8:200::/64) admits only namespaces with labels team=dns: choose an address of another pool, or ask the cluster's operator"},
		{"also on its use", input(anycast("2001:db8:200::7"), wide, pool("static", "", "static", "2001:db8:200::/64")), "", anycastKey + `2001:db8:200::7 is granted to namespace shop by no AddressPool: AddressPool static (2001:db8:200::/64) does not allow use "anycast": choose an address of another pool, or ask the cluster's operator`},
		{"beside it the wider one decides", input(static("2001:db8:200:1::7"), wide, nobody), "2001:db8:200:1::7 by wide, any []", ""},
		{"of equal ones each may grant", input(static("2001:db8:200::7"), nobody, shop), "2001:db8:200::7 by shop, any []", ""},
		{"of equal ones the first by name", input(static("2001:db8:200::7"), shop, pool("alpha", "", "static", "2001:db8:200::/64")), "2001:db8:200::7 by alpha, any []", ""},
		{"of equal ones none", input(anycast("2001:db8:200::7"), pool("b", "", "static", "2001:db8:200::/64"), pool("a", "team in (dns,ops)", "anycast", "2001:db8:200::/64")), "",
			anycastKey + `2001:db8:200::7 is granted to namespace shop by no AddressPool: AddressPool a (2001:db8:200::/64) admits only namespaces with labels team in (dns,ops); AddressPool b (2001:db8:200::/64) does not allow use "anycast": choose an address of another pool, or ask the cluster's operator`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := grant.Decide(tc.in)
			if tc.error != "" {
				var refusal *grant.Refusal
				if !errors.As(err, &refusal) || err.Error() != tc.error {
					t.Errorf("error:\n got %v\nwant %s", err, tc.error)
				}
				return
			}
			if err != nil || text(p) != tc.want {
				t.Errorf("\n got %s, %v\nwant %s", text(p), err, tc.want)
			}
		})
	}

	onlyV6 := input(annotation.Request{IPv4: true})
	onlyV6.Node.IPv4 = nil
	var none *ipam.NoCIDRError
	if _, err := grant.Decide(onlyV6); !errors.As(err, &none) || none.Family != ipam.IPv4 {
		t.Errorf("without IPv4 CIDRs: %v", err)
	}
	unlabelled := input(static("2001:db8:200::7"), shop)
	unlabelled.NamespaceLabels = nil
	if p, err := grant.Decide(unlabelled); err == nil {
		t.Errorf("a namespace without labels got %s", text(p))
	}
	if p, err := grant.Decide(input(static("2001:db8:200::7"), config.Pool{Name: "none", Namespaces: labels.Nothing(), Static: true, CIDRs: []netip.Prefix{prefix("2001:db8:200::/64")}})); err == nil {
		t.Errorf("a pool that admits nobody granted %s", text(p))
	}
}

// nobody holds an address yet.
func nobody(netip.Addr) (grant.Holder, bool) { return grant.Holder{}, false }

func TestTakeIsAllOrNothing(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	cfg := ipam.Config{Node: "node1", IPv6: node.IPv6, IPv4: []netip.Prefix{prefix("10.244.1.0/30")}, Quarantine: time.Hour}
	shop := pool("shop", "", "static", "2001:db8:200::/64", "203.0.113.0/24")
	plan, err := grant.Decide(input(static("2001:db8:100:1::7", "203.0.113.7", "2001:db8:200::7"), shop))
	if err != nil {
		t.Fatal(err)
	}
	a := ipam.New(cfg, rand.Reader)
	taken, err := plan.Take(a, embed.Workload{}, nobody, now)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(taken.Own, taken.Further), "[{2001:db8:100:1::7 2001:db8:100:1::/64} {203.0.113.7 invalid Prefix}] [{2001:db8:200::7 invalid Prefix}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := len(a.Leases()); got != 3 {
		t.Errorf("%d leases, want 3", got)
	}

	// Each address of the plan in turn has been taken by another since.
	for _, gone := range taken.Leases() {
		a := ipam.New(cfg, rand.Reader)
		if err := a.Reserve(gone); err != nil {
			t.Fatal(err)
		}
		var refusal *grant.Refusal
		if _, err := plan.Take(a, embed.Workload{}, nobody, now); !errors.As(err, &refusal) || refusal.What != gone.Addr.String() {
			t.Errorf("%s: %v", gone.Addr, err)
		}
		if got := a.Leases(); len(got) != 1 {
			t.Errorf("%s: %v are held, want what was before", gone.Addr, got)
		}
	}

	// What is given back at once does not rest: there are but two IPv4 addresses.
	both, _ := grant.Decide(input(annotation.Request{IPv6: true, IPv4: true}))
	v4First, _ := grant.Decide(input(static("10.244.1.1", "10.244.1.2", "2001:db8:100:1::7")))
	a = ipam.New(cfg, rand.Reader)
	if err := a.Reserve(ipam.Lease{Addr: addr("10.244.1.2")}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := v4First.Take(a, embed.Workload{}, nobody, now); err == nil {
			t.Fatal("10.244.1.2 was taken twice")
		}
	}
	if _, err := both.Take(a, embed.Workload{}, nobody, now); err != nil {
		t.Error(err)
	}
	var full *ipam.ExhaustedError
	if _, err := both.Take(a, embed.Workload{}, nobody, now); !errors.As(err, &full) {
		t.Errorf("in a full range: %v", err)
	}
	if got := len(a.Leases()); got != 3 {
		t.Errorf("%d leases after an exhausted range, want 3", got)
	}
	if _, err := both.Take(ipam.New(cfg, strings.NewReader("")), embed.Workload{}, nobody, now); !errors.Is(err, io.EOF) {
		t.Errorf("without randomness: %v", err)
	}
}
