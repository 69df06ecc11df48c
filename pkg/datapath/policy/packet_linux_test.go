package policy_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
)

// A lab is a node in a namespace, with links to pods and an uplink, at the far ends
// of which frames are written and read by hand: nothing answers by itself.
type lab struct {
	t     testing.TB
	node  *nettest.NS
	ports []*labPort
	tag   uint64 // of the last frame that was sent
}

// labPort is the far end of a link of the node.
type labPort struct {
	fd    int
	index int
	mac   [6]byte
}

const (
	uplink    = 0 // the port behind which everything else is
	firstSlot = 1 // ports from here on are pods'
)

var (
	nodeMAC   = [6]byte{0x02, 'f', 'l', 'o', 'c', 'k'}
	waypoint  = [2]netip.Addr{netip.MustParseAddr("10.1.200.1"), netip.MustParseAddr("fd00:1::c8:1")}
	waypointA = netip.MustParseAddr("192.0.2.77")
)

func slotLink(i int) string { return fmt.Sprintf("flock%08x", i) }

// newLab makes a node with so many pods' links; slot i has the addresses of addrs(i).
// The last one is the lab's own: no policy may select it.
func newLab(t testing.TB, slots int, addrs func(i int) []netip.Addr) *lab {
	t.Helper()
	// What one thread sends on one processor is delivered in the order of sending.
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for cpu := range 1024 {
		if before.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.SchedSetaffinity(0, &before)
		runtime.UnlockOSThread()
	})

	l := &lab{t: t, node: nettest.New(t)}
	far := nettest.New(t)
	l.node.Sysctl("ipv4/ip_forward", "1")
	l.node.Sysctl("ipv6/conf/all/forwarding", "1")
	l.node.Sysctl("ipv6/conf/default/accept_dad", "0")
	far.Sysctl("ipv6/conf/default/disable_ipv6", "1")
	var batch strings.Builder
	name := func(i int) string {
		if i == uplink {
			return "up0"
		}
		return slotLink(i - firstSlot)
	}
	for i := range slots + 1 + firstSlot {
		fmt.Fprintf(&batch, "link add %s address %s type veth peer name far%d address 02:00:00:00:00:%02x netns %s\n", name(i), net.HardwareAddr(nodeMAC[:]), i, i, far.Path())
		fmt.Fprintf(&batch, "link set %s up\n", name(i))
	}
	l.batch(l.node, batch.String())
	batch.Reset()
	for i := range slots + 1 + firstSlot {
		fmt.Fprintf(&batch, "link set far%d up\n", i)
	}
	l.batch(far, batch.String())
	batch.Reset()
	for i := range slots + 1 + firstSlot {
		routes := []string{"default via 169.254.1.1 onlink", "default via fe80::99"}
		neighbours := []string{"169.254.1.1", "fe80::99"}
		if i >= firstSlot {
			of := waypoint[:]
			if i-firstSlot < slots {
				of = addrs(i - firstSlot)
			}
			routes, neighbours = nil, nil
			for _, a := range of {
				routes = append(routes, a.String())
				neighbours = append(neighbours, a.String())
			}
		}
		for _, r := range routes {
			fmt.Fprintf(&batch, "route add %s dev %s\n", r, name(i))
		}
		for _, n := range neighbours {
			fmt.Fprintf(&batch, "neigh add %s lladdr 02:00:00:00:00:%02x nud permanent dev %s\n", n, i, name(i))
		}
	}
	l.batch(l.node, batch.String())
	for i := range slots + 1 + firstSlot {
		p := &labPort{mac: [6]byte{2, 0, 0, 0, 0, byte(i)}}
		far.Run(func() {
			link, err := net.InterfaceByName(fmt.Sprint("far", i))
			if err != nil {
				t.Fatal(err)
			}
			p.index = link.Index
			const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
			if p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
				t.Fatal(err)
			}
			if err := unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: p.index}); err != nil {
				t.Fatal(err)
			}
			unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		})
		t.Cleanup(func() { unix.Close(p.fd) })
		l.ports = append(l.ports, p)
	}
	deadline := time.Now().Add(10 * time.Second)
	for i := firstSlot; i < len(l.ports); {
		if time.Now().After(deadline) {
			t.Fatal("the lab's links do not carry packets")
		}
		// Each port's first packets may meet a link without carrier.
		a := waypoint[0]
		if i-firstSlot < slots {
			a = addrs(i - firstSlot)[0]
		}
		tag := l.send(uplink, segment{src: waypointA, dst: a, proto: unix.IPPROTO_UDP, sport: 1, dport: 1})
		if l.arrived(i, 10*time.Millisecond)[tag] {
			i++
		}
	}
	return l
}

func (l *lab) batch(ns *nettest.NS, commands string) {
	l.t.Helper()
	ns.Exec("sh", "-c", "ip -batch - <<'END'\n"+commands+"END")
}

// A segment is a packet to be sent.
type segment struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16
	flags        byte // of TCP
	seq, ack     uint32
	fragments    bool
	empty        bool // without the tag
}

const (
	fin, syn, rst, push, ackFlag = 1, 2, 4, 8, 16
)

func sum(b []byte, s uint32) uint32 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

const tagMark = "flocktag"

// payload is the transport header and what follows it, with a tag to know it by.
func (s segment) payload(tag uint64) []byte {
	data := binary.BigEndian.AppendUint64([]byte(tagMark), tag)
	if s.fragments {
		// The second fragment begins with the tag as well.
		data = append(append(data, make([]byte, 72)...), data...)
	}
	if s.empty {
		data = nil
	}
	var b []byte
	at := -1 // of the checksum
	switch s.proto {
	case unix.IPPROTO_TCP:
		b = binary.BigEndian.AppendUint16(b, s.sport)
		b = binary.BigEndian.AppendUint16(b, s.dport)
		b = binary.BigEndian.AppendUint32(b, s.seq)
		b = binary.BigEndian.AppendUint32(b, s.ack)
		b = append(b, 5<<4, s.flags, 0xff, 0xff, 0, 0, 0, 0)
		at = 16
	case unix.IPPROTO_UDP:
		b = binary.BigEndian.AppendUint16(b, s.sport)
		b = binary.BigEndian.AppendUint16(b, s.dport)
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
		b = append(b, 0, 0)
		at = 6
	case unix.IPPROTO_SCTP:
		b = binary.BigEndian.AppendUint16(b, s.sport)
		b = binary.BigEndian.AppendUint16(b, s.dport)
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		request := byte(8)
		if s.proto == unix.IPPROTO_ICMPV6 {
			request = 128
		}
		b = append(b, request, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, s.sport)
		b = append(b, 0, 1)
		at = 2
	default:
		b = append(b, 0, 0, 0x88, 0xb5)
	}
	b = append(b, data...)
	if at >= 0 {
		c := sum(b, 0)
		if s.proto != unix.IPPROTO_ICMP {
			c = sum(s.dst.AsSlice(), sum(s.src.AsSlice(), c)) + uint32(s.proto) + uint32(len(b))
		}
		binary.BigEndian.PutUint16(b[at:], fold(c))
	}
	return b
}

// packets are the segment as IP packets: one, or fragments.
func (s segment) packets(tag uint64) (out [][]byte) {
	b := s.payload(tag)
	parts := [][]byte{b}
	if s.fragments {
		const first = 96 // a multiple of 8: the UDP header, tag and filling
		parts = [][]byte{b[:first], b[first:]}
	}
	offset := 0
	for i, part := range parts {
		more := i < len(parts)-1
		var h []byte
		if s.src.Is4() {
			h = append(h, 0x45, 0)
			h = binary.BigEndian.AppendUint16(h, uint16(20+len(part)))
			h = binary.BigEndian.AppendUint16(h, uint16(tag))
			field := uint16(offset / 8)
			if more {
				field |= 0x2000
			}
			h = binary.BigEndian.AppendUint16(h, field)
			h = append(h, 64, s.proto, 0, 0)
			h = append(append(h, s.src.AsSlice()...), s.dst.AsSlice()...)
			binary.BigEndian.PutUint16(h[10:], fold(sum(h, 0)))
		} else {
			var extension []byte
			nextHeader := s.proto
			if s.fragments {
				field := uint16(offset)
				if more {
					field |= 1
				}
				extension = binary.BigEndian.AppendUint16([]byte{s.proto, 0}, field)
				extension = binary.BigEndian.AppendUint32(extension, uint32(tag))
				nextHeader = unix.IPPROTO_FRAGMENT
			}
			h = append(h, 0x60, 0, 0, 0)
			h = binary.BigEndian.AppendUint16(h, uint16(len(extension)+len(part)))
			h = append(h, nextHeader, 64)
			h = append(append(h, s.src.AsSlice()...), s.dst.AsSlice()...)
			h = append(h, extension...)
		}
		out = append(out, append(h, part...))
		offset += len(part)
	}
	return out
}

// send writes a segment at a port and returns its tag.
func (l *lab) send(port int, s segment) (tag uint64) {
	l.tag++
	l.write(port, s, l.tag)
	return l.tag
}

func (l *lab) write(port int, s segment, tag uint64) {
	p := l.ports[port]
	ethertype := uint16(unix.ETH_P_IP)
	if s.src.Is6() {
		ethertype = unix.ETH_P_IPV6
	}
	for _, packet := range s.packets(tag) {
		frame := append(append(append([]byte{}, nodeMAC[:]...), p.mac[:]...), byte(ethertype>>8), byte(ethertype))
		frame = append(frame, packet...)
		if _, err := unix.Write(p.fd, frame); err != nil {
			l.t.Fatalf("send at port %d: %v", port, err)
		}
	}
}

// take reads what has come to a port and calls f with each tag.
func (l *lab) take(port int, f func(tag uint64)) {
	var b [2048]byte
	for {
		n, from, err := unix.Recvfrom(l.ports[port].fd, b[:], 0)
		if err != nil {
			return
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if i := strings.Index(string(b[:n]), tagMark); i >= 0 && i+16 <= n {
			f(binary.BigEndian.Uint64(b[i+8:]))
		}
	}
}

// arrived are the tags that have come to a port, if any within some time.
func (l *lab) arrived(port int, within time.Duration) map[uint64]bool {
	out := map[uint64]bool{}
	for deadline := time.Now().Add(within); ; {
		l.take(port, func(tag uint64) { out[tag] = true })
		if len(out) > 0 || time.Now().After(deadline) {
			return out
		}
	}
}

// settled waits until all that was sent before has come or is dropped, and returns
// at which port each tag came.
func (l *lab) settled() map[uint64]int {
	l.t.Helper()
	mark := l.send(uplink, segment{src: waypointA, dst: waypoint[0], proto: unix.IPPROTO_UDP, sport: 7, dport: 7})
	out := map[uint64]int{}
	last := len(l.ports) - 1
	for deadline, done := time.Now().Add(10*time.Second), false; !done; {
		l.take(last, func(tag uint64) { done = done || tag == mark })
		if time.Now().After(deadline) {
			l.t.Fatal("the lab does not deliver packets any more")
		}
	}
	for i := range l.ports {
		l.take(i, func(tag uint64) { out[tag] = i })
	}
	return out
}
