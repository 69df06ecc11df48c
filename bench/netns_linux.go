package bench

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// netNS holds a network namespace by an open file: nothing is mounted, so
// nothing is left when the program is killed.
type netNS struct{ f *os.File }

const ownNetNS = "/proc/thread-self/ns/net"

// newNetNS makes a namespace, its loopback down as a runtime hands it over.
func newNetNS() (*netNS, error) {
	type made struct {
		ns  *netNS
		err error
	}
	c := make(chan made)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- made{err: fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		ns, err := currentNetNS()
		c <- made{ns, err}
	}()
	m := <-c
	return m.ns, m.err
}

func currentNetNS() (*netNS, error) {
	f, err := os.Open(ownNetNS)
	if err != nil {
		return nil, err
	}
	return &netNS{f}, nil
}

// Path names the namespace as long as it is held.
func (n *netNS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.f.Fd()) }

// Close lets go of it.
func (n *netNS) Close() error { return n.f.Close() }

// Do runs f on a thread in the namespace; processes that f itself starts are in
// it too.
func (n *netNS) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // as in newNetNS
		if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
