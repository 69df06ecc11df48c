package wiring

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

func planned(a Attachment) state {
	s := wiringOf(a)
	s.host.hasIPv6, s.pod.hasIPv6 = true, true
	return s
}

var dual = Attachment{
	ContainerID: "c0ffee", HostIf: HostIfName("c0ffee"), PodIf: "eth0", Alias: "shop/web-0", MTU: 1500,
	Addrs:  []netip.Addr{netip.MustParseAddr("2001:db8::5"), netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("2001:db8:a::53")},
	Routed: []netip.Addr{netip.MustParseAddr("2001:db8::5"), netip.MustParseAddr("10.1.2.3")},
}

func TestPlanOfAFreshLink(t *testing.T) {
	t.Parallel()
	fresh := state{
		host: end{mac: HostMAC, mtu: 1500, hasIPv6: true, autoLL: true, forwarding: true, rpFilter: 1},
		pod:  end{mac: PodMAC("c0ffee"), mtu: 1500, hasIPv6: true, autoLL: true},
	}
	var got []string
	for _, c := range plan(wiringOf(dual), fresh) {
		got = append(got, c.String())
	}
	want := []string{
		"pod: loopback: down",
		"pod: automatic link-local address: on",
		"pod: link: down",
		"pod: address fe80::a06b:99ff:feed:2270 peer fe80::1: missing",
		"pod: address 2001:db8::5/128: missing",
		"pod: address 10.1.2.3/32: missing",
		"pod: address 2001:db8:a::53/128: missing",
		"pod: neighbour fe80::1 at 02:66:6c:6f:63:6b: missing",
		"pod: neighbour 169.254.1.1 at 02:66:6c:6f:63:6b: missing",
		"pod: route ::/0 via fe80::1 src 2001:db8::5: missing",
		"pod: route 169.254.1.1/32: missing",
		"pod: route 0.0.0.0/0 via 169.254.1.1 src 10.1.2.3: missing",
		`host: alias: "", want "shop/web-0 c0ffee"`,
		`host: IPv4 forwarding and rp_filter: true and 1, want true and 0`,
		"host: automatic link-local address: on",
		"host: link: down",
		"host: address fe80::1 peer fe80::a06b:99ff:feed:2270: missing",
		"host: neighbour fe80::a06b:99ff:feed:2270 at a2:6b:99:ed:22:70: missing",
		"host: neighbour 2001:db8::5 at a2:6b:99:ed:22:70: missing",
		"host: neighbour 10.1.2.3 at a2:6b:99:ed:22:70: missing",
		"host: neighbour 2001:db8:a::53 at a2:6b:99:ed:22:70: missing",
		"host: route 2001:db8::5/128: missing",
		"host: route 10.1.2.3/32: missing",
	}
	if !slices.Equal(got, want) {
		t.Errorf("plan:\n%q\nwant:\n%q", got, want)
	}
}

// From any state, carrying a plan out leads to one of which there is nothing more
// to plan, and what others added is still in it.
func TestPlanConverges(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	want := wiringOf(dual)
	for range 2000 {
		have := damaged(r, planned(dual))
		theirs := foreign(have)
		have = carriedOut(have, plan(want, have))
		if cs := plan(want, have); len(cs) > 0 {
			t.Fatalf("still to do: %v", cs)
		}
		for _, a := range theirs {
			if !slices.Contains(have.pod.addrs, a) {
				t.Fatalf("the pod lost %v, which flock had not added", a)
			}
		}
	}
}

func foreign(s state) (as []address) {
	for _, a := range s.pod.addrs {
		if !a.ours {
			as = append(as, a)
		}
	}
	return as
}

// damaged takes some things away and adds some others.
func damaged(r *rand.Rand, s state) state {
	maybe := func() bool { return r.IntN(3) == 0 }
	s.loopbackUp = maybe()
	for _, e := range []*end{&s.host, &s.pod} {
		if maybe() {
			e.mac = MAC{2, 0, 0, 0, 0, byte(r.IntN(256))}
		}
		if maybe() {
			e.mtu = r.IntN(9000)
		}
		e.up, e.autoLL, e.disableIPv6, e.acceptsRA = maybe(), maybe(), maybe(), maybe()
		e.hasIPv6 = !maybe()
		if maybe() {
			e.alias, e.rpFilter, e.forwarding = "other", 2, false
		}
		e.addrs = slices.DeleteFunc(slices.Clone(e.addrs), func(address) bool { return maybe() })
		e.neighs = slices.DeleteFunc(slices.Clone(e.neighs), func(neighbour) bool { return maybe() })
		e.routes = slices.DeleteFunc(slices.Clone(e.routes), func(route) bool { return maybe() })
		if maybe() {
			e.addrs = append(e.addrs, address{prefix: netip.MustParsePrefix("10.9.9.9/32"), ours: maybe()})
		}
		if maybe() {
			e.routes = append(e.routes, route{dst: netip.MustParsePrefix("10.9.9.9/32"), metric: kernel.MetricLocal})
		}
	}
	return s
}

// carriedOut is a model of what the kernel makes of a plan.
func carriedOut(s state, cs []change) state {
	for _, c := range cs {
		e := &s.host
		if c.where == inPod {
			e = &s.pod
		}
		switch do := c.do.(type) {
		case loopbackUp:
			s.loopbackUp = true
		case setSysctl:
			switch do.after {
			case "/disable_ipv6":
				e.disableIPv6 = false
			case "/accept_ra":
				e.acceptsRA = false
			}
		case setLink:
			if do.MAC != nil {
				e.mac = *do.MAC
			}
			if do.MTU != nil {
				e.mtu, e.hasIPv6 = *do.MTU, *do.MTU >= 1280
			}
			if do.Alias != nil {
				e.alias = *do.Alias
			}
			if do.IPv4 != nil {
				e.forwarding, e.rpFilter = do.IPv4.Forwarding != 0, do.IPv4.RPFilter
			}
			if do.AddrGenMode != nil {
				e.hasIPv6, e.autoLL = true, false
			}
			if do.Up != nil {
				e.up = *do.Up
			}
		case addAddr:
			e.addrs = append(e.addrs, do.address)
		case delAddr:
			e.addrs = slices.DeleteFunc(e.addrs, func(a address) bool { return a == do.address })
		case addNeigh:
			e.neighs = append(e.neighs, do.neighbour)
		case addRoute:
			e.routes = append(e.routes, do.route)
		case delRoute:
			e.routes = slices.DeleteFunc(e.routes, func(r route) bool { return r == do.route })
		}
	}
	return s
}
