package wiring

import (
	"fmt"
	"net/netip"
	"slices"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// state is a pod's wiring: both ends of the link and what hangs on them. What
// flock neither sets nor minds is not in it.
type state struct {
	host, pod end
	// loopbackUp is that of the pod's namespace.
	loopbackUp bool
}

type end struct {
	mac        MAC
	mtu        int
	up         bool
	alias      string // of the host end
	master     int    // of the host end: the bridge or VRF that another program made it a port of
	released   bool   // of the host end: another program put it into the group of released links
	forwarding bool   // of the host end, IPv4; IPv6 has it for the node only
	rpFilter   uint32 // of the host end
	addrs      []address
	neighs     []neighbour
	routes     []route

	// What follows is only known of an actual end; what is wanted of it is the
	// same for all.

	hasIPv6     bool
	autoLL      bool // the kernel makes link-local addresses
	disableIPv6 bool
	acceptsRA   bool // a router advertisement from the other end would be obeyed
}

type address struct {
	prefix netip.Prefix
	peer   netip.Addr // the other end's, if it is the only one on the link
	ours   bool       // flock added it
}

// is says whether both are the same address, whoever added it.
func (a address) is(b address) bool { return a.prefix == b.prefix && a.peer == b.peer }

func (a address) String() string {
	if a.peer.IsValid() {
		return fmt.Sprintf("%v peer %v", a.prefix.Addr(), a.peer)
	}
	return a.prefix.String()
}

type neighbour struct {
	addr netip.Addr
	mac  MAC
}

type route struct {
	dst          netip.Prefix
	gateway, src netip.Addr
	metric       uint32
	extra        bool // it has an MTU or the like, which flock never sets
}

func (r route) String() string {
	s := r.dst.String()
	if r.gateway.IsValid() {
		s += " via " + r.gateway.String()
	}
	if r.src.IsValid() {
		s += " src " + r.src.String()
	}
	return s
}

const defaultMTU = 1500

// linkLocal is the link-local address of one end of a pod's link: own, with the other
// end's as its peer. With fe80::/64 instead, each invented address of that prefix would
// make an entry in the neighbor table, which has one limit for all network namespaces of
// the node.
func linkLocal(own, peer netip.Addr) address {
	return address{prefix: hostPrefix(own), peer: peer, ours: true}
}

// wiringOf is the whole wiring of an attachment.
func wiringOf(a Attachment) state {
	podMAC := PodMAC(a.ContainerID)
	mtu := a.MTU
	if mtu == 0 {
		mtu = defaultMTU
	}
	s := state{
		loopbackUp: true,
		host: end{
			mac: HostMAC, mtu: mtu, up: true, alias: kernel.Alias(a.ContainerID, a.Alias),
			forwarding: true, rpFilter: 0,
		},
		pod: end{mac: podMAC, mtu: mtu, up: true},
	}
	for _, addr := range a.Routed {
		s.host.routes = append(s.host.routes, route{dst: hostPrefix(addr), metric: kernel.MetricLocal})
	}
	for _, addr := range a.Announced {
		s.host.routes = append(s.host.routes, route{dst: hostPrefix(addr), metric: kernel.MetricStatic})
	}
	if i := slices.IndexFunc(a.Addrs, netip.Addr.Is6); i >= 0 {
		ll := LinkLocal(podMAC)
		s.host.addrs = append(s.host.addrs, linkLocal(Gateway6, ll))
		s.host.neighs = append(s.host.neighs, neighbour{ll, podMAC})
		s.pod.addrs = append(s.pod.addrs, linkLocal(ll, Gateway6))
		s.pod.neighs = append(s.pod.neighs, neighbour{Gateway6, HostMAC})
		s.pod.routes = append(s.pod.routes, route{
			dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), gateway: Gateway6, src: a.Addrs[i], metric: kernel.MetricPod,
		})
	}
	if i := slices.IndexFunc(a.Addrs, netip.Addr.Is4); i >= 0 {
		s.pod.neighs = append(s.pod.neighs, neighbour{Gateway4, HostMAC})
		s.pod.routes = append(s.pod.routes,
			route{dst: hostPrefix(Gateway4)},
			route{dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), gateway: Gateway4, src: a.Addrs[i]})
	}
	for _, addr := range a.Addrs {
		s.host.neighs = append(s.host.neighs, neighbour{addr, podMAC})
		s.pod.addrs = append(s.pod.addrs, address{prefix: hostPrefix(addr), ours: true})
	}
	return s
}

// hasEarlierLinkLocal says whether c would only replace the pod's link-local address by
// the same one with a peer: releases without peers wired pods that still run, and what is
// inside a running pod is not changed.
func (s state) hasEarlierLinkLocal(c change) bool {
	var a address
	switch do := c.do.(type) {
	case addAddr:
		a = do.address
	case delAddr:
		a = do.address
	}
	return c.where == inPod && a.prefix.Addr().IsLinkLocalUnicast() && slices.ContainsFunc(s.pod.addrs, func(have address) bool {
		return have.ours && !have.peer.IsValid() && have.prefix.Addr() == a.prefix.Addr()
	})
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// place is where a change is made.
type place int

const (
	onHost place = iota
	inPod
)

func (p place) String() string { return [...]string{"host", "pod"}[p] }

// change is one step from an actual state to the desired one: a request, or a
// file under /proc/sys/net.
type change struct {
	where place
	// what differs, for people: "address 10.1.2.3/32: missing".
	what words
	// do is what is to be done about it: one of the types below.
	do any
}

type (
	loopbackUp struct{}
	setLink    rtnl.LinkChange
	addAddr    struct{ address }
	delAddr    struct{ address }
	addNeigh   struct{ neighbour }
	addRoute   struct{ route }
	delRoute   struct{ route }
	// setSysctl is of the link: its name goes between the two parts of the path.
	setSysctl struct{ before, after, value string }
)

// words are put together where somebody reads them: nobody does where a link is new.
type words struct {
	format string
	args   []any
}

func (w words) String() string { return fmt.Sprintf(w.format, w.args...) }

func (c change) String() string { return c.where.String() + ": " + c.what.String() }

// plan is what leads from have to want, in an order that can be carried out from
// first to last. Pod before host, and the host's routes last: nothing is sent to
// a pod that is not whole. It is empty if nothing that flock minds differs.
func plan(want, have state) []change {
	var cs []change
	if want.loopbackUp && !have.loopbackUp {
		cs = append(cs, change{inPod, words{format: "loopback: down"}, loopbackUp{}})
	}
	cs = append(cs, planEnd(inPod, want.pod, have.pod)...)
	return append(cs, planEnd(onHost, want.host, have.host)...)
}

func planEnd(where place, want, have end) (cs []change) {
	add := func(do any, format string, args ...any) {
		cs = append(cs, change{where, words{format, args}, do})
	}
	wantIPv6 := slices.ContainsFunc(want.addrs, address.is6)
	if have.disableIPv6 && wantIPv6 {
		add(setSysctl{"ipv6/conf/", "/disable_ipv6", "0"}, "IPv6: disabled by sysctl")
	}
	if where == onHost && have.acceptsRA {
		add(setSysctl{"ipv6/conf/", "/accept_ra", "0"}, "router advertisements: accepted from the pod")
	}
	if have.mac != want.mac {
		add(setLink{MAC: (*[6]byte)(&want.mac)}, "mac: %v, want %v", have.mac, want.mac)
	}
	if have.mtu != want.mtu {
		add(setLink{MTU: &want.mtu}, "mtu: %d, want %d", have.mtu, want.mtu)
	}
	if where == onHost {
		cs = append(cs, planHostLink(want, have)...)
	}
	// A link that gets its IPv6 back with its MTU has forgotten its settings.
	if have.hasIPv6 && have.autoLL || !have.hasIPv6 && wantIPv6 {
		add(setLink{AddrGenMode: ptr(uint8(rtnl.AddrGenNone))}, "automatic link-local address: on")
	}
	if !have.hasIPv6 && wantIPv6 && have.up {
		made := address{prefix: netip.PrefixFrom(LinkLocal(want.mac), 64)}
		add(delAddr{made}, "address %v: made when IPv6 came back", made)
	}
	if !have.up {
		add(setLink{Up: ptr(true)}, "link: down")
	}

	for _, r := range have.routes {
		if !slices.Contains(want.routes, r) {
			add(delRoute{r}, "route %v: not the pod's", r)
		}
	}
	for _, a := range have.addrs {
		// A link that got its IPv6 back has a link-local address of the kernel's making.
		ours := a.ours || where == onHost && a.prefix.Addr().IsLinkLocalUnicast() ||
			// With another prefix length or peer: a link has an address once.
			slices.ContainsFunc(want.addrs, func(w address) bool { return w.prefix.Addr() == a.prefix.Addr() })
		if ours && !slices.ContainsFunc(want.addrs, a.is) {
			add(delAddr{a}, "address %v: not the pod's", a)
		}
	}
	for _, a := range want.addrs {
		if !slices.ContainsFunc(have.addrs, a.is) {
			add(addAddr{a}, "address %v: missing", a)
		}
	}
	for _, n := range want.neighs {
		if !slices.Contains(have.neighs, n) {
			add(addNeigh{n}, "neighbour %v at %v: missing", n.addr, n.mac)
		}
	}
	for _, r := range want.routes {
		if !slices.Contains(have.routes, r) {
			add(addRoute{r}, "route %v: missing", r)
		}
	}
	return cs
}

// planHostLink plans what only the host end has.
func planHostLink(want, have end) (cs []change) {
	add := func(do setLink, format string, args ...any) {
		cs = append(cs, change{onHost, words{format, args}, do})
	}
	if have.released {
		add(setLink{Group: ptr(uint32(0))}, "group: that of released links")
	}
	if have.master != 0 {
		add(setLink{Master: ptr(0)}, "master: link %d, want none", have.master)
	}
	if have.alias != want.alias {
		add(setLink{Alias: &want.alias}, "alias: %q, want %q", have.alias, want.alias)
	}
	if have.forwarding != want.forwarding || have.rpFilter != want.rpFilter {
		add(setLink{IPv4: &rtnl.IPv4Conf{Forwarding: 1, RPFilter: want.rpFilter}}, "IPv4 forwarding and rp_filter: %t and %d, want %t and %d",
			have.forwarding, have.rpFilter, want.forwarding, want.rpFilter)
	}
	return cs
}

func (a address) is6() bool { return a.prefix.Addr().Is6() }

func (a address) on(index int) rtnl.Addr {
	return rtnl.Addr{Link: index, Prefix: a.prefix, Peer: a.peer, Proto: kernel.RouteProtocol}
}

func (r route) on(index int) rtnl.Route {
	return rtnl.Route{Dst: r.dst, Gateway: r.gateway, Src: r.src, Link: index, Metric: r.metric, Proto: kernel.RouteProtocol}
}

func ptr[T any](v T) *T { return &v }
