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

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/address/ipam"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
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
	Static:  &config.StaticGrant{Namespaces: labels.SelectorFromSet(labels.Set{"team": "shop"})},
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
	granted := func(a address.Granted) string {
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
	for _, a := range p.Secondary {
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

// TestGrantInTheNode: nobody picks an address of the node's CIDRs without a grant, in
// whatever way it asks.
func TestGrantInTheNode(t *testing.T) {
	cidr := func(s string) annotation.Request {
		if p := prefix(s); p.Addr().Is4() {
			return annotation.Request{IPv4: true, CIDR4: p}
		} else {
			return annotation.Request{IPv6: true, CIDR6: p}
		}
	}
	const remedy = ": let flock allocate one, ask for one of an AddressPool, or ask the cluster's operator"
	for _, ask := range []struct {
		request   annotation.Request
		what, key string
	}{
		{static("2001:db8:100:1::7"), "2001:db8:100:1::7", annotation.Addresses},
		{static("10.244.1.7"), "10.244.1.7", annotation.Addresses},
		{static("2001:db8:200::7", "10.244.1.7"), "10.244.1.7", annotation.Addresses},
		{static("2001:db8:200::7", "2001:db8:100:1::7"), "2001:db8:100:1::7", annotation.Addresses},
		{cidr("10.244.1.7/32"), "10.244.1.7/32", annotation.CIDR4},
		{cidr("10.244.1.8/29"), "10.244.1.8/29", annotation.CIDR4},
		{cidr("2001:db8:100:1::7/128"), "2001:db8:100:1::7/128", annotation.CIDR6},
		{cidr("2001:db8:100:1::8/125"), "2001:db8:100:1::8/125", annotation.CIDR6},
	} {
		everything := pool("all", "", "static", "2001:db8::/32", "10.0.0.0/8") // grants nothing in a node's CIDRs
		for _, g := range []struct {
			grant *config.StaticGrant
			why   string
		}{
			{nil, "where no pod may pick an address, because spec.podCIDRs.static of nodeconfig node1 is not set"},
			{&config.StaticGrant{Namespaces: labels.SelectorFromSet(labels.Set{"team": "dns"})}, "and spec.podCIDRs.static of nodeconfig node1 admits only namespaces with labels team=dns, not namespace shop"},
			{&config.StaticGrant{Namespaces: labels.Nothing()}, "and spec.podCIDRs.static of nodeconfig node1 admits only namespaces with labels that no namespace has, not namespace shop"},
			{&config.StaticGrant{Namespaces: labels.Everything()}, ""},
		} {
			in := input(ask.request, everything)
			in.Node.Static = g.grant
			_, err := grant.Decide(in)
			if g.why == "" {
				if err != nil {
					t.Errorf("%s with a grant: %v", ask.what, err)
				}
				continue
			}
			want := "annotation " + ask.key + ": " + ask.what + " is in the pod CIDRs of node node1, "
			if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), g.why+remedy) {
				t.Errorf("%s:\n got %v\nwant %s%s%s", ask.what, err, want, g.why, remedy)
			}
		}
	}
	for _, free := range []annotation.Request{cidr("10.244.1.16/28"), cidr("2001:db8:100:1::10/124"), cidr("10.244.1.0/24"), {IPv6: true, IPv4: true}} {
		in := input(free)
		in.Node.Static = nil
		if _, err := grant.Decide(in); err != nil {
			t.Errorf("%+v without a grant: %v", free, err)
		}
	}
}

// TestNumberOfAddresses: what one pod may have in all.
func TestNumberOfAddresses(t *testing.T) {
	all := pool("all", "", "static,anycast", "2001:db8:200::/48", "203.0.113.0/24")
	asks := func(statics, anycasts int) annotation.Request {
		r := annotation.Request{IPv6: true, IPv4: true}
		for i := range statics {
			r.Static = append(r.Static, addr(fmt.Sprintf("2001:db8:200::%x", i+1)))
		}
		for i := range anycasts {
			r.Anycast = append(r.Anycast, addr(fmt.Sprintf("2001:db8:200:1::%x", i+1)))
		}
		return r
	}
	for _, c := range []struct {
		request annotation.Request
		most    int
		refused string
	}{
		{asks(0, 6), 0, ""}, // and one of each family is allocated
		{asks(7, 0), 0, ""},
		{asks(4, 3), 0, ""},
		{asks(0, 7), 0, "annotation flock.fritzlab.net/anycast: 9 addresses are too many, as a pod may have 8 on node node1: list fewer, or ask the cluster's operator to raise spec.maxAddressesPerPod of nodeconfig node1"},
		{asks(8, 0), 0, "annotation flock.fritzlab.net/addresses: 9 addresses are too many"},
		{asks(4, 4), 0, "annotation flock.fritzlab.net/addresses: 9 addresses are too many"},
		{asks(4, 4), 9, ""},
		{asks(1023, 0), 1024, ""},
		{asks(1024, 0), 1024, "annotation flock.fritzlab.net/addresses: 1025 addresses are too many, as a pod may have 1024"},
	} {
		in := input(c.request, all)
		in.Holder, in.Node.MaxAddresses = nobody, c.most
		if _, err := grant.Decide(in); (err == nil) != (c.refused == "") || err != nil && !strings.HasPrefix(err.Error(), c.refused) {
			t.Errorf("%d and %d of at most %d:\n got %v\nwant %s", len(c.request.Static), len(c.request.Anycast), c.most, err, c.refused)
		}
	}
}

// TestNamespaceLimits: what the pods of one namespace may have together.
func TestNamespaceLimits(t *testing.T) {
	shop := pool("shop", "team=shop", "static,anycast", "2001:db8:200::/64")
	shop.MaxPerNamespace = 3
	free := pool("free", "", "static", "203.0.113.0/24")
	of := func(pool string, as ...string) (all []address.Granted) {
		for _, a := range as {
			all = append(all, address.Granted{Addr: addr(a), Pool: pool})
		}
		return all
	}
	named := func(as ...string) (all []address.Granted) {
		for _, a := range as {
			all = append(all, address.Granted{Addr: addr(a), CIDR: node.IPv4[0], Named: true})
		}
		return all
	}
	inNode := &config.StaticGrant{Namespaces: labels.Everything(), MaxPerNamespace: 2}
	for _, c := range []struct {
		name    string
		request annotation.Request
		held    []address.Granted
		refused string
	}{
		{"the first ones", static("2001:db8:200::1", "2001:db8:200::2", "2001:db8:200::3"), nil, ""},
		{"more than all at once", static("2001:db8:200::1", "2001:db8:200::2", "2001:db8:200::3", "2001:db8:200::4"), nil,
			"annotation flock.fritzlab.net/addresses: 4 more of AddressPool shop would exceed the 3 that the pods of namespace shop may hold together (spec.maxAddressesPerNamespace), of which other pods hold 0: wait until some have gone, or ask the cluster's operator to raise the limit"},
		{"the last one", static("2001:db8:200::3"), of("shop", "2001:db8:200::1", "2001:db8:200::2"), ""},
		{"one more", static("2001:db8:200::4"), of("shop", "2001:db8:200::1", "2001:db8:200::2", "2001:db8:200::3"), "annotation flock.fritzlab.net/addresses: 1 more of AddressPool shop would exceed the 3 that"},
		{"anycast ones count", anycast("2001:db8:200::9"), of("shop", "2001:db8:200::1", "2001:db8:200::2", "2001:db8:200::3"), "annotation flock.fritzlab.net/anycast: 1 more of AddressPool shop would exceed"},
		{"one that is shared counts once", anycast("2001:db8:200::9"), of("shop", "2001:db8:200::9", "2001:db8:200::9", "2001:db8:200::1", "2001:db8:200::2"), ""},
		{"even over the limit", anycast("2001:db8:200::9"), of("shop", "2001:db8:200::9", "2001:db8:200::1", "2001:db8:200::2", "2001:db8:200::3"), ""},
		{"of another pool there may be more", static("203.0.113.9"), append(of("free", "203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4"), of("shop", "2001:db8:200::1", "2001:db8:200::2", "2001:db8:200::3")...), ""},
		{"in the node", static("10.244.1.7"), named("10.244.1.1"), ""},
		{"in the node, one more", static("10.244.1.7"), named("10.244.1.1", "10.244.1.2"), "annotation flock.fritzlab.net/addresses: 1 more by name of the pod CIDRs of node node1 would exceed the 2 that the pods of namespace shop may hold together (spec.podCIDRs.static.maxAddressesPerNamespace of nodeconfig node1), of which other pods hold 2"},
		{"in the node, by a small part", annotation.Request{IPv4: true, CIDR4: prefix("10.244.1.8/31")}, named("10.244.1.1", "10.244.1.2"), "annotation flock.fritzlab.net/addresses: 1 more by name"},
		{"allocated ones are not limited", annotation.Request{IPv4: true}, named("10.244.1.1", "10.244.1.2"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := input(c.request, shop, free)
			in.Node.Static, in.InNamespace = inNode, func() []address.Granted { return c.held }
			if _, err := grant.Decide(in); (err == nil) != (c.refused == "") || err != nil && !strings.HasPrefix(err.Error(), c.refused) {
				t.Errorf("\n got %v\nwant %s", err, c.refused)
			}
		})
	}
}

func TestNeeds(t *testing.T) {
	all := &config.StaticGrant{Namespaces: labels.Everything()}
	some := &config.StaticGrant{Namespaces: labels.SelectorFromSet(labels.Set{"team": "shop"})}
	for _, c := range []struct {
		name    string
		request annotation.Request
		grant   *config.StaticGrant
		want    grant.Needs
	}{
		{"nothing is asked for", annotation.Request{IPv6: true}, some, grant.Needs{}},
		{"a part of a CIDR", annotation.Request{IPv6: true, CIDR6: prefix("2001:db8:100:1:f::/80")}, some, grant.Needs{}},
		{"a small part", annotation.Request{IPv4: true, CIDR4: prefix("10.244.1.8/30")}, some, grant.Needs{NamespaceLabels: true}},
		{"in the node", static("10.244.1.7"), some, grant.Needs{NamespaceLabels: true}},
		{"in the node, of which anybody may", static("10.244.1.7"), all, grant.Needs{}},
		{"in the node, of which nobody may", static("10.244.1.7"), nil, grant.Needs{}},
		{"outside", static("10.244.1.7", "203.0.113.7"), nil, grant.Needs{Pools: true, NamespaceLabels: true}},
		{"anycast", anycast("2001:db8:200::7"), nil, grant.Needs{Pools: true, NamespaceLabels: true}},
	} {
		n := node
		n.Static = c.grant
		if got := grant.NeedsOf(c.request, n); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
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
	if got, want := fmt.Sprint(taken.Primary, taken.Secondary), "[{2001:db8:100:1::7 2001:db8:100:1::/64  true} {203.0.113.7 invalid Prefix shop false}] [{2001:db8:200::7 invalid Prefix shop false}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := len(a.AllHeld()); got != 3 {
		t.Errorf("%d addresses are held, want 3", got)
	}

	// Each address of the plan in turn has been taken by another since.
	for _, gone := range taken.Held() {
		a := ipam.New(cfg, rand.Reader)
		if err := a.Reserve(gone); err != nil {
			t.Fatal(err)
		}
		var refusal *grant.Refusal
		if _, err := plan.Take(a, embed.Workload{}, nobody, now); !errors.As(err, &refusal) || refusal.What != gone.Addr.String() {
			t.Errorf("%s: %v", gone.Addr, err)
		}
		if got := a.AllHeld(); len(got) != 1 {
			t.Errorf("%s: %v are held, want what was before", gone.Addr, got)
		}
	}

	// What is given back at once does not rest: there are but two IPv4 addresses.
	both, _ := grant.Decide(input(annotation.Request{IPv6: true, IPv4: true}))
	v4First, _ := grant.Decide(input(static("10.244.1.1", "10.244.1.2", "2001:db8:100:1::7")))
	a = ipam.New(cfg, rand.Reader)
	if err := a.Reserve(address.Granted{Addr: addr("10.244.1.2")}); err != nil {
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
	if got := len(a.AllHeld()); got != 3 {
		t.Errorf("%d addresses are held after an exhausted range, want 3", got)
	}
	if _, err := both.Take(ipam.New(cfg, strings.NewReader("")), embed.Workload{}, nobody, now); !errors.Is(err, io.EOF) {
		t.Errorf("without randomness: %v", err)
	}
}
