package sourceguard

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

// TestForgedSources has pod a send from addresses that it does not hold, in every
// shape, to pod b, to the world outside and to the node itself. Nothing arrives,
// every frame is counted, and conntrack has not heard of it.
func TestForgedSources(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	o := n.observe(t)

	sources := map[string]netip.Addr{
		"the other pod's":          n.b.v6(),
		"the node's":               node6,
		"an outside host's":        outside6,
		"from nowhere":             nowhere6,
		"next to its own":          n.a.v6().Next(),
		"the gateway's":            wiring.Gateway6,
		"other link-local":         n.b.linkLocal,
		"own link-local":           n.a.linkLocal, // is for neighbour discovery only
		"unspecified":              netip.IPv6Unspecified(),
		"its IPv4 address as IPv6": netip.AddrFrom16(n.a.v4().As16()),
		"loopback":                 netip.IPv6Loopback(),
		"multicast":                addr("ff02::1"),
		"the other pod's IPv4":     n.b.v4(),
		"the node's IPv4":          node4,
		"an outside host's IPv4":   outside4,
		"from nowhere, IPv4":       nowhere4,
		"next to its own IPv4":     n.a.v4().Next(),
		"the gateway's IPv4":       wiring.Gateway4,
		"other IPv4 link-local":    addr("169.254.3.7"),
		"loopback, IPv4":           addr("127.0.0.1"),
		"multicast, IPv4":          addr("224.0.0.251"),
		"broadcast, IPv4":          addr("255.255.255.255"),
		"unspecified, IPv4":        netip.IPv4Unspecified(),
	}
	// The kernel throws these away on its own, before any table sees them.
	impossible := []netip.Addr{netip.IPv6Loopback(), addr("ff02::1")}

	const echo, igmp = "icmpv6 echo", "igmp"
	type shape struct {
		name  string
		frame func(src, dst netip.Addr) []byte
	}
	common := []shape{
		{"udp", func(src, dst netip.Addr) []byte {
			return packet(n.a.mac, src, dst, unix.IPPROTO_UDP, udp(src, dst, forged))
		}},
		{"an unknown protocol", func(src, dst netip.Addr) []byte { return packet(n.a.mac, src, dst, 253, []byte(forged)) }},
		{"other source MAC", func(src, dst netip.Addr) []byte {
			return packet(n.b.mac, src, dst, unix.IPPROTO_UDP, udp(src, dst, forged))
		}},
		{"priority tag", func(src, dst netip.Addr) []byte { // VLAN 0 is no VLAN (IEEE 802.1Q)
			return tagged(0, packet(n.a.mac, src, dst, unix.IPPROTO_UDP, udp(src, dst, forged)))
		}},
		{"two priority tags", func(src, dst netip.Addr) []byte {
			return tagged(0, tagged(0, packet(n.a.mac, src, dst, unix.IPPROTO_UDP, udp(src, dst, forged))))
		}},
		{"empty", func(src, dst netip.Addr) []byte { return packet(n.a.mac, src, dst, 59, nil) }},
	}
	extended := func(name string, next byte, header ...byte) shape {
		return shape{name, func(src, dst netip.Addr) []byte {
			return ethernet(n.a.mac, unix.ETH_P_IPV6, ipv6(src, dst, next, append(header, udp(src, dst, forged)...)))
		}}
	}
	fragment := func(name string, field uint16) shape {
		return shape{name, func(src, dst netip.Addr) []byte {
			return ethernet(n.a.mac, unix.ETH_P_IP, ipv4(src, dst, unix.IPPROTO_UDP, field, udp(src, dst, forged+"  ")))
		}}
	}
	const hopByHop, routingHeader, fragmentHeader, destination = 0, 43, 44, 60
	shapes6 := append(common,
		extended("hop-by-hop options", hopByHop, options(unix.IPPROTO_UDP)...),
		extended("destination options", destination, options(unix.IPPROTO_UDP)...),
		extended("routing header", routingHeader, routing(unix.IPPROTO_UDP)...),
		extended("all of these", hopByHop, slices.Concat(options(destination), options(routingHeader), routing(unix.IPPROTO_UDP))...),
		extended("a header cut off", destination, unix.IPPROTO_UDP, 255),
		extended("the only fragment", fragmentHeader, fragment6(unix.IPPROTO_UDP, 0, false)...),
		extended("the first fragment", fragmentHeader, fragment6(unix.IPPROTO_UDP, 0, true)...),
		extended("a later fragment", fragmentHeader, fragment6(unix.IPPROTO_UDP, 2, false)...),
		extended("options, then a fragment", hopByHop, slices.Concat(options(fragmentHeader), fragment6(unix.IPPROTO_UDP, 2, true))...),
		shape{echo, func(src, dst netip.Addr) []byte {
			return packet(n.a.mac, src, dst, unix.IPPROTO_ICMPV6, icmpv6(src, dst, 128, make([]byte, 4), []byte(forged)))
		}},
	)
	shapes4 := append(common[:len(common):len(common)],
		fragment("the first fragment", 0x2000), fragment("a later fragment", 2), fragment("a fragment in between", 0x2003),
		shape{igmp, func(src, dst netip.Addr) []byte { return packet(n.a.mac, src, dst, unix.IPPROTO_IGMP, []byte(forged)) }})

	for name, src := range sources {
		shapes := shapes6
		if src.Is4() {
			shapes = shapes4
		}
		for _, s := range shapes {
			if src == n.a.linkLocal && s.name == echo || src == netip.IPv4Unspecified() && s.name == igmp {
				continue // honest, and goes no further than the node: see TestLegitimate
			}
			t.Run(name+"/"+s.name, func(t *testing.T) {
				before := n.dropped(t, n.a)
				dsts := n.destinations(src)
				for _, dst := range dsts {
					n.a.send(t, s.frame(src, dst))
				}
				want := uint64(len(dsts))
				if slices.Contains(impossible, src) {
					want = 0
				}
				if got := n.dropped(t, n.a) - before; got != want {
					t.Errorf("counted %d drops of %d frames, want %d", got, len(dsts), want)
				}
				o.nothingForged(t, n)
			})
		}
	}
	if t.Failed() {
		return
	}
	if got := n.dropped(t, n.b); got != 0 {
		t.Errorf("%d drops are counted for the pod that sent nothing forged", got)
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		flows := n.ns.Exec("conntrack", "-L", "-f", family)
		for _, flow := range strings.Split(flows, "\n") {
			for name, src := range sources {
				if strings.Contains(flow, "src="+src.String()+" ") && !strings.Contains(flow, "src="+n.a.like(src).String()+" ") {
					t.Errorf("conntrack has a flow from %v (%s): %s", src, name, flow)
				}
			}
		}
	}
}

// tagged puts an 802.1Q tag into a frame.
func tagged(vlan uint16, frame []byte) []byte {
	tag := be.AppendUint16([]byte{0x81, 0}, vlan)
	return slices.Concat(frame[:12], tag, frame[12:])
}

// TestForgedWithoutGuard is the other half of TestForgedSources: the same packets
// do arrive when nothing is in their way.
func TestForgedWithoutGuard(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.addPods(t)
	n.ns.Sysctl("ipv4/conf/"+n.a.HostIf+"/rp_filter", "0")
	for _, src := range []netip.Addr{n.b.v6(), outside6, nowhere6, n.b.v4(), nowhere4} {
		dst := node6
		if src.Is4() {
			dst = node4
		}
		n.delivers(t, src, dst)
	}
}

// TestForgedFragment has pod a slip a fragment, from the outside host's address,
// into a datagram from there to pod b. It must be gone before fragments are put
// together: what that makes counts as from where the last fragment came.
func TestForgedFragment(t *testing.T) {
	t.Parallel()
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprintf("guarded=%t", guarded), func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			if guarded {
				n.addGuard(t)
			}
			n.addPods(t)
			n.ns.Sysctl("ipv4/conf/"+n.a.HostIf+"/rp_filter", "0")
			outside := packetSocket(t, n.outside, 0)
			var uplink *net.Interface
			n.ns.Run(func() {
				var err error
				if uplink, err = net.InterfaceByName("uplink"); err != nil {
					t.Fatal(err)
				}
			})
			for _, src := range []netip.Addr{outside6, outside4} {
				dst := n.b.like(src)
				genuine := udp(src, dst, honest+strings.Repeat(" ", 64))
				cut := 24
				tampered := slices.Concat(genuine[:cut], []byte(forged), genuine[cut+len(forged):])
				withChecksum(tampered, 6, src, dst, unix.IPPROTO_UDP) // in the first fragment: as if guessed

				fragment := func(mac wiring.MAC, part []byte, at int, more bool) []byte {
					if src.Is6() {
						return ethernet(mac, unix.ETH_P_IPV6, ipv6(src, dst, 44, append(fragment6(unix.IPPROTO_UDP, uint16(at/8), more), part...)))
					}
					field := uint16(at / 8)
					if more {
						field |= 0x2000
					}
					return ethernet(mac, unix.ETH_P_IP, ipv4(src, dst, unix.IPPROTO_UDP, field, part))
				}
				first := fragment(wiring.MAC{}, tampered[:cut], 0, true)
				whole := packet(wiring.MAC{}, src, dst, unix.IPPROTO_UDP, genuine)
				copy(first, uplink.HardwareAddr)
				copy(whole, uplink.HardwareAddr)

				var c *net.UDPConn
				n.b.Run(func() {
					var err error
					if c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, testPort))); err != nil {
						t.Fatal(err)
					}
				})
				defer c.Close()
				n.a.send(t, fragment(n.a.mac, tampered[cut:], cut, false))
				send(t, outside, first, whole)
				in := make([]byte, 1500)
				c.SetReadDeadline(deadline())
				k, err := c.Read(in)
				if err != nil {
					t.Fatal(err)
				}
				if got := strings.Contains(string(in[:k]), forged); got == guarded {
					t.Errorf("%v: forged datagram received: %t", src, got)
				}
			}
		})
	}
}

// TestForgedFlow has pod a send into a flow that pod b has with the outside world,
// as either of them. That the flow is established is no pass.
func TestForgedFlow(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	o := n.observe(t)
	for _, dst := range []netip.Addr{outside6, outside4} {
		src := n.b.like(dst)
		var inside, outside *net.UDPConn
		var err error
		n.b.Run(func() {
			inside, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, testPort)))
		})
		if err != nil {
			t.Fatal(err)
		}
		defer inside.Close()
		n.outside.Run(func() {
			outside, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, testPort)))
		})
		if err != nil {
			t.Fatal(err)
		}
		defer outside.Close()
		inside.Write([]byte("there"))
		outside.SetDeadline(deadline())
		in := make([]byte, 1500)
		_, peer, err := outside.ReadFromUDPAddrPort(in)
		if err != nil {
			t.Fatal(err)
		}
		outside.WriteToUDPAddrPort([]byte("and back"), peer)
		inside.SetDeadline(deadline())
		if _, err := inside.Read(in); err != nil {
			t.Fatal(err)
		}
		flows := n.ns.Exec("conntrack", "-L", "-f", map[bool]string{true: "ipv6", false: "ipv4"}[dst.Is6()])
		if !strings.Contains(flows, "src="+src.String()) {
			t.Fatalf("no flow from %v to forge: %s", src, flows)
		}

		before := n.dropped(t, n.a)
		n.a.send(t,
			packet(n.a.mac, src, dst, unix.IPPROTO_UDP, udpPorts(peer.Port(), testPort, src, dst, forged)),
			packet(n.a.mac, dst, src, unix.IPPROTO_UDP, udp(dst, src, forged)))
		if got := n.dropped(t, n.a) - before; got != 2 {
			t.Errorf("%v: %d of 2 forged packets were dropped", dst, got)
		}
	}
	o.nothingForged(t, n)
}
