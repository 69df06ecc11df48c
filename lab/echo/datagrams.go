package main

import (
	"context"
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

const (
	// longestDatagram is answered; what is longer is none of the lab's.
	longestDatagram = 512
	// datagramBuffer is for as many as come while a busy machine has no time for
	// this process. The kernel may grant less.
	datagramBuffer = 4 << 20
)

// sendBack returns each datagram to its sender, from the address that it was sent
// to, of however many the host has: an anycast address, say. It ends with the
// context, and closes the connection.
func sendBack(ctx context.Context, conn *net.UDPConn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetReadBuffer(datagramBuffer); err != nil {
		return err
	}
	if err := tellDestination(conn); err != nil {
		return err
	}
	datagram, control := make([]byte, longestDatagram), make([]byte, 256)
	for {
		n, nc, flags, from, err := conn.ReadMsgUDPAddrPort(datagram, control)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if flags&unix.MSG_TRUNC != 0 {
			continue
		}
		// The control message with the destination of the received datagram sets the
		// source of the answer. A datagram that cannot be sent is lost, as on any network.
		if _, _, err := conn.WriteMsgUDPAddrPort(datagram[:n], control[:nc], from); errors.Is(err, net.ErrClosed) {
			return nil
		}
	}
}

// tellDestination has each datagram come with the address it was sent to (RFC
// 3542 section 6). Of an IPv6 socket that includes mapped IPv4 ones.
func tellDestination(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if conn.LocalAddr().(*net.UDPAddr).IP.To4() != nil {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		} else {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
	return errors.Join(err, failed)
}
