package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/cni/wire"
)

const (
	// shutdownGrace is how long running calls may take to finish once the
	// agent is stopped; then their contexts end. It is well below
	// Kubernetes' default grace period of 30 s.
	shutdownGrace = 10 * time.Second
	// requestTimeout is how long a client may take to send its request. The
	// plugin sends at once after it has connected.
	requestTimeout = 10 * time.Second
)

// ErrCallerGone is the cause with which a call's context ends when the runtime gave
// up waiting and will not read the answer.
var ErrCallerGone = errors.New("the runtime gave up waiting")

// Listener is the agent's end of the plugin's socket, bound but not yet served:
// calls wait in it.
type Listener struct {
	socket *net.UnixListener
	lock   *sys.File
	path   string
	grace  time.Duration
}

// Listen makes the socket, reachable by root alone, in place of one that an
// agent left behind. It fails if another agent is alive on it, or if there is
// something else at the path.
func Listen(socketPath string) (*Listener, error) {
	lock, err := lockSocket(socketPath)
	if err != nil {
		return nil, err
	}
	if err := removeStale(socketPath); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The mode that a socket has when it is bound is the mode of its file.
		var chmodErr error
		err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmodErr)
	}}
	socket, err := config.Listen(context.Background(), "unixpacket", socketPath)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("plugin socket: %w", err), lock.Close())
	}
	return &Listener{socket: socket.(*net.UnixListener), lock: lock, path: socketPath, grace: shutdownGrace}, nil
}

// lockSocket takes the lock beside the socket: two agents that start at once
// can't both find the socket stale. The kernel drops it when the process ends.
func lockSocket(socketPath string) (*sys.File, error) {
	path := socketPath + ".lock"
	lock, err := sys.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("plugin socket: %w", err)
	}
	if err := sys.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%s is held: another flock-agent runs on this node; stop it first", path)
		}
		return nil, errors.Join(fmt.Errorf("plugin socket: %w", err), lock.Close())
	}
	return lock, nil
}

func removeStale(socketPath string) error {
	info, err := sys.Lstat(socketPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("plugin socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("plugin socket: %s is not a socket: move it away", socketPath)
	}
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socketPath, Net: "unixpacket"})
	if err == nil {
		return errors.Join(fmt.Errorf("plugin socket: a process answers on %s: another flock-agent runs on this node; stop it first", socketPath), conn.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("plugin socket: %w", err)
	}
	if err := sys.Remove(socketPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("plugin socket: %w", err)
	}
	return nil
}

// Close gives the socket up without serving it.
func (l *Listener) Close() error {
	// The lock is released last, so the next holder finds no socket of ours. Its
	// file is never removed, because a lock on a removed file excludes nobody else.
	return errors.Join(l.socket.Close(), l.lock.Close())
}

// Serve answers calls, each in its own goroutine, until ctx ends. Then it takes
// no more, lets running ones finish for up to 10 s, ends their contexts, and
// returns nil when all have returned. The listener is closed after it.
func (l *Listener) Serve(ctx context.Context, b Backend, log *slog.Logger) error {
	defer l.lock.Close()
	vet, err := vetNetNS()
	if err != nil {
		return errors.Join(err, l.socket.Close())
	}
	d := &dispatcher{backend: b, log: log, vetNetNS: vet}

	// Running calls outlive ctx by the grace period.
	callCtx, endCalls := context.WithCancelCause(context.WithoutCancel(ctx))
	defer endCalls(nil)
	stopAccepting := context.AfterFunc(ctx, func() { _ = l.socket.Close() })
	defer stopAccepting()

	var calls sync.WaitGroup
	serveErr := l.acceptAll(ctx, log, func(conn *net.UnixConn) {
		calls.Go(func() { d.serveConn(callCtx, conn) })
	})
	_ = l.socket.Close()

	grace := time.AfterFunc(l.grace, func() { endCalls(errors.New("flock's agent stops")) })
	defer grace.Stop()
	calls.Wait()
	return serveErr
}

// acceptAll calls serve with each connection. It returns nil when ctx has ended.
func (l *Listener) acceptAll(ctx context.Context, log *slog.Logger, serve func(*net.UnixConn)) error {
	for {
		conn, err := l.socket.AcceptUnix()
		switch {
		case err == nil:
			serve(conn)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("plugin socket: %w", err)
		default:
			// Out of files or memory: that passes, and the plugin waits.
			log.Error("plugin socket: accept", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// serveConn answers one plugin process.
func (d *dispatcher) serveConn(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	request, netNS, err := receive(conn)
	if netNS != nil {
		defer netNS.Close()
	}
	if err != nil {
		d.reply(conn, d.refusal(err))
		return
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch sync.WaitGroup
	watch.Go(func() {
		// A plugin says nothing more: this returns when it has gone, or when
		// the connection is closed below.
		_, _ = conn.Read(make([]byte, 1))
		cancel(ErrCallerGone)
	})
	d.reply(conn, d.answer(ctx, request, netNS))
	_ = conn.Close()
	watch.Wait()
}

// refusal answers what could not be read.
func (d *dispatcher) refusal(err error) wire.Response {
	d.log.Warn("CNI request not understood", "error", err)
	var other wire.VersionError
	if errors.As(err, &other) {
		// A plugin of another protocol version makes its own message of the
		// version it sees in our answer; this is for one that only prints.
		return failure(TryAgainLater("flock's plugin speaks protocol %d and its agent %d: the node has files of two releases; restart the flock pod of this node, it installs its own plugin", other.Theirs, wire.Version), latestVersion)
	}
	return failure(newError(CodeIO, "flock's agent could not read the plugin's request: %w", err), latestVersion)
}

func (d *dispatcher) reply(conn *net.UnixConn, r wire.Response) {
	message := wire.AppendResponse(nil, r)
	if len(message) > wire.MaxMessage {
		message = wire.AppendResponse(nil, failure(newError(CodeInternal, "flock's answer has %d bytes, more than the %d that a message can have", len(message), wire.MaxMessage), latestVersion))
	}
	sys.Step("answer", "plugin")
	if _, err := conn.Write(message); err != nil {
		d.log.Debug("CNI answer not delivered", "error", err)
	}
	sys.Step("answered", "plugin")
}

var messages = sync.Pool{New: func() any { return new([wire.MaxMessage + 1]byte) }}

// receive reads one request and the file that came with it, nil if none did.
func receive(conn *net.UnixConn) (wire.Request, *os.File, error) {
	buffer := messages.Get().(*[wire.MaxMessage + 1]byte)
	defer messages.Put(buffer)
	control := make([]byte, unix.CmsgSpace(4)) // room for one file, so no more can arrive
	if err := conn.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return wire.Request{}, nil, err
	}
	n, controlLen, _, _, err := conn.ReadMsgUnix(buffer[:], control)
	if err != nil {
		return wire.Request{}, nil, err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return wire.Request{}, nil, err
	}
	netNS, err := receivedFile(control[:controlLen])
	if err != nil {
		return wire.Request{}, nil, err
	}
	if n > wire.MaxMessage {
		return wire.Request{}, netNS, fmt.Errorf("it is longer than %d bytes", wire.MaxMessage)
	}
	request, err := wire.ParseRequest(buffer[:n])
	request.Stdin = append([]byte(nil), request.Stdin...) // the buffer is reused
	return request, netNS, err
}

// receivedFile takes the one file out of a control message.
func receivedFile(control []byte) (*os.File, error) {
	headers, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	var file *os.File
	for _, h := range headers {
		fds, err := unix.ParseUnixRights(&h)
		if err != nil {
			continue // credentials or the like
		}
		for _, fd := range fds {
			if file != nil {
				_ = unix.Close(fd)
				continue
			}
			file = os.NewFile(uintptr(fd), "netns")
		}
	}
	return file, nil
}
