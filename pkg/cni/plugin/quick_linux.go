//go:build amd64 || arm64

package plugin

import (
	"syscall"
	"unsafe"

	"flock.fritzlab.net/flock/pkg/cni/wire"
)

// The start of Go's runtime takes longer than all of the plugin's work (see
// docs/bench.md). So the program's entry point is start, in assembly, which calls quick.
// It does a call that goes well, and ends the process. If anything is unusual, it
// returns before it has asked the agent, or leaves in resumed how far it came; then
// the runtime starts as usual, and Run does the rest.
//
// So nothing that quick calls may need the runtime: no allocation, no map, no
// channel, no goroutine, no defer, no closure that escapes, no system call but
// [syscall.RawSyscall]. TestQuickNeedsNoRuntime reads the machine code for it.
//
// The linker's flag -E (see [Entry]) makes start the entry point. Without it, quick is
// not in the program.

// start is in start_linux_*.s.
func start()

// Nothing but the linker and start name these.
var (
	_, _ = start, quick
	_, _ = &noGoroutine, &threadLocal
)

// What start gives to compiled code where the runtime would have set up a goroutine.
// All of it being zero, code takes its stack for large enough, as the process's is.
var (
	noGoroutine [64]uintptr
	threadLocal [2]uintptr // of amd64: the first is read as the goroutine's address
)

// What quick hands to system calls must not be on a stack that moves, and lies here.
var (
	quickEnv     [32]string
	quickAddr    syscall.RawSockaddrUnix
	quickMessage syscall.Msghdr
	quickVector  syscall.Iovec
	quickTimeout syscall.Timeval
	quickFile    struct {
		syscall.Cmsghdr
		fd int32
		_  int32 // to the alignment of the next header
	}
)

// quick gets the process's initial stack: the number of arguments, those, a nil, and
// the environment up to another nil.
func quick(stack unsafe.Pointer) {
	const word = unsafe.Sizeof(uintptr(0))
	variables := 0
	ask := false
	var netNS unsafe.Pointer // of the path, which ends with a NUL
	for p := unsafe.Add(stack, (*(*uintptr)(stack)+2)*word); *(*unsafe.Pointer)(p) != nil; p = unsafe.Add(p, word) {
		kv := textAt(*(*unsafe.Pointer)(p))
		if len(kv) < 4 || kv[:4] != "CNI_" {
			continue
		}
		if variables == len(quickEnv) {
			return
		}
		quickEnv[variables] = kv
		variables++
		if v, ok := value(kv, "CNI_COMMAND="); ok {
			ask = v != "" && v != "VERSION"
		} else if v, ok := value(kv, "CNI_NETNS="); ok && v != "" {
			netNS = unsafe.Pointer(unsafe.StringData(v))
		}
	}
	if !ask {
		return
	}
	for {
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, 0, uintptr(unsafe.Pointer(&stdin[resumed.stdin])), uintptr(len(stdin)-resumed.stdin))
		if e == syscall.EINTR {
			continue
		}
		if e != 0 {
			return
		}
		if n == 0 {
			break
		}
		if resumed.stdin += int(n); resumed.stdin == len(stdin) {
			return
		}
	}
	resumed.stdinEnded = true

	r := wire.Request{Env: quickEnv[:variables], Stdin: stdin[:resumed.stdin]}
	if r.Size() > wire.MaxMessage {
		return
	}
	file := -1
	if netNS != nil {
		const atCWD = -100
		fd, _, e := syscall.RawSyscall6(syscall.SYS_OPENAT, ^uintptr(-atCWD-1), uintptr(netNS), syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0, 0, 0)
		if e != 0 {
			r.NetNSErrno = uint32(e)
		} else {
			file = int(fd)
		}
	}
	message := wire.AppendRequest(request[:0], r)

	socket := DefaultSocket
	if said := scan(r.Stdin); said.agentSocket != "" {
		socket = said.agentSocket
	}
	if len(socket) > maxSocketPath {
		return
	}
	resumed.deadline = now() + DefaultTimeoutSeconds*1000
	fd, ok := connectQuickly(socket)
	if !ok || !sendQuickly(fd, message, file) {
		return
	}
	resumed.asked, resumed.socket = true, fd
	n, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&response)), uintptr(len(response)))
	if e != 0 {
		return
	}
	resumed.answer = int(n)
	answer, ok := wire.CutResponse(response[:n])
	if !ok {
		return
	}
	exit, output := answer.Exit, answer.Output
	for len(output) > 0 {
		n, _, e := syscall.RawSyscall(syscall.SYS_WRITE, 1, uintptr(unsafe.Pointer(unsafe.SliceData(output))), uintptr(len(output)))
		if e == syscall.EINTR {
			continue
		}
		if e != 0 {
			exit = 1
			break
		}
		output = output[n:]
	}
	syscall.RawSyscall(syscall.SYS_EXIT_GROUP, uintptr(exit), 0, 0)
}

// textAt returns the text at p up to its NUL.
func textAt(p unsafe.Pointer) string {
	n := 0
	for *(*byte)(unsafe.Add(p, n)) != 0 {
		n++
	}
	return unsafe.String((*byte)(p), n)
}

// connectQuickly connects to the agent. Each wait on the socket is limited to the
// timeout.
func connectQuickly(socket string) (fd int, ok bool) {
	s, _, e := syscall.RawSyscall(syscall.SYS_SOCKET, syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if e != 0 {
		return -1, false
	}
	quickTimeout.Sec = DefaultTimeoutSeconds
	syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, s, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, uintptr(unsafe.Pointer(&quickTimeout)), unsafe.Sizeof(quickTimeout), 0)
	syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, s, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, uintptr(unsafe.Pointer(&quickTimeout)), unsafe.Sizeof(quickTimeout), 0)
	quickAddr.Family = syscall.AF_UNIX
	path := unsafe.Slice((*byte)(unsafe.Pointer(&quickAddr.Path)), len(quickAddr.Path))
	n := copy(path, socket)
	size := unsafe.Offsetof(quickAddr.Path) + uintptr(n) + 1
	_, _, e = syscall.RawSyscall(syscall.SYS_CONNECT, s, uintptr(unsafe.Pointer(&quickAddr)), size)
	return int(s), e == 0
}

// sendQuickly sends the message, with a file if that is not -1.
func sendQuickly(fd int, message []byte, file int) bool {
	quickVector.Base = unsafe.SliceData(message)
	quickVector.SetLen(len(message))
	quickMessage.Iov, quickMessage.Iovlen = &quickVector, 1
	if file >= 0 {
		quickFile.Level, quickFile.Type, quickFile.fd = syscall.SOL_SOCKET, syscall.SCM_RIGHTS, int32(file)
		quickFile.SetLen(syscall.SizeofCmsghdr + 4)
		quickMessage.Control = (*byte)(unsafe.Pointer(&quickFile))
		quickMessage.SetControllen(int(unsafe.Sizeof(quickFile)))
	}
	_, _, e := syscall.RawSyscall(syscall.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&quickMessage)), syscall.MSG_NOSIGNAL)
	return e == 0
}
