// Package wire is the language between the CNI plugin and the agent: one
// message each way over a Unix SOCK_SEQPACKET socket, so that a message is
// never split, merged or half read.
//
// A request carries the CNI_* environment and the network configuration as the
// runtime gave them, and beside it, by SCM_RIGHTS, the open network namespace.
// A response carries the exit code and the bytes to print. All judgement is the
// agent's; this package only frames.
//
// Both begin with "FLK" and the protocol's version, and that holds for all
// versions to come: an older plugin and a newer agent always detect that they
// do not match. The package is linked into the plugin, so it imports nothing.
package wire

// Version is the protocol version this code speaks.
const Version = 1

// MaxMessage is the size in bytes of the largest message of either direction.
// It fits the kernel's default socket buffer (net.core.wmem_default), which
// bounds a SOCK_SEQPACKET message; a configuration with the valid attachments
// of 1,500 containers (CNI GC) still fits.
const MaxMessage = 192 << 10

const (
	magic          = "FLK"
	requestHeader  = 12 // magic, version, errno (4), length of the environment (4)
	responseHeader = 5  // magic, version, exit code
)

// Request is what the plugin asks.
type Request struct {
	// NetNSErrno says why the plugin could not open the path in CNI_NETNS, 0 if
	// it could, or was given none. The open file travels beside the message.
	NetNSErrno uint32
	// Env holds the CNI_* variables, each NAME=VALUE.
	Env []string
	// Stdin is the network configuration as it was read, JSON if all is well.
	Stdin []byte
}

// Response is what the agent answers.
type Response struct {
	// Exit is the code that the plugin exits with: 0 on success.
	Exit uint8
	// Output is what the plugin prints on its standard output.
	Output []byte
}

// Error says why a message could not be read.
type Error string

func (e Error) Error() string { return string(e) }

// What can be wrong with a message's bytes.
const (
	ErrNotFlock  Error = "not a message of flock's CNI protocol"
	ErrTruncated Error = "message ends too early"
	ErrMalformed Error = "message is malformed"
)

// VersionError says that the other side speaks another version of the protocol.
type VersionError struct {
	Theirs uint8
}

func (VersionError) Error() string {
	return "the other side speaks another version of flock's CNI protocol"
}

// Size is that of r as a message, in bytes.
func (r Request) Size() int { return requestHeader + r.envLen() + len(r.Stdin) }

func (r Request) envLen() int {
	n := 0
	for _, kv := range r.Env {
		n += len(kv) + 1
	}
	return n
}

// AppendRequest appends r to b. The environment must hold no NUL byte, which
// the kernel guarantees for a real one.
func AppendRequest(b []byte, r Request) []byte {
	envLen := r.envLen()
	b = append(b, magic...)
	b = append(b, Version)
	b = appendUint32(b, r.NetNSErrno)
	b = appendUint32(b, uint32(envLen))
	for _, kv := range r.Env {
		b = append(b, kv...)
		b = append(b, 0)
	}
	return append(b, r.Stdin...)
}

// ParseRequest reads a request. Stdin aliases b; Env does not.
func ParseRequest(b []byte) (Request, error) {
	if err := checkPreamble(b); err != nil {
		return Request{}, err
	}
	if len(b) < requestHeader {
		return Request{}, ErrTruncated
	}
	r := Request{NetNSErrno: uint32At(b, 4)}
	envLen := uint32At(b, 8)
	b = b[requestHeader:]
	if uint64(envLen) > uint64(len(b)) {
		return Request{}, ErrTruncated
	}
	env := b[:envLen]
	r.Stdin = b[envLen:]
	for start, i := 0, 0; i < len(env); i++ {
		if env[i] == 0 {
			r.Env = append(r.Env, string(env[start:i]))
			start = i + 1
		} else if i == len(env)-1 {
			return Request{}, ErrMalformed
		}
	}
	return r, nil
}

// AppendResponse appends r to b.
func AppendResponse(b []byte, r Response) []byte {
	b = append(b, magic...)
	b = append(b, Version, r.Exit)
	return append(b, r.Output...)
}

// ParseResponse reads a response. Output aliases b.
func ParseResponse(b []byte) (Response, error) {
	if err := checkPreamble(b); err != nil {
		return Response{}, err
	}
	if len(b) < responseHeader {
		return Response{}, ErrTruncated
	}
	return Response{Exit: b[4], Output: b[responseHeader:]}, nil
}

// CutResponse reads a response of this version of the protocol. Of any other message
// it returns false, and ParseResponse says what it is. Output aliases b.
func CutResponse(b []byte) (Response, bool) {
	if len(b) < responseHeader || len(b) > MaxMessage || string(b[:len(magic)]) != magic || b[len(magic)] != Version {
		return Response{}, false
	}
	return Response{Exit: b[4], Output: b[responseHeader:]}, true
}

func checkPreamble(b []byte) error {
	if len(b) <= len(magic) || string(b[:len(magic)]) != magic {
		return ErrNotFlock
	}
	if v := b[len(magic)]; v != Version {
		return VersionError{Theirs: v}
	}
	return nil
}

func appendUint32(b []byte, v uint32) []byte {
	return append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
}

func uint32At(b []byte, i int) uint32 {
	return uint32(b[i]) | uint32(b[i+1])<<8 | uint32(b[i+2])<<16 | uint32(b[i+3])<<24
}
