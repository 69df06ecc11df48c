package netns

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/sys"
)

// own is the namespace of the calling thread. /proc/self would be that of the
// process's first thread, which may be in another one.
const own = "/proc/thread-self/ns/net"

// Do runs f on a thread that is in the network namespace that file holds. Sockets
// that f opens stay there, and programs that it starts run there; goroutines that it
// starts run elsewhere. f must not end its goroutine.
func Do(file *os.File, f func() error) error {
	result := make(chan error, 1)
	go func() { result <- do(file, f) }()
	err := <-result
	runtime.KeepAlive(file)
	return err
}

func do(file *os.File, f func() error) error {
	// The goroutine ends locked to its thread if the thread cannot return: the
	// thread ends with it, and no other code runs in the namespace.
	runtime.LockOSThread()
	home, err := sys.Open(own)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := sys.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s (CAP_SYS_ADMIN is needed): %w", file.Name(), err)
	}
	defer func() {
		if sys.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// DoPath is Do for the namespace that the file at path keeps.
func DoPath(path string, f func() error) error {
	file, err := sys.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return Do(file, f)
}

// New makes a network namespace with its loopback down. It lives until the file, and
// everything else that holds it, is closed.
func New() (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: fmt.Errorf("make a network namespace (CAP_SYS_ADMIN is needed): %w", err)}
			return
		}
		file, err := sys.Open(own)
		made <- result{file, err}
	}()
	r := <-made
	return r.file, r.err
}
