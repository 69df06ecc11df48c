package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// child is another process of this program that runs a benchmark's OnNode outside of
// any node.
type child struct {
	cmd   *exec.Cmd
	lines *bufio.Reader
	stop  func() bool
	once  sync.Once // a second signal could find it without its handler
}

// startChild starts one. It is interrupted when the context ends.
func startChild(ctx context.Context, bench string, input any) (*child, error) {
	in, err := json.Marshal(input)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", NodeCommand, bench)
	cmd.Stdin, cmd.Stderr = strings.NewReader(string(in)), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, lines: bufio.NewReader(out)}
	c.stop = context.AfterFunc(ctx, c.interrupt)
	return c, nil
}

func (c *child) interrupt() {
	c.once.Do(func() { _ = c.cmd.Process.Signal(os.Interrupt) })
}

// line is the next one that it says.
func (c *child) line() (string, error) {
	line, err := c.lines.ReadString('\n')
	if errors.Is(err, io.EOF) {
		err = errors.New("the process ended early")
	}
	return strings.TrimSpace(line), err
}

// end interrupts it, waits and returns how it ended.
func (c *child) end() error {
	c.stop()
	c.interrupt()
	_, _ = io.Copy(io.Discard, c.lines)
	return c.cmd.Wait()
}
