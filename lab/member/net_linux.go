package member

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// InNet runs f on a thread that is in the member's network namespace. Sockets
// that f opens stay there; goroutines that it starts do not.
func (m Member) InNet(f func() error) error { return InNet(m.NetNS(), f) }

// InNet runs f in the network namespace that the file keeps.
func InNet(file string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine and takes the
		// namespace along.
		runtime.LockOSThread()
		if err := setns(file, unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// Dial connects from the member. The address must be numeric: names are looked
// up by goroutines elsewhere.
func (m Member) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return Dial(ctx, m.NetNS(), network, address)
}

// Dial connects from the network namespace that the file keeps.
func Dial(ctx context.Context, file, network, address string) (conn net.Conn, err error) {
	err = InNet(file, func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Sysctl sets a net.* kernel parameter of the member, given by its path below
// /proc/sys/net.
func (m Member) Sysctl(path, value string) error {
	return m.InNet(func() error {
		// /proc/sys/net is that of the thread that opens it.
		if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
			return fmt.Errorf("%s: set net/%s to %s: %w", m.name, path, value, err)
		}
		return nil
	})
}
