package wiring

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
)

// entries are the neighbor entries of a namespace that are not permanent. Those of all
// namespaces are in one table of the kernel, with one limit (gc_thresh3).
func entries(ns *nettest.NS, dev string) (lines []string) {
	for line := range strings.Lines(ns.IP("neighbour", "show", "dev", dev)) {
		if !strings.Contains(line, "PERMANENT") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// TestInventedNeighbours: a pod sends to addresses on its link that nobody has, both from
// its own network stack and past it, as CAP_NET_RAW allows. No packet makes an entry in
// the neighbor table.
func TestInventedNeighbours(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	p, other := node.pod(t), node.pod(t)
	node.attach(t, p)
	node.attach(t, other)
	ll := LinkLocal(PodMAC(p.ContainerID))
	invented := func(i int) []string {
		return []string{
			fmt.Sprintf("fe80::bad:%x", i), fmt.Sprintf("fe80:0:0:%x::1", i+1), fmt.Sprintf("fe80::1:%x", i+1),
			fmt.Sprintf("169.254.1.%d", i+2), fmt.Sprintf("169.254.%d.1", i+2),
		}
	}
	const count = 40

	// The pod's own stack. That there is no route is an error of sendto.
	p.Run(func() {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range []int{unix.AF_INET6, unix.AF_INET} {
			s, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(s)
			for i := range count {
				for _, a := range invented(i) {
					to := netip.MustParseAddr(a)
					if to.Is4() && family == unix.AF_INET {
						unix.Sendto(s, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: to.As4()})
					} else if to.Is6() && family == unix.AF_INET6 {
						unix.Sendto(s, []byte("x"), 0, &unix.SockaddrInet6{Port: 9, ZoneId: uint32(eth0.Index), Addr: to.As16()})
					}
				}
			}
		}
	})

	// Frames to the host end, whatever the pod's stack would have done with them.
	p.Run(func() {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(s)
		if err := unix.Bind(s, &unix.SockaddrLinklayer{Ifindex: eth0.Index}); err != nil {
			t.Fatal(err)
		}
		mac := PodMAC(p.ContainerID)
		for i := range count {
			for _, a := range invented(i) {
				for _, src := range append(p.Addrs, ll) {
					dst := netip.MustParseAddr(a)
					if src.Is4() != dst.Is4() {
						continue
					}
					if _, err := unix.Write(s, datagram(mac, src, dst)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	})
	// A packet that does arrive comes after all of these. Some may be lost in the backlog.
	p.Exec("ping", "-c1", "-i0.2", "-w20", other.v6())
	p.Exec("ping", "-c1", "-i0.2", "-w20", other.v4())

	if got := entries(node.ns, p.HostIf); len(got) > 0 {
		t.Errorf("the node has %d entries on the pod's link, such as %s", len(got), got[0])
	}
	if got := entries(p.NS, "eth0"); len(got) > 0 {
		t.Errorf("the pod has %d entries, such as %s", len(got), got[0])
	}
	p.Exec("ping", "-c1", "-W5", "fe80::1%eth0")
	node.ns.Exec("ping", "-c1", "-W5", ll.String()+"%"+p.HostIf)
	if got := append(entries(node.ns, p.HostIf), entries(p.NS, "eth0")...); len(got) > 0 {
		t.Errorf("pings between both ends made the entries %s", got)
	}
}

// datagram is a frame to the host end with an empty UDP datagram.
func datagram(mac MAC, src, dst netip.Addr) []byte {
	frame := append(append(HostMAC[:len(HostMAC):len(HostMAC)], mac[:]...), 0x86, 0xdd)
	udp := []byte{0, 9, 0, 9, 0, 8, 0, 0} // its checksum does not matter to who forwards it
	if src.Is4() {
		frame[12], frame[13] = 0x08, 0x00
		header := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
		header = append(append(header, src.AsSlice()...), dst.AsSlice()...)
		var sum uint32
		for i := 0; i < len(header); i += 2 {
			sum += uint32(header[i])<<8 | uint32(header[i+1])
		}
		for sum>>16 != 0 {
			sum = sum&0xffff + sum>>16
		}
		header[10], header[11] = byte(^sum>>8), byte(^sum)
		return append(append(frame, header...), udp...)
	}
	header := []byte{0x60, 0, 0, 0, 0, 8, unix.IPPROTO_UDP, 64}
	header = append(append(header, src.AsSlice()...), dst.AsSlice()...)
	return append(append(frame, header...), udp...)
}
