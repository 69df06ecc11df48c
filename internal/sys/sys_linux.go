package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket is [unix.Socket].
func Socket(domain, typ, protocol int) (fd int, err error) {
	if err := call("socket"); err != nil {
		return -1, err
	}
	return unix.Socket(domain, typ, protocol)
}

// Connect is [unix.Connect], for sockets of netlink.
func Connect(fd int, to unix.Sockaddr) error {
	if err := call("connect"); err != nil {
		return err
	}
	return unix.Connect(fd, to)
}

// SetsockoptInt is [unix.SetsockoptInt].
func SetsockoptInt(fd, level, option, value int) error {
	if err := call("setsockopt"); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, level, option, value)
}

// SetsockoptSockFprog is [unix.SetsockoptSockFprog].
func SetsockoptSockFprog(fd, level, option int, program *unix.SockFprog) error {
	if err := call("setsockopt"); err != nil {
		return err
	}
	return unix.SetsockoptSockFprog(fd, level, option, program)
}

// Getsockopt is getsockopt(2), for options of which unix knows no type.
func Getsockopt(fd, level, option int, value unsafe.Pointer, size *uint32) error {
	if err := call("getsockopt"); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(value), uintptr(unsafe.Pointer(size)), 0); errno != 0 {
		return errno
	}
	return nil
}

// BPF is bpf(2).
func BPF(command int, attributes unsafe.Pointer, size uintptr) error {
	if err := call("bpf"); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attributes), size); errno != 0 {
		return errno
	}
	return nil
}

// Write is [unix.Write], for requests to the kernel over netlink.
func Write(fd int, b []byte) (n int, err error) {
	if err := request(b); err != nil {
		return -1, err
	}
	return unix.Write(fd, b)
}

// Ask is before a request over netlink that is written otherwise.
func Ask(b []byte) error { return request(b) }

// Read is [unix.Read], for answers of the kernel over netlink.
func Read(fd int, b []byte) (n int, err error) {
	if err := answer(); err != nil && err != unix.ENOBUFS {
		return -1, err
	} else if n, readErr := unix.Read(fd, b); err == nil {
		return answered(n, readErr, b)
	} else { // there was no room for what was read
		return -1, err
	}
}

// Recvfrom is [unix.Recvfrom], for events of the kernel over netlink. One that fails is lost.
func Recvfrom(fd int, b []byte, flags int) (n int, from unix.Sockaddr, err error) {
	n, from, err = unix.Recvfrom(fd, b, flags)
	if err == nil && call("event") != nil {
		return -1, nil, unix.ENOBUFS // as if there had been no room for it
	}
	return n, from, err
}

// Setns is [unix.Setns].
func Setns(fd, kind int) error {
	if err := call("setns"); err != nil {
		return err
	}
	return unix.Setns(fd, kind)
}

// Flock is [unix.Flock].
func Flock(fd, how int) error {
	if err := call("flock"); err != nil {
		return err
	}
	return unix.Flock(fd, how)
}

// StatOf is [unix.Stat], for the identity of a file.
func StatOf(path string, stat *unix.Stat_t) error {
	if err := call("stat"); err != nil {
		return err
	}
	return unix.Stat(path, stat)
}

// Fstat is [unix.Fstat].
func Fstat(fd int, stat *unix.Stat_t) error {
	if err := call("fstat"); err != nil {
		return err
	}
	return unix.Fstat(fd, stat)
}
