package birdc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Codes of the replies to configure.
const (
	codeReconfigured  = 3
	codeInProgress    = 4
	codeQueued        = 5
	codeShuttingDown  = 6
	codeShutdown      = 7
	codeUnqueued      = 17
	codeConfirmed     = 18
	codeNothing       = 19
	codeConfigOK      = 20
	codeEvaluated     = 23
	codeRestartOrder  = 25
	codeUndoScheduled = 22
)

// Options of Configure. The zero value is "configure": the file that BIRD was
// started with, filters applied again, for good.
type Options struct {
	// File to read in place of the one that BIRD was started with.
	File string
	// Undo makes BIRD go back to what it had unless Confirm comes in time.
	// Whole seconds.
	Undo time.Duration
}

// Check lets BIRD read the file at path, which must be visible to BIRD under
// that name, and changes nothing. A *ReplyError holds BIRD's complaint.
func (c *Conn) Check(ctx context.Context, path string) error {
	name, err := quote(path)
	if err != nil {
		return err
	}
	_, err = c.expect(ctx, "configure check "+name, codeConfigOK)
	return err
}

// Configure makes BIRD read its configuration again. When it returns without
// error, BIRD has taken the configuration; done reports whether everything is
// already as it says, otherwise protocols are still being shut down for it.
func (c *Conn) Configure(ctx context.Context, o Options) (done bool, err error) {
	command := "configure"
	if o.File != "" {
		name, err := quote(o.File)
		if err != nil {
			return false, err
		}
		command += " " + name
	}
	if o.Undo > 0 {
		command += fmt.Sprintf(" timeout %d", int(o.Undo/time.Second))
	}
	code, err := c.expect(ctx, command, codeReconfigured, codeInProgress, codeQueued, codeUnqueued)
	return code == codeReconfigured, err
}

// Confirm keeps the configuration that Configure with Undo brought. It is an
// error if there was none waiting: BIRD has gone back by then.
func (c *Conn) Confirm(ctx context.Context) error {
	_, err := c.expect(ctx, "configure confirm", codeConfirmed)
	return err
}

// Unconfirmed reports whether BIRD waits for Confirm and goes back without it.
func (c *Conn) Unconfirmed(ctx context.Context) (bool, error) {
	lines, err := c.Do(ctx, "configure status")
	for _, l := range lines {
		if l.Code == codeUndoScheduled {
			return true, err
		}
	}
	return false, err
}

// GracefulRestart ends BIRD without a notification to its peers, so that they keep
// the node's routes until it is back (RFC 4724). BIRD must be started again with -R.
// See Ended.
func (c *Conn) GracefulRestart(ctx context.Context) error {
	_, err := c.expect(ctx, "graceful restart", codeRestartOrder)
	return err
}

// Down ends BIRD with a Cease to its peers (administrative shutdown, RFC 4486), so that
// they drop the node's routes. See Ended.
func (c *Conn) Down(ctx context.Context) error {
	_, err := c.expect(ctx, "down", codeShutdown)
	return err
}

// Ended waits until BIRD has closed the connection, as it does at its end.
func (c *Conn) Ended(ctx context.Context) error {
	if err := c.Watch(ctx, func(string) {}); !errors.Is(err, ErrClosed) {
		return err
	}
	return nil
}

// Eval returns the value of a symbol of BIRD's configuration, as BIRD prints it.
func (c *Conn) Eval(ctx context.Context, symbol string) (string, error) {
	lines, err := c.Do(ctx, "eval "+symbol)
	if err != nil {
		return "", err
	}
	if l := lines[len(lines)-1]; l.Code == codeEvaluated {
		return l.Text, nil
	}
	return "", unexpected("eval "+symbol, lines)
}

// expect runs command and returns the code of its last line, which must be one
// of codes.
func (c *Conn) expect(ctx context.Context, command string, codes ...int) (int, error) {
	lines, err := c.Do(ctx, command)
	if err != nil {
		return 0, err
	}
	last := lines[len(lines)-1].Code
	for _, code := range codes {
		if last == code {
			return code, nil
		}
	}
	return last, unexpected(command, lines)
}

// unexpected makes an error of a reply that is a success to BIRD and none here:
// "nothing to do", "shutting down".
func unexpected(command string, lines []Line) error {
	l := lines[len(lines)-1]
	return &ReplyError{Command: command, Code: l.Code, Text: l.Text}
}

// quote puts a file name between BIRD's double quotes, which know no escapes.
func quote(path string) (string, error) {
	if strings.ContainsAny(path, "\"\r\n\x00") {
		return "", fmt.Errorf("bird cannot be given the file name %q: it holds a quote or a line break", path)
	}
	return `"` + path + `"`, nil
}

// Enable starts a protocol that BIRD has disabled, and does nothing to one that runs.
func (c *Conn) Enable(ctx context.Context, protocol string) error {
	_, err := c.Do(ctx, "enable "+protocol)
	return err
}
