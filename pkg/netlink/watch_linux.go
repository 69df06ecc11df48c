package netlink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/sys"
)

// A Watch receives the kernel's notifications of the multicast groups that it joined. What
// happens between Subscribe and Run is kept for Run.
type Watch struct {
	socket *os.File
	raw    syscall.RawConn
}

// watchBuffer is what a Watch can fall behind, in bytes as the kernel counts them:
// some thousand notifications.
const watchBuffer = 4 << 20

// Subscribe joins groups of a protocol (NETLINK_…) in the calling thread's network namespace.
// The kernel delivers only what passes the filter, a classic BPF program over the message; nil
// lets all pass.
func Subscribe(protocol int, filter []unix.SockFilter, groups ...int) (*Watch, error) {
	fd, err := Open(protocol)
	if err != nil {
		return nil, err
	}
	w := &Watch{socket: os.NewFile(uintptr(fd), "netlink notifications")}
	if w.raw, err = w.socket.SyscallConn(); err != nil {
		w.Close()
		return nil, err
	}
	w.SetBuffer(watchBuffer)
	if len(filter) > 0 {
		program := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := sys.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program); err != nil {
			w.Close()
			return nil, fmt.Errorf("netlink filter: %w", err)
		}
	}
	for _, g := range groups {
		if err := sys.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			w.Close()
			return nil, fmt.Errorf("netlink group %d: %w", g, err)
		}
	}
	return w, nil
}

// SetBuffer sets what a Watch can fall behind, in bytes as the kernel counts them. Without
// CAP_NET_ADMIN it is at most net.core.rmem_max. What does not fit is reported as lost.
func (w *Watch) SetBuffer(bytes int) {
	w.raw.Control(func(fd uintptr) {
		if sys.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes) != nil {
			sys.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
		}
	})
}

// Close gives the socket up.
func (w *Watch) Close() { w.socket.Close() }

// Run calls f with each notification until ctx ends, which is no error. A Message of type 0 says
// that notifications were lost: the tables must be read again. f must not keep the message's
// body.
func (w *Watch) Run(ctx context.Context, f func(Message)) error {
	defer context.AfterFunc(ctx, func() { w.socket.SetReadDeadline(time.Unix(0, 1)) })()
	in := make([]byte, 64<<10)
	for {
		n, err := w.read(in)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS) || err == nil && n > len(in):
			f(Message{})
			continue
		case err != nil:
			return fmt.Errorf("netlink notifications: %w", err)
		}
		err = Messages(in[:n], func(m Message) error {
			f(m)
			return nil
		})
		if err != nil {
			return fmt.Errorf("netlink notifications: %w", err)
		}
	}
}

// read returns the size of the next datagram of the kernel's, which may be more
// than fits into buf.
func (w *Watch) read(buf []byte) (n int, err error) {
	var from unix.Sockaddr
	rawErr := w.raw.Read(func(fd uintptr) bool {
		for err = unix.EINTR; err == unix.EINTR; { // it would be told of no more what it was told of
			n, from, err = sys.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
		}
		return err != unix.EAGAIN
	})
	if rawErr != nil {
		return 0, rawErr
	}
	if kernel, ok := from.(*unix.SockaddrNetlink); err == nil && (!ok || kernel.Pid != 0) {
		return 0, nil // of another program, which cannot be trusted
	}
	return n, err
}

// askPatience is how long the kernel may take to answer to Ask.
const askPatience = 5 * time.Second

// Ask does a request of one message that wants an acknowledgement, before Run. What comes
// before the answer is dropped. A refusal is an [Error].
func (w *Watch) Ask(r Request) error {
	if err := sys.Ask(r); err != nil {
		return err
	}
	if _, err := w.socket.Write(r); err != nil {
		return err
	}
	w.socket.SetReadDeadline(time.Now().Add(askPatience))
	defer w.socket.SetReadDeadline(time.Time{})
	in := make([]byte, bufferSize)
	for answered := false; !answered; {
		n, err := w.read(in)
		if err != nil {
			return err
		}
		if err := Messages(in[:min(n, len(in))], func(m Message) error {
			if m.Type != unix.NLMSG_ERROR {
				return nil
			}
			answered = true
			refusal, err := m.Refusal()
			if err == nil && refusal != nil {
				err = refusal
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}
