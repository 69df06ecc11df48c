package sourceguard

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

// TestForgedNeighbours has pod a claim others' addresses, and a router's place, by
// ARP and neighbour discovery. Nobody believes a word, with the guard or without:
// neighbours are permanent, and a pod's link ends at the node. The guard adds that
// such frames are counted, and cannot fill the neighbour table either.
func TestForgedNeighbours(t *testing.T) {
	t.Parallel()
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprintf("guarded=%t", guarded), func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			if guarded {
				n.addGuard(t)
			}
			n.addPods(t)
			o := n.observe(t)
			allNodes, allRouters := addr("ff02::1"), addr("ff02::2")
			a, b := n.a, n.b

			arps := func(op uint16, mac wiring.MAC, sender, target netip.Addr) []byte {
				return ethernet(a.mac, unix.ETH_P_ARP, append(arp(op, mac, sender, wiring.HostMAC, target), forged...))
			}
			nd := func(src, dst netip.Addr, typ byte, body ...[]byte) []byte {
				return packet(a.mac, src, dst, unix.IPPROTO_ICMPV6, icmpv6(src, dst, typ, body...))
			}
			advert := func(src, dst, target netip.Addr) []byte {
				override := []byte{0x20, 0, 0, 0}
				return nd(src, dst, 136, override, target.AsSlice(), linkOption(2, a.mac))
			}
			solicit := func(src, target netip.Addr, mac wiring.MAC) []byte {
				return nd(src, wiring.Gateway6, 135, make([]byte, 4), target.AsSlice(), linkOption(1, mac))
			}
			prefix := append([]byte{3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}, nowhere6.AsSlice()...)
			routerAdvert := func(src netip.Addr) []byte {
				return nd(src, allNodes, 134, []byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, prefix, linkOption(1, a.mac))
			}

			invented := 0
			for _, c := range []struct {
				name    string
				frame   []byte
				counted bool // else it is from an address of a's, and only not believed
			}{
				{"arp: reply for the other pod", arps(2, a.mac, b.v4(), b.v4()), true},
				{"arp: request from the other pod", arps(1, a.mac, b.v4(), node4), true},
				{"arp: request from the gateway", arps(1, a.mac, wiring.Gateway4, node4), true},
				{"arp: reply for the outside host", arps(2, a.mac, outside4, node4), true},
				{"arp: request from nowhere", arps(1, a.mac, nowhere4, node4), true},
				{"arp: its own address at another MAC", arps(1, b.mac, a.v4(), node4), false},
				{"na: the other pod, from the other pod", advert(b.v6(), allNodes, b.v6()), true},
				{"na: the other pod, from its own link-local", advert(a.linkLocal, allNodes, b.v6()), false},
				{"na: the other pod's link-local, to the gateway", advert(a.linkLocal, wiring.Gateway6, b.linkLocal), false},
				{"na: the outside host, to the node", advert(a.v6(), node6, outside6), false},
				{"na: the gateway, to the other pod", advert(a.v6(), b.v6(), wiring.Gateway6), false},
				{"na: the gateway, to the other pod, from the gateway", advert(wiring.Gateway6, b.v6(), wiring.Gateway6), true},
				{"na: its own address at another MAC", nd(a.v6(), allNodes, 136, []byte{0x20, 0, 0, 0}, a.v6().AsSlice(), linkOption(2, b.mac)), false},
				{"ns: from the other pod", solicit(b.v6(), wiring.Gateway6, a.mac), true},
				{"ns: from the other pod's link-local", solicit(b.linkLocal, wiring.Gateway6, a.mac), true},
				{"ns: from nowhere", solicit(nowhere6, wiring.Gateway6, a.mac), true},
				{"ns: its own address at another MAC", solicit(a.v6(), wiring.Gateway6, b.mac), false},
				{"rs: from another link-local", nd(addr("fe80::bad"), allRouters, 133, make([]byte, 4), linkOption(1, a.mac)), true},
				{"ra: from its own link-local", routerAdvert(a.linkLocal), true},
				{"ra: from the gateway", routerAdvert(wiring.Gateway6), true},
				{"redirect: to itself, from its own link-local", nd(a.linkLocal, node6, 137, make([]byte, 4), a.linkLocal.AsSlice(), outside6.AsSlice()), true},
				{"mld: query", nd(a.linkLocal, allNodes, 130, make([]byte, 20)), true},
			} {
				if guarded && strings.HasPrefix(c.name, "ra:") {
					// As if someone had told the node to take advertisements from anywhere.
					n.ns.Sysctl("ipv6/conf/"+a.HostIf+"/accept_ra", "2")
				}
				beliefs, neighbours := n.beliefs(), n.neighbours(a)
				var drops uint64
				if guarded {
					drops = n.dropped(t, a)
				}
				a.send(t, c.frame)
				o.nothingForged(t, n)
				if after := n.beliefs(); after != beliefs {
					t.Errorf("%s: was believed. Before:\n%s\nafter:\n%s", c.name, beliefs, after)
				}
				if after := n.neighbours(a); after != neighbours {
					invented++
					if guarded {
						t.Errorf("%s: the node knows new neighbours. Before:\n%s\nafter:\n%s", c.name, neighbours, after)
					}
				}
				if !guarded {
					continue
				}
				if counted := n.dropped(t, a) != drops; counted != c.counted {
					t.Errorf("%s: counted: %t, want %t", c.name, counted, c.counted)
				}
			}
			if !guarded && invented == 0 {
				t.Error("without the guard the neighbour table cannot be filled either: then the guard need not look at ARP")
			}
		})
	}
}

// beliefs are all that the node and pod b could be talked into.
func (n *testNode) beliefs() string {
	return strings.Join([]string{
		n.ns.IP("neigh", "show", "nud", "permanent"),
		n.neighbours(n.b),
		n.ns.IP("-4", "route", "show", "table", "all"),
		n.ns.IP("-6", "route", "show", "table", "all"),
		n.ns.IP("-o", "address"),
		n.b.IP("neigh"),
		n.b.IP("-6", "route"),
		n.b.IP("-4", "route"),
	}, "")
}

// neighbours are all that the node knows on a pod's link, permanent or not.
func (n *testNode) neighbours(p *testPod) string {
	lines := strings.Split(n.ns.IP("neigh", "show", "dev", p.HostIf), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestOtherFrames sends what the node has no ear for. Nothing takes it up, whoever
// it claims to be from, and so nothing of it needs to be looked at.
func TestOtherFrames(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	o := n.observe(t)
	for _, src := range []netip.Addr{n.a.v6(), n.b.v6(), outside6, n.a.v4(), n.b.v4(), outside4} {
		for _, dst := range n.destinations(src) {
			f := packet(n.a.mac, src, dst, unix.IPPROTO_UDP, udp(src, dst, forged))
			qinq := tagged(0, f)
			qinq[12], qinq[13] = 0x88, 0xa8
			other := slices.Concat(n.b.mac[:], f[6:])
			experimental := slices.Concat(f[:12], []byte{0x88, 0xb5}, f[14:])
			mpls := slices.Concat(f[:12], []byte{0x88, 0x47, 0, 1, 1, 64}, f[14:])
			pppoe := slices.Concat(f[:12], []byte{0x88, 0x64, 0x11, 0, 0, 1, 0, 50, 0, 0x57}, f[14:])
			n.a.send(t, tagged(1, f), tagged(100, f), tagged(4095, f), tagged(0, tagged(7, f)),
				slices.Concat(qinq[:14], []byte{0, 9}, qinq[16:]), other, experimental, mpls, pppoe)
		}
	}
	o.nothingForged(t, n)
	if got := n.dropped(t, n.a); got != 0 {
		t.Errorf("%d of them were counted: then they were looked at", got)
	}
}
