package birdc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// echoBuffer is how many bytes of its log BIRD holds back for a slow reader; it
// drops what is more and says so.
const echoBuffer = 4096

// Echo makes BIRD repeat on this connection what it logs, for Watch: protocols
// with "debug { states }" log each change of their state. BIRD 3 cannot, and
// refuses with a *ReplyError.
func (c *Conn) Echo(ctx context.Context) error {
	_, err := c.Do(ctx, fmt.Sprintf("echo all %d", echoBuffer))
	return err
}

// Watch calls event with every line that Echo brings. It returns when ctx ends,
// with its error, or with ErrClosed as soon as BIRD goes away. The connection is
// closed then and serves nothing else.
func (c *Conn) Watch(ctx context.Context, event func(line string)) error {
	defer c.Close()
	defer c.arm(ctx)()
	for {
		raw, err := c.readLine()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
			return ErrClosed
		case err != nil:
			return c.judge(ctx, "echo", err)
		}
		if line, ok := strings.CutPrefix(raw, "+"); ok {
			event(line)
		}
	}
}
