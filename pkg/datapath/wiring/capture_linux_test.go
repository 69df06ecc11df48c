package wiring

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
)

// capture sees every packet that the links of a namespace send or receive from
// now on, those of links made later as well.
func capture(t *testing.T, ns *nettest.NS) *tap {
	t.Helper()
	var fd int
	var err error
	ns.Run(func() {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &tap{t, fd}
}

type tap struct {
	t  *testing.T
	fd int
}

// A packet is what the tests want to know of one.
type packet struct {
	link     int
	arp      bool
	icmp6    int // type, else -1
	src, dst netip.Addr
}

// resolves says that the packet asks for, or tells, a link-layer address.
func (p packet) resolves() bool {
	return p.arp || p.icmp6 == 135 || p.icmp6 == 136
}

// packets drains what was captured so far.
func (c *tap) packets() (ps []packet) {
	c.t.Helper()
	b := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(c.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return ps
		} else if err != nil {
			c.t.Fatal(err)
		}
		ps = append(ps, parsePacket(b[:n], from.(*unix.SockaddrLinklayer).Ifindex))
	}
}

func parsePacket(b []byte, link int) packet {
	p := packet{link: link, icmp6: -1}
	if len(b) < 14 {
		return p
	}
	ip := b[14:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_ARP:
		p.arp = true
	case unix.ETH_P_IP:
		if len(ip) >= 20 {
			p.src, _ = netip.AddrFromSlice(ip[12:16])
			p.dst, _ = netip.AddrFromSlice(ip[16:20])
		}
	case unix.ETH_P_IPV6:
		if len(ip) > 40 {
			p.src, _ = netip.AddrFromSlice(ip[8:24])
			p.dst, _ = netip.AddrFromSlice(ip[24:40])
			if ip[6] == unix.IPPROTO_ICMPV6 {
				p.icmp6 = int(ip[40])
			}
		}
	}
	return p
}
