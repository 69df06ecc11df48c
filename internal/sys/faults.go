//go:build faults

package sys

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A process that is built with the tag "faults" takes commands, one a line, at the unix socket
// $FLOCK_FAULTS, and answers each with lines up to an empty one. The command in $FLOCK_FAULTS_ARM
// is carried out before all else.
//
//	reset           no fault is armed any more, and counting starts again
//	kill N          SIGKILL before the effect with this number, from now on
//	hold N          the effect with this number waits for the command go
//	go              and no other effect waits
//	held            whether an effect waits: yes or no
//	fail N ERRNO    the call with this number fails, from now on
//	fail N short    the next answer of the kernel after it is cut off, or says that it is
//	trace           the effects and calls since the last reset, kill, hold or fail
//
// With FLOCK_FAULTS_TRACE=no there is no trace: it takes a tenth of the agent's time.
//
// An effect is a call that changes something outside of the process. Calls are these and those
// that read. What was done between two effects is lost with the process, so that a kill before
// each effect is a kill at every step that can be told from the others.
var faults struct {
	mu               sync.Mutex // guards all below
	effects, calls   int
	kill, hold, fail int           // the number; 0: none
	held             chan struct{} // closed to let go; nil: none is held
	errno            syscall.Errno
	short, cut       bool
	trace            []traced
	untraced         bool
}

// traced is an effect or a call. What is printed of it is made when it is asked for.
type traced struct {
	kind           string
	effects, calls int
	op, what       string
	pcs            [24]uintptr // from its caller on
}

func (t traced) String() string {
	return fmt.Sprintf("%s %d/%d %s %s at %s", t.kind, t.effects, t.calls, t.op, t.what, site(t.pcs[:]))
}

// Enabled says whether calls can fail at will.
const Enabled = true

func init() {
	if arm := os.Getenv("FLOCK_FAULTS_ARM"); arm != "" {
		if _, err := command(arm); err != nil {
			panic(err)
		}
	}
	faults.untraced = os.Getenv("FLOCK_FAULTS_TRACE") == "no"
	path := os.Getenv("FLOCK_FAULTS")
	if path == "" {
		return
	}
	os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
}

func serve(conn net.Conn) {
	defer conn.Close()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		answer, err := command(lines.Text())
		if err != nil {
			answer = []string{"error: " + err.Error()}
		}
		for _, line := range answer {
			fmt.Fprintln(conn, line)
		}
		fmt.Fprintln(conn)
	}
}

var errnos = map[string]syscall.Errno{
	"ENOSPC": syscall.ENOSPC, "EIO": syscall.EIO, "EMFILE": syscall.EMFILE, "ENOBUFS": syscall.ENOBUFS,
	"EINTR": syscall.EINTR, "EBUSY": syscall.EBUSY, "ENOMEM": syscall.ENOMEM,
}

func command(line string) (answer []string, err error) {
	f := &faults
	f.mu.Lock()
	defer f.mu.Unlock()
	words := append(strings.Fields(line), "", "", "")
	switch words[0] {
	case "trace":
		for _, t := range f.trace {
			answer = append(answer, t.String())
		}
		return answer, nil
	case "held":
		if f.held != nil {
			return []string{"yes"}, nil
		}
		return []string{"no"}, nil
	}
	f.kill, f.hold, f.fail, f.errno, f.short, f.cut = 0, 0, 0, 0, false, false
	if f.held != nil {
		close(f.held)
		f.held = nil
	}
	if words[0] == "go" {
		return nil, nil
	}
	f.effects, f.calls, f.trace = 0, 0, nil
	n, _ := strconv.Atoi(words[1])
	switch {
	case words[0] == "reset":
	case words[0] == "kill" && n > 0:
		f.kill = n
	case words[0] == "hold" && n > 0:
		f.hold = n
	case words[0] == "fail" && n > 0 && words[2] == "short":
		f.fail, f.short = n, true
	case words[0] == "fail" && n > 0 && errnos[words[2]] != 0:
		f.fail, f.errno = n, errnos[words[2]]
	default:
		return nil, fmt.Errorf("unknown command %q", line)
	}
	return nil, nil
}

// at counts a call, and is its error.
func at(isEffect bool, op, what string) error {
	f := &faults
	f.mu.Lock()
	f.calls++
	kind := "call"
	if isEffect {
		f.effects++
		kind = "effect"
	}
	const most = 10000
	if !f.untraced && len(f.trace) < most {
		t := traced{kind: kind, effects: f.effects, calls: f.calls, op: op, what: what}
		runtime.Callers(2, t.pcs[:])
		f.trace = append(f.trace, t)
	}
	if isEffect && f.effects == f.kill {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour) // with the lock held: nobody else does anything either
	}
	if isEffect && f.effects == f.hold {
		held := make(chan struct{})
		f.held, f.hold = held, 0
		f.mu.Unlock()
		<-held
		return nil
	}
	defer f.mu.Unlock()
	if f.calls != f.fail {
		return nil
	}
	if f.short {
		f.cut = true
		return nil
	}
	return f.errno
}

// site is the function outside of this package that made a call, and those that called that one.
func site(pcs []uintptr) string {
	if end := slices.Index(pcs, 0); end >= 0 {
		pcs = pcs[:end]
	}
	frames := runtime.CallersFrames(pcs)
	var names []string
	for {
		frame, more := frames.Next()
		if name, ours := strings.CutPrefix(frame.Function, "flock.fritzlab.net/flock/"); ours && !strings.HasPrefix(name, "internal/sys.") {
			names = append(names, name[strings.LastIndexByte(name, '/')+1:])
		}
		if !more || len(names) == 6 {
			return strings.Join(names, " < ")
		}
	}
}

func call(op string) error { return at(false, op, "") }

func read(op, what string) error { return wrap(op, what, at(false, op, what)) }

func effect(op, what string) error { return wrap(op, what, at(true, op, what)) }

func wrap(op, what string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: what, Err: err}
}

// request is one over netlink, with one message or more. Those that only ask are no effect.
func request(b []byte) error {
	const get, batchBegin = 2, 0x10 // NFNL_MSG_BATCH_BEGIN
	typ := binary.NativeEndian.Uint16(b[4:])
	isEffect := typ == batchBegin || typ>>8 == 0 && typ%4 != get // rtnetlink(7)
	return at(isEffect, "netlink", fmt.Sprintf("type %#x, %d bytes", typ, len(b)))
}

func answer() error { return at(false, "answer", "") }

// answered is what a read of an answer came to.
func answered(n int, err error, b []byte) (int, error) {
	f := &faults
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.cut || err != nil || n < 16 {
		return n, err
	}
	f.cut = false
	const dumpInterrupted, multi = 0x10, 0x2
	if flags := binary.NativeEndian.Uint16(b[6:]); flags&multi != 0 {
		binary.NativeEndian.PutUint16(b[6:], flags|dumpInterrupted)
		return n, nil
	}
	return -1, syscall.ENOBUFS // as if there had been no room for it
}
