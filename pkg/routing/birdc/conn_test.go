package birdc

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeBIRD is a control socket that answers each command with the next of replies and
// closes the connection after the last.
func fakeBIRD(t *testing.T, banner string, replies ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "flock-")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "bird.ctl")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); os.RemoveAll(dir) })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, banner)
		buf := make([]byte, 1024)
		for _, r := range replies {
			if _, err := c.Read(buf); err != nil {
				return
			}
			io.WriteString(c, r)
		}
	}()
	return path
}

const ready = "0001 BIRD 2.0.12 ready.\n"

func TestDo(t *testing.T) {
	for name, test := range map[string]struct {
		reply string
		want  []Line
		err   string // within the error; "" for none
		is    error
	}{
		"one line":                   {reply: "0018 Reconfiguration confirmed\n", want: []Line{{18, "Reconfiguration confirmed"}}},
		"empty text":                 {reply: "0000 \n", want: []Line{{0, ""}}},
		"several codes":              {reply: "0002-Reading\n0022-Undo scheduled\n0003 Reconfigured\n", want: []Line{{2, "Reading"}, {22, "Undo scheduled"}, {3, "Reconfigured"}}},
		"continued without a code":   {reply: "1011-Router ID is 192.0.2.1\n Hostname is x\n0013 up\n", want: []Line{{1011, "Router ID is 192.0.2.1"}, {1011, "Hostname is x"}, {13, "up"}}},
		"log lines in between":       {reply: "+peer: up\n0002-Reading\n+log\n0003 Reconfigured\n", want: []Line{{2, "Reading"}, {3, "Reconfigured"}}},
		"carriage returns":           {reply: "0002-Reading\r\n0003 Reconfigured\r\n", want: []Line{{2, "Reading"}, {3, "Reconfigured"}}},
		"refused at run time":        {reply: "0002-Reading\n8002 a.conf:3:1 syntax error\n", err: `BIRD refused the command "x": a.conf:3:1 syntax error (code 8002)`},
		"not understood":             {reply: "9001 syntax error\n", err: "syntax error (code 9001)"},
		"no code":                    {reply: "hello\n", err: `line without a code: "hello"`},
		"code too short":             {reply: "12 x\n", err: "line without a code"},
		"code without a separator":   {reply: "0013+x\n", err: "line without a code"},
		"continuation of nothing":    {reply: " x\n", err: "line without a code"},
		"hung up at once":            {reply: "", is: ErrClosed},
		"hung up in a line":          {reply: "0002-Read", is: ErrClosed},
		"hung up between lines":      {reply: "0002-Reading\n", is: ErrClosed},
		"a line longer than allowed": {reply: "0002-" + strings.Repeat("x", maxLine) + "\n", err: "buffer full"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Dial(t.Context(), fakeBIRD(t, ready, test.reply))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			got, err := c.Do(t.Context(), "x")
			switch {
			case test.is != nil:
				if !errors.Is(err, test.is) {
					t.Errorf("%v, want %v", err, test.is)
				}
			case test.err != "":
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("%v, want %s", err, test.err)
				}
			case err != nil || !reflect.DeepEqual(got, test.want):
				t.Errorf("%v, %v, want %v", got, err, test.want)
			}
		})
	}
}

func TestDoTakesOneLineOnly(t *testing.T) {
	c, err := Dial(t.Context(), fakeBIRD(t, ready, "0000 \n"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Do(t.Context(), "show status\ndown"); err == nil {
		t.Error("sent two commands as one")
	}
	if err := c.Check(t.Context(), `/tmp/a" "b`); err == nil {
		t.Error("sent a file name with a quote in it")
	}
}

func TestDialAbsent(t *testing.T) {
	dir := t.TempDir()
	if _, err := Dial(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, ErrAbsent) {
		t.Errorf("no socket: %v, want ErrAbsent", err)
	}
	// A socket that a killed BIRD has left.
	path := fakeBIRD(t, ready)
	left := path + ".left"
	l, err := net.Listen("unix", left)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := Dial(t.Context(), left); !errors.Is(err, ErrAbsent) {
		t.Errorf("left socket: %v, want ErrAbsent", err)
	}
}

// TestHang: a BIRD that accepts and says nothing, and one that stops in the
// middle of a reply, cost Timeout and no more.
func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go func() {
			io.WriteString(theirs, ready)
			buf := make([]byte, 64)
			theirs.Read(buf)
			io.WriteString(theirs, "0002-Reading\n")
		}()
		c := newConn(ours)
		if err := c.greet(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err := c.Do(t.Context(), "configure")
		if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took != Timeout {
			t.Errorf("%v after %s, want a deadline after %s", err, took, Timeout)
		}
		if _, err := c.Do(t.Context(), "show status"); err == nil {
			t.Error("the connection went on after a reply was lost")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := newConn(ours).greet(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want the context's end", err)
		}
	})
}

func TestWatch(t *testing.T) {
	path := fakeBIRD(t, ready, "0000 \n+peer_tor: State changed to up\n+Reconfigured\n")
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Echo(t.Context()); err != nil {
		t.Fatal(err)
	}
	var lines []string
	err = c.Watch(t.Context(), func(line string) { lines = append(lines, line) })
	if want := []string{"peer_tor: State changed to up", "Reconfigured"}; !errors.Is(err, ErrClosed) || !reflect.DeepEqual(lines, want) {
		t.Errorf("%v, %q, want %q and ErrClosed", err, lines, want)
	}
}

func FuzzParseProtocols(f *testing.F) {
	for _, s := range []string{established, "1002-a", "1002-a BGP --- up 2026-11-23 21:53:27.963", "1006-  Channel ipv6\n1006-    Routes: x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var lines []Line
		for raw := range strings.Lines(s) {
			if l, _, ok := parseLine(strings.TrimRight(raw, "\r\n"), lines); ok {
				lines = append(lines, l)
			}
		}
		ps, err := parseProtocols(lines, Status{known: true})
		if err == nil && len(ps) > len(lines) {
			t.Errorf("%d protocols in %d lines", len(ps), len(lines))
		}
		parseStatus(lines, time.Unix(0, 0))
	})
}
