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

// Watch calls event with every line that BIRD logs: protocols with "debug {
// states }" log each change of their state. It returns when ctx ends, with its
// error, or with ErrClosed as soon as BIRD goes away. The connection is closed
// then and serves nothing else.
func (c *Conn) Watch(ctx context.Context, event func(line string)) error {
	defer c.Close()
	if _, err := c.Do(ctx, fmt.Sprintf("echo all %d", echoBuffer)); err != nil {
		return err
	}
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
