package cni

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/sys"
)

// vetNetNS returns a check that a file is a network namespace, and not the one
// that the agent runs in: a pod's wiring there would take the node's network apart.
func vetNetNS() (func(*os.File) error, error) {
	// Not /proc/self: that is the first thread's, which a goroutine may have
	// taken elsewhere for good.
	const own = "/proc/thread-self/ns/net"
	var node unix.Stat_t
	if err := sys.StatOf(own, &node); err != nil {
		return nil, fmt.Errorf("%s: %w", own, err)
	}
	return func(f *os.File) error {
		kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
		if err != nil || kind != unix.CLONE_NEWNET {
			return fmt.Errorf("not a network namespace")
		}
		var got unix.Stat_t
		if err := sys.Fstat(int(f.Fd()), &got); err != nil {
			return err
		}
		if got.Dev == node.Dev && got.Ino == node.Ino {
			return fmt.Errorf("is the node's own network namespace, not a pod's")
		}
		return nil
	}, nil
}
