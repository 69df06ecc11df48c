package wiring

import (
	"fmt"
	"net/netip"
	"slices"

	"flock.fritzlab.net/flock/pkg/wiring/rtnl"
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
	ours   bool // flock added it
}

type neighbour struct {
	addr netip.Addr
	mac  MAC
}

type route struct {
	dst          netip.Prefix
	gateway, src netip.Addr
	metric       uint32
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

// hostLinkLocal is what the host end answers neighbour discovery with.
var hostLinkLocal = netip.PrefixFrom(Gateway6, 64)

// desired is the whole wiring of an attachment.
func desired(a Attachment) state {
	podMAC := PodMAC(a.ContainerID)
	mtu := a.MTU
	if mtu == 0 {
		mtu = defaultMTU
	}
	s := state{
		loopbackUp: true,
		host: end{
			mac: HostMAC, mtu: mtu, up: true, alias: linkAlias(a.ContainerID, a.Alias),
			forwarding: true, rpFilter: 0,
		},
		pod: end{mac: podMAC, mtu: mtu, up: true},
	}
	for _, addr := range a.Routed {
		s.host.routes = append(s.host.routes, route{dst: hostPrefix(addr), metric: MetricLocal})
	}
	for _, addr := range a.Announced {
		s.host.routes = append(s.host.routes, route{dst: hostPrefix(addr), metric: MetricStatic})
	}
	if i := slices.IndexFunc(a.Addrs, netip.Addr.Is6); i >= 0 {
		ll := LinkLocal(podMAC)
		s.host.addrs = append(s.host.addrs, address{hostLinkLocal, true})
		s.host.neighs = append(s.host.neighs, neighbour{ll, podMAC})
		s.pod.addrs = append(s.pod.addrs, address{netip.PrefixFrom(ll, 64), true})
		s.pod.neighs = append(s.pod.neighs, neighbour{Gateway6, HostMAC})
		s.pod.routes = append(s.pod.routes, route{
			dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), gateway: Gateway6, src: a.Addrs[i], metric: 1024,
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
		s.pod.addrs = append(s.pod.addrs, address{hostPrefix(addr), true})
	}
	return s
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
	what string
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

func (c change) String() string { return c.where.String() + ": " + c.what }

// plan is what leads from have to want, in an order that can be carried out from
// first to last. Pod before host, and the host's routes last: nothing is sent to
// a pod that is not whole. It is empty if nothing that flock minds differs.
func plan(want, have state) []change {
	var cs []change
	if want.loopbackUp && !have.loopbackUp {
		cs = append(cs, change{inPod, "loopback: down", loopbackUp{}})
	}
	cs = append(cs, planEnd(inPod, want.pod, have.pod)...)
	return append(cs, planEnd(onHost, want.host, have.host)...)
}

func planEnd(where place, want, have end) (cs []change) {
	add := func(do any, format string, args ...any) {
		cs = append(cs, change{where, fmt.Sprintf(format, args...), do})
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
	if !have.up {
		add(setLink{Up: ptr(true)}, "link: down")
	}

	for _, r := range have.routes {
		if !slices.Contains(want.routes, r) {
			add(delRoute{r}, "route %v: not the pod's", r)
		}
	}
	for _, a := range have.addrs {
		if a.ours && !slices.Contains(want.addrs, a) {
			add(delAddr{a}, "address %v: not the pod's", a.prefix)
		}
	}
	for _, a := range want.addrs {
		if !slices.ContainsFunc(have.addrs, func(h address) bool { return h.prefix == a.prefix }) {
			add(addAddr{a}, "address %v: missing", a.prefix)
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
	var c setLink
	var what string
	differ := func(format string, args ...any) {
		if what != "" {
			what += "; "
		}
		what += fmt.Sprintf(format, args...)
	}
	if have.alias != want.alias {
		c.Alias = &want.alias
		differ("alias: %q, want %q", have.alias, want.alias)
	}
	if have.forwarding != want.forwarding || have.rpFilter != want.rpFilter {
		c.IPv4 = &rtnl.IPv4Conf{Forwarding: 1, RPFilter: want.rpFilter}
		differ("IPv4 forwarding and rp_filter: %t and %d, want %t and %d",
			have.forwarding, have.rpFilter, want.forwarding, want.rpFilter)
	}
	if what == "" {
		return nil
	}
	return []change{{onHost, what, c}}
}

func (a address) is6() bool { return a.prefix.Addr().Is6() }

func (a address) on(index int) rtnl.Addr {
	return rtnl.Addr{Link: index, Prefix: a.prefix, Proto: RouteProtocol}
}

func (r route) on(index int) rtnl.Route {
	return rtnl.Route{Dst: r.dst, Gateway: r.gateway, Src: r.src, Link: index, Metric: r.metric, Proto: RouteProtocol}
}

func ptr[T any](v T) *T { return &v }
