package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/cni/plugin"
	"flock.fritzlab.net/flock/pkg/cni/wire"
)

// result is what a runtime sees of a plugin, and an agent.
type result struct {
	exit     int
	out, err string
	asked    string // the request, and whether a file came with it
}

// TestQuickStartIsTheSame runs the plugin as it is shipped and one that starts as Go
// programs do: with the same input, they say the same.
func TestQuickStartIsTheSame(t *testing.T) {
	t.Parallel()
	quick, ordinary := build(t), buildWith(t, "-s -w")
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", wire.MaxMessage)
	many := make([]string, 100)
	for i := range many {
		many[i] = fmt.Sprintf("CNI_%d=%d", i, i)
	}
	answer := func(b []byte) func(*net.UnixConn) { return func(c *net.UnixConn) { c.Write(b) } }
	fine := answer(wire.AppendResponse(nil, wire.Response{Output: []byte("{}\n")}))
	for name, c := range map[string]struct {
		env   []string
		stdin string              // behind the agent's socket
		agent func(*net.UnixConn) // called with the request read; nil: nobody listens
		with  func(cmd *exec.Cmd) // before the start
		then  func(p *os.Process) // after the request has come
	}{
		"ADD":                        {env: []string{"CNI_COMMAND=ADD", "CNI_NETNS=/proc/self/ns/net", "PATH=/"}, agent: fine},
		"DEL":                        {env: []string{"A=b", "CNI_COMMAND=DEL", "CNI_NETNS=/nonexistent"}, agent: fine},
		"STATUS":                     {env: []string{"CNI_COMMAND=STATUS"}, agent: fine},
		"a command unknown to it":    {env: []string{"CNI_COMMAND=FLY"}, agent: fine},
		"an empty namespace":         {env: []string{"CNI_COMMAND=DEL", "CNI_NETNS="}, agent: fine},
		"a fifo for a namespace":     {env: []string{"CNI_COMMAND=ADD", "CNI_NETNS=" + fifo}, agent: fine},
		"a long path":                {env: []string{"CNI_COMMAND=ADD", "CNI_NETNS=/" + long[:5000]}, agent: fine},
		"no command":                 {env: []string{"CNI_NETNS=/x"}},
		"an empty command":           {env: []string{"CNI_COMMAND="}},
		"no environment":             {env: []string{}},
		"a variable without a value": {env: []string{"CNI_COMMAND", "CNI_", "CNI_COMMAND=DEL", "CNI"}, agent: fine},
		"a command twice":            {env: []string{"CNI_COMMAND=VERSION", "CNI_COMMAND=DEL"}, agent: fine},
		"VERSION":                    {env: []string{"CNI_COMMAND=VERSION"}, stdin: `,"cniVersion":"0.4.0"`},
		"many variables":             {env: append(many, "CNI_COMMAND=DEL"), agent: fine},
		"a long variable":            {env: []string{"CNI_COMMAND=DEL", "CNI_ARGS=" + long[:100_000]}, agent: fine},
		"a long configuration":       {env: []string{"CNI_COMMAND=ADD"}, stdin: `,"x":"` + long[:wire.MaxMessage-500] + `"`, agent: fine},
		"one that is too long":       {env: []string{"CNI_COMMAND=ADD"}, stdin: long},
		"one that DEL goes without":  {env: []string{"CNI_COMMAND=DEL"}, stdin: long + long},
		"too long with variables":    {env: []string{"CNI_COMMAND=ADD", "CNI_ARGS=" + long[:1000]}, stdin: long[:wire.MaxMessage-500]},
		"standard input is closed":   {env: []string{"CNI_COMMAND=ADD"}, with: func(cmd *exec.Cmd) { cmd.Stdin = unreadable(t) }},
		"the same for a DEL":         {env: []string{"CNI_COMMAND=DEL"}, with: func(cmd *exec.Cmd) { cmd.Stdin = unreadable(t) }},
		"no agent":                   {env: []string{"CNI_COMMAND=ADD"}, stdin: `,"cniVersion":"1.0.0"`},
		"no agent for STATUS":        {env: []string{"CNI_COMMAND=STATUS"}},
		"a long socket":              {env: []string{"CNI_COMMAND=ADD"}, stdin: `,"agentSocket":"/` + long[:107] + `"`},
		"an error":                   {env: []string{"CNI_COMMAND=ADD"}, agent: answer(wire.AppendResponse(nil, wire.Response{Exit: 1, Output: []byte(`{"code":7}`)}))},
		"an empty answer":            {env: []string{"CNI_COMMAND=DEL"}, agent: answer(wire.AppendResponse(nil, wire.Response{}))},
		"the longest answer":         {env: []string{"CNI_COMMAND=ADD"}, agent: answer(append([]byte("FLK\x01\x00"), long[5:]...))},
		"an answer that is too long": {env: []string{"CNI_COMMAND=ADD"}, agent: answer(append([]byte("FLK\x01\x00"), long...))},
		"the agent hangs up":         {env: []string{"CNI_COMMAND=ADD"}, agent: func(*net.UnixConn) {}},
		"another version":            {env: []string{"CNI_COMMAND=ADD"}, agent: answer([]byte("FLK\x02"))},
		"another program":            {env: []string{"CNI_COMMAND=STATUS"}, agent: answer([]byte("HTTP/1.1 400 Bad Request"))},
		"half an answer":             {env: []string{"CNI_COMMAND=ADD"}, agent: answer([]byte("FLK\x01"))},
		"standard output is closed":  {env: []string{"CNI_COMMAND=ADD"}, agent: fine, with: func(cmd *exec.Cmd) { cmd.Stdout = unwritable(t) }},
		"stopped while it waits": {env: []string{"CNI_COMMAND=ADD"},
			agent: func(c *net.UnixConn) { time.Sleep(100 * time.Millisecond); fine(c) }, // either order is right
			then: func(p *os.Process) {
				for range 3 {
					p.Signal(unix.SIGSTOP)
					p.Signal(unix.SIGCONT)
				}
			}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var both [2]result
			for i, program := range []string{quick, ordinary} {
				socket := filepath.Join(dir, name)
				os.Remove(socket)
				var asked chan string
				started := make(chan struct{})
				threads := 0 // of the plugin, while it waits
				cmd := exec.Command(program)
				if c.agent != nil {
					asked = make(chan string, 1)
					l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
					if err != nil {
						t.Fatal(err)
					}
					defer l.Close()
					go func() {
						conn, err := l.AcceptUnix()
						if err != nil {
							return
						}
						defer conn.Close()
						b, control := make([]byte, wire.MaxMessage+1), make([]byte, 100)
						n, k, _, _, err := conn.ReadMsgUnix(b, control)
						<-started
						tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", cmd.Process.Pid))
						threads = len(tasks)
						asked <- fmt.Sprintf("%q %d bytes beside it, %v", b[:n], k, err)
						if c.then != nil {
							c.then(cmd.Process)
						}
						c.agent(conn)
					}()
				}
				var out, said bytes.Buffer
				cmd.Env, cmd.Stdout, cmd.Stderr = c.env, &out, &said
				cmd.Stdin = strings.NewReader(`{"agentSocket":"` + socket + `"` + c.stdin + "}")
				if c.with != nil {
					c.with(cmd)
				}
				err := cmd.Start()
				close(started)
				if err == nil {
					err = cmd.Wait()
				}
				if err != nil && !errors.As(err, new(*exec.ExitError)) {
					t.Fatal(err)
				}
				both[i] = result{cmd.ProcessState.ExitCode(), out.String(), said.String(), ""}
				if asked != nil {
					both[i].asked = <-asked
				}
				if name == "ADD" && (threads == 1) != (program == quick) {
					t.Errorf("%s has %d threads: does the runtime run?", program, threads)
				}
			}
			if both[0] != both[1] {
				t.Errorf("it says\n %.2000v, where the other says\n %.2000v", both[0], both[1])
			}
		})
	}
}

// unreadable cannot be read from, unwritable not be written to.
func unreadable(t *testing.T) *os.File {
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func unwritable(t *testing.T) *os.File {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestBuildsAreQuick holds all that build what is installed on nodes against the name
// of the entry point.
func TestBuildsAreQuick(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"Makefile", "lab/image/images.go"} {
		b, err := os.ReadFile(filepath.Join("../..", file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), "-E "+plugin.Entry) {
			t.Errorf("%s does not build the plugin with -E %s", file, plugin.Entry)
		}
	}
}
