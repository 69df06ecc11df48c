package wiring

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
)

func TestApplyNodeConverges(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.ns.IP("link", "add", "br0", "type", "bridge")
	node.ns.IP("link", "set", "br0", "up")
	foreign := []string{
		"unreachable 203.0.113.0/24 metric 512",   // another's protocol
		"10.0.0.53 dev br0 proto 85 metric 512",   // an announced host route
		"10.244.5.5 dev br0 proto 85 metric 1024", // a pod's
	}
	for _, r := range foreign {
		node.ns.IP(append([]string{"route", "add"}, strings.Fields(r)...)...)
	}
	// flock's own, stale
	node.ns.IP("route", "add", "unreachable", "10.9.0.0/16", "proto", "85", "metric", "512")
	node.ns.IP("route", "add", "unreachable", "2001:db8:f::/48", "proto", "85", "metric", "100")

	apply := func(want ...string) []NodeChange {
		t.Helper()
		var s NodeState
		for _, p := range want {
			s.Summaries = append(s.Summaries, netip.MustParsePrefix(p))
		}
		changes, err := node.ApplyNode(s)
		if err != nil {
			t.Fatal(err)
		}
		return changes
	}
	summaries := func() string {
		return sortedLines(node.ns.IP("-4", "route", "show", "type", "unreachable", "proto", "85") +
			node.ns.IP("-6", "route", "show", "type", "unreachable", "proto", "85"))
	}

	if changes := apply("2001:db8:100::/64", "10.244.0.0/16"); len(changes) != 6 {
		t.Errorf("changes %v, want two sysctls and four routes", changes)
	}
	for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if got := node.ns.ReadSysctl(s); got != "1" {
			t.Errorf("%s = %s, want 1", s, got)
		}
	}
	if got, want := summaries(), sortedLines(`
		unreachable 10.244.0.0/16 metric 512
		unreachable 2001:db8:100::/64 dev lo metric 512 pref medium`); got != want {
		t.Errorf("summaries:\n%s\nwant:\n%s", got, want)
	}
	if changes := apply("2001:db8:100::/64", "10.244.0.0/16"); len(changes) != 0 {
		t.Errorf("changes %v, want none the second time", changes)
	}
	node.ns.Sysctl("ipv4/ip_forward", "0")
	if changes := apply("2001:db8:200::/64"); len(changes) != 4 {
		t.Errorf("changes %v, want a sysctl and three routes", changes)
	}
	all := node.ns.IP("-details", "route") + node.ns.IP("-6", "-details", "route")
	for _, r := range foreign {
		dst := strings.Fields(strings.TrimPrefix(r, "unreachable "))[0]
		if !strings.Contains(all, dst+" ") {
			t.Errorf("someone's route %s is gone:\n%s", r, all)
		}
	}
	// What no pod has is refused, not sent on to the router and back.
	if out, err := node.ns.Try("ping", "-c1", "-W1", "2001:db8:200::1"); err == nil || !strings.Contains(out, "No route to host") {
		t.Errorf("ping of an unused address: %s", out)
	}
}

func TestForeignSummaryInTheWay(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.ns.IP("route", "add", "blackhole", "10.244.0.0/16", "metric", "512")
	_, err := node.ApplyNode(NodeState{Summaries: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})
	if err == nil || !strings.Contains(err.Error(), "10.244.0.0/16") || !strings.Contains(err.Error(), "metric 512") {
		t.Errorf("error %v, want one that names the summary and the metric", err)
	}
}

// Turning forwarding on makes the kernel drop the default route that it has from
// its router, and deaf to the next one.
func TestRouterAdvertisementsSurviveForwarding(t *testing.T) {
	t.Parallel()
	learned := func(t *testing.T) (*testNode, *nettest.NS) {
		node, router := newNode(t), nettest.New(t)
		node.ns.Veth("uplink", router, "lan")
		advertise(t, router, "lan")
		nettest.Await(t, "the node learns its default route", func() bool {
			return strings.Contains(node.ns.IP("-6", "route"), "default via fe80::")
		})
		return node, router
	}
	t.Run("by themselves they do not", func(t *testing.T) {
		t.Parallel()
		node, _ := learned(t)
		node.ns.Sysctl("ipv6/conf/all/forwarding", "1")
		if out := node.ns.IP("-6", "route", "show", "default"); out != "" {
			t.Errorf("the kernel has changed: this care is no longer needed:\n%s", out)
		}
	})
	t.Run("flock sees to it", func(t *testing.T) {
		t.Parallel()
		node, router := learned(t)
		node.apply(t)
		if out := node.ns.IP("-6", "route", "show", "default"); !strings.Contains(out, "default via fe80::") {
			t.Errorf("the default route is gone: %q", out)
		}
		if got := node.ns.ReadSysctl("ipv6/conf/uplink/accept_ra"); got != "2" {
			t.Errorf("accept_ra = %s, want 2", got)
		}
		node.ns.IP("-6", "route", "del", "default")
		advertise(t, router, "lan")
		nettest.Await(t, "the node listens to its router still", func() bool {
			return strings.Contains(node.ns.IP("-6", "route"), "default via fe80::")
		})
	})
	t.Run("another program was quicker", func(t *testing.T) {
		t.Parallel()
		node, router := learned(t)
		node.ns.Sysctl("ipv6/conf/all/forwarding", "1") // the route is gone, the address is still there
		node.apply(t)
		advertise(t, router, "lan")
		nettest.Await(t, "the node listens to its router again", func() bool {
			return strings.Contains(node.ns.IP("-6", "route"), "default via fe80::")
		})
	})
	t.Run("advertisements read in user space are left to it", func(t *testing.T) {
		t.Parallel()
		node, router := newNode(t), nettest.New(t)
		node.ns.Veth("uplink", router, "lan")
		node.ns.Sysctl("ipv6/conf/uplink/accept_ra", "0")
		node.ns.IP("-6", "route", "add", "default", "via", "fe80::1", "dev", "uplink", "proto", "ra")
		node.apply(t)
		if got := node.ns.ReadSysctl("ipv6/conf/uplink/accept_ra"); got != "0" {
			t.Errorf("accept_ra = %s, want 0 as it was", got)
		}
	})
}

// advertise sends one router advertisement (RFC 4861, section 4.2) for a default
// route and the prefix 2001:db8:0:1::/64.
func advertise(t *testing.T, router *nettest.NS, dev string) {
	t.Helper()
	ra := []byte{134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(ra[6:], 1800) // router lifetime, seconds
	prefix := make([]byte, 32)
	prefix[0], prefix[1], prefix[2], prefix[3] = 3, 4, 64, 0xc0 // prefix information; on-link, autonomous
	binary.BigEndian.PutUint32(prefix[4:], 86400)
	binary.BigEndian.PutUint32(prefix[8:], 14400)
	copy(prefix[16:], netip.MustParseAddr("2001:db8:0:1::").AsSlice())
	router.Run(func() {
		c, err := net.ListenPacket("ip6:ipv6-icmp", "::")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw, err := c.(*net.IPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
		})
		if err != nil {
			t.Fatal(err)
		}
		ifi, err := net.InterfaceByName(dev)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteTo(append(ra, prefix...), &net.IPAddr{IP: net.IPv6linklocalallnodes, Zone: fmt.Sprint(ifi.Index)}); err != nil {
			t.Fatal(err)
		}
	})
}

// A route to a link makes its destination a subnet of the node, whoever set it; a gateway, of
// whichever family, does not.
func TestOnLink(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.attach(t, n.pod(t))
	n.ns.IP("link", "add", "name", "eth0", "type", "bridge")
	n.ns.IP("link", "add", "name", "tunnel", "type", "bridge")
	n.ns.IP("link", "set", "dev", "tunnel", "arp", "off")
	for _, l := range []string{"eth0", "tunnel"} {
		n.ns.IP("link", "set", "dev", l, "up")
	}
	n.ns.IP("address", "add", "192.0.2.11/24", "dev", "eth0")
	n.ns.IP("address", "add", "2001:db8:0:1::11/128", "dev", "eth0", "nodad")
	for _, r := range []string{
		"2001:db8:0:1::/64 dev eth0 proto ra", "169.254.0.0/16 dev eth0 scope link", "198.51.100.0/25 dev eth0 mtu 1400",
		"203.0.113.0/24 nhid 1", "2001:db8:5::/64 via 2001:db8:0:1::1 dev eth0", "10.1.0.0/16 via 192.0.2.1", "10.2.0.0/16 via inet6 2001:db8:0:1::1 dev eth0",
		"default dev eth0", "2001:db8:7::7/128 dev eth0", "10.3.0.0/16 dev tunnel", "unreachable 10.4.0.0/16",
		"10.5.0.0/16 nexthop via 192.0.2.1 nexthop via 192.0.2.2", "10.6.0.0/16 dev eth0 table 77",
	} {
		if strings.Contains(r, "nhid") {
			n.ns.IP("nexthop", "add", "id", "1", "dev", "eth0")
		}
		family := "-4"
		if strings.HasPrefix(r, "2001:") {
			family = "-6"
		}
		n.ns.IP(append([]string{family, "route", "add"}, strings.Fields(r)...)...)
	}
	var want []netip.Prefix
	for _, p := range []string{"169.254.0.0/16", "192.0.2.0/24", "198.51.100.0/25", "203.0.113.0/24", "2001:db8:0:1::/64"} {
		want = append(want, netip.MustParsePrefix(p))
	}
	if got, err := n.OnLink(); err != nil || !slices.Equal(got, want) {
		t.Errorf("on link are %v, %v; want %v", got, err, want)
	}
}

func TestUplinkMTU(t *testing.T) {
	t.Parallel()
	bridge := func(node *testNode, name, mtu string) {
		node.ns.IP("link", "add", "name", name, "mtu", mtu, "type", "bridge")
		node.ns.IP("link", "set", "dev", name, "up")
	}
	for name, tc := range map[string]struct {
		setup func(*testNode)
		want  int
	}{
		"one uplink of several links": {func(n *testNode) {
			bridge(n, "small", "1300")
			bridge(n, "lan", "9000")
			n.ns.IP("route", "add", "default", "dev", "lan")
		}, 9000},
		"the smaller of two families'": {func(n *testNode) {
			bridge(n, "up4", "9000")
			bridge(n, "up6", "1450")
			n.ns.IP("route", "add", "default", "dev", "up4")
			n.ns.IP("-6", "route", "add", "default", "dev", "up6")
		}, 1450},
		"the smaller of a multipath's": {func(n *testNode) {
			bridge(n, "a", "9000")
			bridge(n, "b", "4000")
			n.ns.IP("route", "add", "default", "nexthop", "dev", "a", "nexthop", "dev", "b")
		}, 4000},
		"behind a nexthop object": {func(n *testNode) {
			bridge(n, "a", "8000")
			bridge(n, "small", "1300")
			n.ns.IP("nexthop", "add", "id", "1", "dev", "a")
			n.ns.IP("route", "add", "default", "nhid", "1")
		}, 8000},
		"no default route": {func(n *testNode) {
			bridge(n, "a", "9000")
			bridge(n, "b", "1400")
			n.ns.IP("link", "add", "name", "down", "mtu", "1280", "type", "bridge")
			n.ns.IP("-6", "route", "add", "unreachable", "default")
			p := n.pod(t)
			p.MTU = 1280
			n.attach(t, p)
		}, 1400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			tc.setup(node)
			if got, err := node.UplinkMTU(); got != tc.want || err != nil {
				t.Errorf("uplink mtu %d, %v; want %d", got, err, tc.want)
			}
		})
	}
	if got, err := newNode(t).UplinkMTU(); err == nil || !strings.Contains(err.Error(), "spec.mtu") {
		t.Errorf("a node without links: %d, %v; want an error with the remedy", got, err)
	}
}
