package sourceguard

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

// Frames, byte by byte: what a pod's own network stack would refuse to send.

var be = binary.BigEndian

// ethernet is a frame to the host end.
func ethernet(src wiring.MAC, ethertype uint16, payload []byte) []byte {
	f := append(wiring.HostMAC[:len(wiring.HostMAC):len(wiring.HostMAC)], src[:]...)
	return append(be.AppendUint16(f, ethertype), payload...)
}

// packet is an Ethernet frame around an IP packet of the family of src.
func packet(mac wiring.MAC, src, dst netip.Addr, proto byte, payload []byte) []byte {
	if src.Is4() {
		return ethernet(mac, unix.ETH_P_IP, ipv4(src, dst, proto, 0, payload))
	}
	return ethernet(mac, unix.ETH_P_IPV6, ipv6(src, dst, proto, payload))
}

// ipv4 has the given fragment field: flags and offset in units of 8 bytes.
func ipv4(src, dst netip.Addr, proto byte, fragment uint16, payload []byte) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, proto
	be.PutUint16(h[2:], uint16(len(h)+len(payload)))
	be.PutUint16(h[4:], 0x666c) // identification
	be.PutUint16(h[6:], fragment)
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	be.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

func ipv6(src, dst netip.Addr, next byte, payload []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, next, 255 // neighbour discovery wants this hop limit
	be.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return append(h, payload...)
}

// options is a hop-by-hop or destination options header that holds padding only.
func options(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

// routing is a routing header of a type that nobody has to understand, with no
// segment left (RFC 8200, section 4.4).
func routing(next byte) []byte { return []byte{next, 0, 253, 0, 0, 0, 0, 0} }

// fragment6 has the given offset in units of 8 bytes.
func fragment6(next byte, offset uint16, more bool) []byte {
	field := offset << 3
	if more {
		field |= 1
	}
	return be.AppendUint32(be.AppendUint16([]byte{next, 0}, field), 0x666c6f63)
}

const testPort = 6081

func udp(src, dst netip.Addr, data string) []byte {
	return udpPorts(testPort, testPort, src, dst, data)
}

func udpPorts(from, to uint16, src, dst netip.Addr, data string) []byte {
	h := make([]byte, 8, 8+len(data))
	be.PutUint16(h, from)
	be.PutUint16(h[2:], to)
	be.PutUint16(h[4:], uint16(8+len(data)))
	return withChecksum(append(h, data...), 6, src, dst, unix.IPPROTO_UDP)
}

// icmpv6 is a message of a type whose body follows the checksum.
func icmpv6(src, dst netip.Addr, typ byte, body ...[]byte) []byte {
	m := []byte{typ, 0, 0, 0}
	for _, b := range body {
		m = append(m, b...)
	}
	return withChecksum(m, 2, src, dst, unix.IPPROTO_ICMPV6)
}

// linkOption is the source (1) or target (2) link-layer address option.
func linkOption(typ byte, mac wiring.MAC) []byte { return append([]byte{typ, 1}, mac[:]...) }

func arp(op uint16, senderMAC wiring.MAC, sender netip.Addr, targetMAC wiring.MAC, target netip.Addr) []byte {
	a := []byte{0, 1, 8, 0, 6, 4}
	a = be.AppendUint16(a, op)
	a = append(append(a, senderMAC[:]...), sender.AsSlice()...)
	return append(append(a, targetMAC[:]...), target.AsSlice()...)
}

// withChecksum sets the checksum at an offset, the pseudo-header included.
func withChecksum(b []byte, at int, src, dst netip.Addr, proto byte) []byte {
	be.PutUint16(b[at:], 0)
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = be.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, proto)
	be.PutUint16(b[at:], checksum(append(pseudo, b...)))
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		if i%2 == 0 {
			sum += uint32(c) << 8
		} else {
			sum += uint32(c)
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
