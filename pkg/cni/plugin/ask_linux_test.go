package plugin

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"flock.fritzlab.net/flock/pkg/cni/wire"
)

// A node where net.core.wmem_default is small must not lose long requests.
func TestSendThroughASmallBuffer(t *testing.T) {
	t.Parallel()
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range ends {
		t.Cleanup(func() { syscall.Close(fd) })
	}
	if err := syscall.SetsockoptInt(ends[0], syscall.SOL_SOCKET, syscall.SO_SNDBUF, 4096); err != nil {
		t.Fatal(err)
	}
	message := bytes.Repeat([]byte("x"), wire.MaxMessage)
	if err := syscall.Sendmsg(ends[0], message, nil, nil, syscall.MSG_NOSIGNAL); err != syscall.EMSGSIZE {
		t.Fatalf("the buffer is not small: %v", err)
	}
	if err := (call{}).send(ends[0], message, nil, now()+10_000); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, wire.MaxMessage+1)
	if n, err := syscall.Read(ends[1], got); err != nil || n != len(message) {
		t.Errorf("%d bytes arrived, %v", n, err)
	}
}

// A signal (the Go runtime sends itself some) neither ends the wait nor makes it
// longer.
func TestRetryIsInterrupted(t *testing.T) {
	t.Parallel()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	n := 0
	if err := (call{}).retry(fd, syscall.SO_RCVTIMEO, now()+60_000, func() error {
		if n++; n < 3 {
			return syscall.EINTR
		}
		return nil
	}); err != nil || n != 3 {
		t.Errorf("%d runs, %v", n, err)
	}
	if err := (call{}).retry(fd, syscall.SO_RCVTIMEO, now()+20, func() error {
		return syscall.EINTR
	}); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("got %v", err)
	}
}

func TestSocketPathTooLong(t *testing.T) {
	t.Parallel()
	c := call{socket: string(bytes.Repeat([]byte("x"), maxSocketPath+1)), timeout: 1}
	if _, f := c.ask(nil, -1); f == nil || f.code != codeInvalidConfig {
		t.Errorf("got %+v", f)
	}
	c.socket = "/" + c.socket[2:]
	if _, f := c.ask(nil, -1); f == nil || f.code != codeTryAgainLater || f.msg != "flock's agent is not running on this node: "+c.socket+": no such file or directory" {
		t.Errorf("a path of the longest kind: got %+v", f)
	}
}
