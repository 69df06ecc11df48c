package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/pkg/netlink"
	nftables "flock.fritzlab.net/flock/pkg/netlink/nft"
)

// listenGenerations opens a socket that hears of changes of nftables in a network namespace.
func listenGenerations(file string) (fd int, err error) {
	err = member.InNet(file, func() error {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}),
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
		err = netlink.Messages(buf[:n], func(m netlink.Message) error {
			const newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
			if process, _ := nftables.Writer(m); m.Type == newGeneration && (process == "nft" || process == "kube-proxy") {
				report(sighting{At: at, What: programmed, Yes: true})
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("notifications of nftables: %w", err)
		}
	}
	return nil
}
