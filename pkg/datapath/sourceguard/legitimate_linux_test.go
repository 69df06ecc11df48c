package sourceguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

// TestLegitimate has pod a do all that a pod may. It arrives, and nothing counts as
// forged.
func TestLegitimate(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	// The strict reverse path filter that wiring sets knows nothing of an anycast
	// address that is not announced at the moment.
	n.ns.Sysctl("ipv4/conf/"+n.a.HostIf+"/rp_filter", "0")

	for _, src := range n.a.all {
		for _, dst := range n.destinations(src) {
			t.Run(fmt.Sprintf("from %v to %v", src, dst), func(t *testing.T) { n.delivers(t, src, dst) })
		}
	}
	t.Run("from behind another MAC", func(t *testing.T) {
		// The link has two ends. What a pod's frames have for a source is its own
		// business, for example that of a virtual machine in it.
		n.a.send(t, packet(n.b.mac, n.a.v6(), node6, unix.IPPROTO_UDP, udp(n.a.v6(), node6, honest)))
	})
	t.Run("icmp errors", func(t *testing.T) {
		for _, dst := range n.a.Routed {
			n.outside.Run(func() {
				c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 9)))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(deadline())
				if _, err := c.Write([]byte(honest)); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("%v: port unreachable did not come: %v", dst, err)
				}
			})
		}
	})
	t.Run("tcp", func(t *testing.T) {
		n.tcp(t, n.b.NS, n.b.v6())
		n.tcp(t, n.outside, outside6)
		n.tcp(t, n.outside, outside4)
	})
	t.Run("fragments", func(t *testing.T) {
		n.a.Exec("ping", "-c1", "-W5", "-s4000", outside6.String())
		n.a.Exec("ping", "-c1", "-W5", "-s4000", outside4.String())
		n.a.Exec("ping", "-c1", "-W5", "-s4000", n.b.v6().String())
	})
	t.Run("the gateway", func(t *testing.T) {
		n.a.Exec("ping", "-c1", "-W5", wiring.Gateway6.String()+"%eth0")
		n.ns.Exec("ping", "-c1", "-W5", n.a.linkLocal.String()+"%"+n.a.HostIf)
	})
	t.Run("neighbour discovery", func(t *testing.T) {
		n.a.IP("neigh", "del", wiring.Gateway6.String(), "dev", "eth0")
		n.a.Exec("ping", "-c1", "-W5", outside6.String())
	})
	t.Run("multicast listener, and an address of its own making", func(t *testing.T) {
		unspecified := netip.IPv6Unspecified()
		report := []byte{0, 0, 0, 1, 4, 0, 0, 0, 0xff, 2, 15: 0, 23: 0xfb}
		for _, src := range []netip.Addr{n.a.linkLocal, unspecified} {
			dst := addr("ff02::16")
			n.a.send(t, packet(n.a.mac, src, dst, 0, append([]byte{unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0}, icmpv6(src, dst, 143, report)...)))
		}
		solicited := addr("ff02::1:ff00:a")
		n.a.send(t,
			packet(n.a.mac, unspecified, solicited, unix.IPPROTO_ICMPV6, icmpv6(unspecified, solicited, 135, make([]byte, 4), n.a.v6().AsSlice())),
			packet(n.a.mac, unspecified, addr("ff02::2"), unix.IPPROTO_ICMPV6, icmpv6(unspecified, addr("ff02::2"), 133, make([]byte, 4))),
			packet(n.a.mac, n.a.linkLocal, addr("ff02::2"), unix.IPPROTO_ICMPV6, icmpv6(n.a.linkLocal, addr("ff02::2"), 133, make([]byte, 4))),
			packet(n.a.mac, n.a.v4(), addr("224.0.0.22"), unix.IPPROTO_IGMP, make([]byte, 16)),
			packet(n.a.mac, netip.IPv4Unspecified(), addr("224.0.0.22"), unix.IPPROTO_IGMP, make([]byte, 16)),
		)
	})
	t.Run("arp", func(t *testing.T) {
		for _, sender := range []netip.Addr{n.a.v4(), static4, anycast4, netip.IPv4Unspecified()} {
			n.a.send(t, ethernet(n.a.mac, unix.ETH_P_ARP, arp(1, n.a.mac, sender, wiring.MAC{}, wiring.Gateway4)))
		}
	})
	t.Run("broadcast and multicast", func(t *testing.T) {
		for _, dst := range []netip.Addr{addr("255.255.255.255"), addr("224.0.0.251")} {
			n.a.send(t, packet(n.a.mac, n.a.v4(), dst, unix.IPPROTO_UDP, udp(n.a.v4(), dst, honest)))
		}
		mdns := addr("ff02::fb")
		n.a.send(t, packet(n.a.mac, n.a.v6(), mdns, unix.IPPROTO_UDP, udp(n.a.v6(), mdns, honest)))
	})

	n.observe(t).nothingForged(t, n) // and so all of the above is through
	drops, unbound, err := n.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range drops {
		if d.Packets != 0 {
			t.Errorf("%s: %d packets dropped", d.HostIf, d.Packets)
		}
	}
	if unbound.Packets != 0 {
		t.Errorf("%d packets dropped that no pod sent", unbound.Packets)
	}
}

// delivers has pod a send a packet, and the one who has dst receive it.
func (n *testNode) delivers(t *testing.T, src, dst netip.Addr) {
	t.Helper()
	c := n.listener(t, dst)
	n.a.send(t, packet(n.a.mac, src, dst, unix.IPPROTO_UDP, udpPorts(testPort, listenPort, src, dst, honest)))
	in := make([]byte, 1500)
	c.SetReadDeadline(deadline())
	k, from, err := c.ReadFromUDPAddrPort(in)
	if err != nil || string(in[:k]) != honest || from.Addr().Unmap() != src {
		t.Errorf("received %q from %v: %v", in[:k], from, err)
	}
}

const listenPort = testPort + 1

// listener is whoever has an address, listening. It stays for the whole test: a
// socket that was closed may live on for a moment in a process being started.
func (n *testNode) listener(t *testing.T, dst netip.Addr) *net.UDPConn {
	t.Helper()
	if c := n.listeners[dst]; c != nil {
		return c
	}
	ns := n.b.NS
	switch dst {
	case node4, node6:
		ns = n.ns
	case outside4, outside6:
		ns = n.outside
	}
	ns.Run(func() {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, listenPort)))
		if err != nil {
			t.Fatal(err)
		}
		n.t.Cleanup(func() { c.Close() })
		n.listeners[dst] = c
	})
	return n.listeners[dst]
}

// tcp connects pod a to a listener elsewhere, and has both say something.
func (n *testNode) tcp(t *testing.T, ns *nettest.NS, dst netip.Addr) {
	t.Helper()
	var l net.Listener
	var err error
	ns.Run(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(dst, 0).String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Write([]byte(honest))
			c.Close()
		}
	}()
	n.a.Run(func() {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(deadline())
		in := make([]byte, len(honest))
		if _, err := c.Read(in); err != nil || string(in) != honest {
			t.Errorf("%v: %q %v", dst, in, err)
		}
	})
}
