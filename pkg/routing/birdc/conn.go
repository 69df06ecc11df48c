// Package birdc speaks with a running BIRD over its control socket, as the
// program of that name does: a command is a line, a reply is lines that begin
// with a four-digit code (doc/reply_codes in BIRD's sources).
//
// It judges every reply by its code and turns what BIRD prints for people into
// types. It never decides what BIRD should do. An error says whether BIRD is
// absent (ErrAbsent), hangs (os.ErrDeadlineExceeded), went away in the middle of
// a reply (ErrClosed), or refused (*ReplyError): each has another remedy.
package birdc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"flock.fritzlab.net/flock/internal/sys"
)

var (
	// ErrAbsent: nothing listens on the control socket.
	ErrAbsent = errors.New("BIRD is not running")
	// ErrClosed: BIRD closed the connection before its reply was complete.
	ErrClosed = errors.New("BIRD closed its control socket in the middle of a reply")
)

// maxLine bounds a line of a reply, and maxReply a whole one, in bytes.
const (
	maxLine  = 64 << 10
	maxReply = 16 << 20
)

// Timeout bounds each command that has no earlier deadline in its context. BIRD answers
// from one thread, so a large reconfiguration delays answers, normally by less than a
// second.
const Timeout = 5 * time.Second

// ReplyError is BIRD's refusal of a command.
type ReplyError struct {
	Command string
	Code    int    // 8xxx: at run time, 9xxx: it did not understand
	Text    string // BIRD's own message
}

func (e *ReplyError) Error() string {
	return fmt.Sprintf("BIRD refused the command %q: %s (code %d)", e.Command, e.Text, e.Code)
}

// Line is one line of a reply.
type Line struct {
	Code int
	Text string
}

// Conn is a connection to BIRD's control socket. One goroutine uses it.
type Conn struct {
	c net.Conn
	r *bufio.Reader
}

// Dial connects to the control socket at path and reads BIRD's greeting.
func Dial(ctx context.Context, path string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
		}
		return nil, err
	}
	c := newConn(nc)
	if err := c.greet(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

func newConn(c net.Conn) *Conn {
	return &Conn{c: c, r: bufio.NewReaderSize(c, maxLine)}
}

// greet reads BIRD's greeting.
func (c *Conn) greet(ctx context.Context) error {
	defer c.arm(ctx)()
	_, err := c.reply(ctx, "connect")
	return err
}

// Close ends the connection.
func (c *Conn) Close() error { return c.c.Close() }

// Do sends one command and returns the lines of BIRD's reply, at least one. A
// reply with a code of 8000 or above is a *ReplyError; after any other error the
// connection is closed, since what comes next on it answers an unknown command.
func (c *Conn) Do(ctx context.Context, command string) ([]Line, error) {
	if strings.ContainsAny(command, "\r\n\x00") {
		return nil, fmt.Errorf("birdc: command %q is more than one line", command)
	}
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	lines, err := c.exchange(ctx, command)
	if refusal := new(ReplyError); err != nil && !errors.As(err, &refusal) {
		c.c.Close()
	}
	return lines, err
}

func (c *Conn) exchange(ctx context.Context, command string) ([]Line, error) {
	defer c.arm(ctx)()
	if err := sys.Command(command); err != nil {
		return nil, c.judge(ctx, command, err)
	}
	if _, err := io.WriteString(c.c, command+"\n"); err != nil {
		return nil, c.judge(ctx, command, err)
	}
	return c.reply(ctx, command)
}

// arm lets the end of ctx end what waits on the connection, until disarmed.
func (c *Conn) arm(ctx context.Context) (disarm func() bool) {
	c.c.SetDeadline(time.Time{})
	return context.AfterFunc(ctx, func() { c.c.SetDeadline(time.Unix(1, 0)) })
}

// reply reads up to the last line of a reply: the one with a space behind its
// code.
func (c *Conn) reply(ctx context.Context, command string) ([]Line, error) {
	var lines []Line
	for size := 0; ; {
		raw, err := c.readLine()
		if err != nil {
			return nil, c.judge(ctx, command, err)
		}
		if size += len(raw); size > maxReply {
			return nil, fmt.Errorf("BIRD's reply to %q is longer than %d bytes", command, maxReply)
		}
		if strings.HasPrefix(raw, "+") {
			continue // a line of BIRD's log, see Watch
		}
		line, last, ok := parseLine(raw, lines)
		if !ok {
			return nil, fmt.Errorf("BIRD's reply to %q has a line without a code: %q", command, raw)
		}
		lines = append(lines, line)
		if last {
			if line.Code >= 8000 {
				return lines, &ReplyError{Command: command, Code: line.Code, Text: line.Text}
			}
			return lines, nil
		}
	}
}

func (c *Conn) readLine() (string, error) {
	b, err := c.r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

func (c *Conn) judge(ctx context.Context, command string, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("BIRD does not answer %q: %w", command, os.ErrDeadlineExceeded)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w (to %q)", ErrClosed, command)
	}
	return fmt.Errorf("BIRD's reply to %q: %w", command, err)
}

// parseLine reads one line of a reply that began with before: "NNNN-text", or
// "NNNN text" for the last, or " text" with the code of the line before.
func parseLine(raw string, before []Line) (line Line, last, ok bool) {
	if strings.HasPrefix(raw, " ") && len(before) > 0 {
		return Line{Code: before[len(before)-1].Code, Text: raw[1:]}, false, true
	}
	if len(raw) < 5 || (raw[4] != ' ' && raw[4] != '-') {
		return Line{}, false, false
	}
	for _, d := range []byte(raw[:4]) {
		if d < '0' || d > '9' {
			return Line{}, false, false
		}
		line.Code = line.Code*10 + int(d-'0')
	}
	line.Text = raw[5:]
	return line, raw[4] == ' ', true
}
