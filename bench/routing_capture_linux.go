package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
)

// bgpMessages counts BGP's messages by type (RFC 4271 section 4.1).
type bgpMessages map[byte]int

// bgpKeepalive is the type that says nothing new.
const bgpKeepalive = 4

// bgpUnknown stands for what begins with no message.
const bgpUnknown = 0

// news is how many are no keepalives.
func (m bgpMessages) news() (n int) {
	for typ, count := range m {
		if typ != bgpKeepalive {
			n += count
		}
	}
	return n
}

// capture counts the BGP messages between a node and the router, in both
// directions.
type capture struct {
	cancel context.CancelFunc
	done   chan error
	seen   bgpMessages // the reader's until done
}

// captureBGP begins to listen at the router's port of the node.
func captureBGP(l *cluster.Lab, node string) (*capture, error) {
	fd, err := listenTCP(member.Of(l.Dir, plan.Tor).NetNS(), node)
	if err != nil {
		return nil, fmt.Errorf("capture at the router's port of %s: %w", node, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &capture{cancel, make(chan error, 1), bgpMessages{}}
	go func() { c.done <- c.read(ctx, fd) }()
	return c, nil
}

// stop returns what was seen.
func (c *capture) stop() (bgpMessages, error) {
	c.cancel()
	return c.seen, <-c.done
}

// listenTCP opens a socket that sees the TCP frames of an interface.
func listenTCP(netns, link string) (fd int, err error) {
	const (
		all      = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network byte order
		nextIPv6 = 14 + 6
		nextIPv4 = 14 + 9
	)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 12},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IPV6, Jt: 0, Jf: 2},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: nextIPv6},
		{Code: unix.BPF_JMP | unix.BPF_JA, K: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IP, Jt: 0, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: nextIPv4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_TCP, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 18},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	err = member.InNet(netns, func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		// Protocol 0 takes nothing until it is bound, so that the filter is first.
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}),
		)
	})
	if err != nil && fd > 0 {
		unix.Close(fd)
	}
	return fd, err
}

func (c *capture) read(ctx context.Context, fd int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer unix.Close(fd)
	frame := make([]byte, 1<<18) // the kernel shows segments before it has cut them to size
	for ctx.Err() == nil {
		n, _, err := unix.Recvfrom(fd, frame, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		c.seen.add(bgpPayload(frame[:n]))
	}
	stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && stats.Drops > 0 {
		err = fmt.Errorf("capture: %d frames were missed", stats.Drops)
	}
	return err
}

// bgpPort is where BGP listens.
const bgpPort = 179

// bgpPayload is what a TCP segment of a BGP session carries, of an Ethernet frame;
// nil of any other.
func bgpPayload(frame []byte) []byte {
	if len(frame) < 14 {
		return nil
	}
	packet := frame[14:]
	var segment []byte
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IPV6:
		if len(packet) < 40 || packet[6] != unix.IPPROTO_TCP {
			return nil
		}
		segment = packet[40:min(len(packet), 40+int(binary.BigEndian.Uint16(packet[4:])))]
	case unix.ETH_P_IP:
		if len(packet) < 20 || packet[9] != unix.IPPROTO_TCP {
			return nil
		}
		header, total := int(packet[0]&15)*4, int(binary.BigEndian.Uint16(packet[2:]))
		if header > total || total > len(packet) {
			return nil
		}
		segment = packet[header:total]
	}
	if len(segment) < 20 || binary.BigEndian.Uint16(segment) != bgpPort && binary.BigEndian.Uint16(segment[2:]) != bgpPort {
		return nil
	}
	return segment[min(len(segment), int(segment[12]>>4)*4):]
}

// bgpMarker begins every message.
var bgpMarker = bytes.Repeat([]byte{0xff}, 16)

// add counts the messages of a segment. What does not begin where the segment does
// counts as one that is unknown.
func (m bgpMessages) add(payload []byte) {
	for len(payload) > 0 {
		if len(payload) < 19 || !bytes.HasPrefix(payload, bgpMarker) {
			m[bgpUnknown]++
			return
		}
		m[payload[18]]++
		payload = payload[min(len(payload), max(19, int(binary.BigEndian.Uint16(payload[16:])))):]
	}
}
