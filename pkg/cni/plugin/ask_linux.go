package plugin

import (
	"syscall"
	"unsafe"

	"flock.fritzlab.net/flock/pkg/cni/wire"
)

// call is one question to the agent.
type call struct {
	socket  string
	timeout int  // in seconds, for all of it together
	status  bool // STATUS has an error code of its own for "not there"
}

// ask sends the request, with the file netNS beside it if that is not -1, and
// waits for the answer.
func (c call) ask(request []byte, netNS int) (wire.Response, *failure) {
	deadline := now() + int64(c.timeout)*1000
	if resumed.deadline != 0 {
		deadline = resumed.deadline
	}
	if len(c.socket) > maxSocketPath {
		return wire.Response{}, &failure{code: codeInvalidConfig, msg: "network configuration: agentSocket=" + c.socket + ": a socket's path has at most " + itoa(maxSocketPath) + " bytes"}
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return wire.Response{}, c.away("socket", err)
	}
	if err := c.retry(fd, syscall.SO_SNDTIMEO, deadline, func() error {
		return syscall.Connect(fd, &syscall.SockaddrUnix{Name: c.socket})
	}); err != nil {
		return wire.Response{}, c.away("connect", err)
	}
	var control []byte
	if netNS >= 0 {
		control = syscall.UnixRights(netNS)
	}
	if err := c.send(fd, request, control, deadline); err != nil {
		return wire.Response{}, c.away("send", err)
	}
	return c.await(fd, 0, deadline)
}

// await waits for the answer on fd, unless response has n bytes of it.
func (c call) await(fd, n int, deadline int64) (wire.Response, *failure) {
	if n == 0 {
		if err := c.retry(fd, syscall.SO_RCVTIMEO, deadline, func() (err error) {
			n, err = syscall.Read(fd, response[:])
			return err
		}); err != nil {
			return wire.Response{}, c.away("receive", err)
		}
	}
	if n == 0 {
		return wire.Response{}, c.away("receive", syscall.ECONNRESET)
	}
	return c.understand(response[:n])
}

// maxSocketPath is the size of sockaddr_un's sun_path, less the closing NUL.
const maxSocketPath = 107

// retry runs f until it is not interrupted by a signal, with what is left until
// the deadline as the socket's timeout.
func (c call) retry(fd, option int, deadline int64, f func() error) error {
	for {
		left := deadline - now()
		if left <= 0 {
			return syscall.EAGAIN
		}
		t := syscall.NsecToTimeval(left * 1e6)
		if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, option, &t); err != nil {
			return err
		}
		if err := f(); err != syscall.EINTR {
			return err
		}
	}
}

// send sends the request. A message must fit the socket's buffer, and a node's
// default (net.core.wmem_default) may have been set below the usual 208 KiB: then
// the buffer is widened, which a plugin may, being root.
func (c call) send(fd int, request, control []byte, deadline int64) error {
	widened := false
	for {
		err := c.retry(fd, syscall.SO_SNDTIMEO, deadline, func() error {
			_, err := syscall.SendmsgN(fd, request, control, nil, syscall.MSG_NOSIGNAL)
			return err
		})
		if err != syscall.EMSGSIZE || widened {
			return err
		}
		widened = true
		if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUFFORCE, 2*wire.MaxMessage); err != nil {
			return syscall.EMSGSIZE
		}
	}
}

// understand reads the agent's answer.
func (c call) understand(message []byte) (wire.Response, *failure) {
	if len(message) > wire.MaxMessage {
		return wire.Response{}, &failure{code: codeNotUnderstood, msg: "the answer from " + c.socket + " has more than " + itoa(wire.MaxMessage) + " bytes", details: lookAtAgent}
	}
	r, err := wire.ParseResponse(message)
	if err == nil {
		return r, nil
	}
	if other, ok := err.(wire.VersionError); ok {
		return wire.Response{}, &failure{
			code:    c.awayCode(),
			msg:     "flock's agent speaks protocol " + itoa(int(other.Theirs)) + " and its plugin " + itoa(wire.Version) + ": this node has files of two releases",
			details: "restart the flock pod of this node, it installs its own plugin",
		}
	}
	return wire.Response{}, &failure{
		code:    codeNotUnderstood,
		msg:     "the answer from " + c.socket + " can't be understood: " + err.Error(),
		details: "is it flock's agent that listens there?",
	}
}

// away says that there is no agent to answer, and where to look.
func (c call) away(step string, err error) *failure {
	f := &failure{code: c.awayCode(), details: lookAtAgent}
	switch err {
	case syscall.ENOENT, syscall.ECONNREFUSED:
		f.msg = "flock's agent is not running on this node: " + c.socket + ": " + err.Error()
	case syscall.EAGAIN:
		f.msg = "flock's agent did not answer on " + c.socket + " within " + itoa(c.timeout) + " s"
	case syscall.ECONNRESET, syscall.EPIPE:
		f.msg = "flock's agent stopped during the call: " + c.socket + ": " + err.Error()
	default:
		f.msg = "flock's agent can't be reached: " + c.socket + ": " + step + ": " + err.Error()
	}
	return f
}

// awayCode is the code for "ask again later": runtimes repeat ADD and DEL, and
// take a node out of service on STATUS.
func (c call) awayCode() int {
	if c.status {
		return codeNotAvailable
	}
	return codeTryAgainLater
}

// now returns the time in milliseconds of the monotonic clock.
func now() int64 {
	const clockMonotonic = 1
	var t syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&t)), 0)
	return t.Nano() / 1e6
}

func isTerminal(fd int) bool {
	var termios syscall.Termios
	_, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TCGETS, uintptr(unsafe.Pointer(&termios)))
	return e == 0
}
