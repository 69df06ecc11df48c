package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/member"
)

// listenGenerations opens a socket that hears of changes of nftables in a network namespace.
func listenGenerations(file string) (fd int, err error) {
	const nftables = 7 // NFNLGRP_NFTABLES
	err = member.InNet(file, func() error {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (nftables - 1)}),
		)
	})
	if err != nil {
		return -1, fmt.Errorf("listen to nftables of %s: %w", file, err)
	}
	return fd, nil
}

// watchGenerations reports the transactions of kube-proxy, which runs nft, and closes fd at
// its end.
func watchGenerations(ctx context.Context, fd int, report func(sighting)) error {
	runtime.LockOSThread()
	defer unix.Close(fd)
	buf := make([]byte, 256<<10)
	for ctx.Err() == nil {
		n, err := unix.Read(fd, buf)
		at := monotonic()
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("notifications of nftables: %w", err)
		}
		for _, process := range generations(buf[:n]) {
			if process == "nft" || process == "kube-proxy" {
				report(sighting{At: at, What: programmed, Yes: true})
			}
		}
	}
	return nil
}

// generations are the processes whose transactions a datagram of netlink messages reports.
func generations(b []byte) (processes []string) {
	const (
		newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
		processName   = 3 // NFTA_GEN_PROC_NAME
		header        = 4 // struct nfgenmsg
	)
	native := binary.NativeEndian
	for len(b) >= unix.SizeofNlMsghdr {
		n, typ := int(native.Uint32(b)), int(native.Uint16(b[4:]))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return processes
		}
		m := b[unix.SizeofNlMsghdr:n]
		b = b[min((n+3)&^3, len(b)):]
		if typ != newGeneration || len(m) < header {
			continue
		}
		for a := m[header:]; len(a) >= unix.SizeofRtAttr; {
			size := int(native.Uint16(a))
			if size < unix.SizeofRtAttr || size > len(a) {
				break
			}
			if native.Uint16(a[2:])&^unix.NLA_F_NESTED == processName {
				name, _, _ := bytes.Cut(a[unix.SizeofRtAttr:size], []byte{0})
				processes = append(processes, string(name))
			}
			a = a[min((size+3)&^3, len(a)):]
		}
	}
	return processes
}
