package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/cni/wire"
)

// rawAgent listens as an agent would, and does with each connection what the
// test says.
func rawAgent(t *testing.T, network string, with func(net.Conn)) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cni.sock")
	l, err := net.Listen(network, socket)
	if err != nil {
		t.Fatal(err)
	}
	nettest.Serve(t, l, with)
	return socket
}

// answering reads the request, and writes these bytes.
func answering(message string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, wire.MaxMessage))
		_, _ = conn.Write([]byte(message))
	}
}

func TestAgentsThatMisbehave(t *testing.T) {
	t.Parallel()
	netNS, _ := newNetNS(t)
	for name, c := range map[string]struct {
		network  string
		agent    func(net.Conn)
		add      Code // and the other commands but STATUS
		status   Code
		msg      string // a part of it
		mentions bool   // the socket
	}{
		"stops before it reads":   {"unixpacket", func(net.Conn) {}, CodeTryAgainLater, CodeNotAvailable, "flock's agent stopped during the call", true},
		"stops before it answers": {"unixpacket", answering(""), CodeTryAgainLater, CodeNotAvailable, "flock's agent stopped during the call", true},
		"speaks HTTP":             {"unixpacket", answering("HTTP/1.1 400 Bad Request\r\n\r\n"), 100, 100, "not a message of flock's CNI protocol", true},
		"answers too little":      {"unixpacket", answering("FLK\x01"), 100, 100, "message ends too early", true},
		"answers too much":        {"unixpacket", answering("FLK\x01\x00" + strings.Repeat("x", wire.MaxMessage)), 100, 100, "more than 196608 bytes", true},
		"is of a later release":   {"unixpacket", answering("FLK\x07whatever it means then"), CodeTryAgainLater, CodeNotAvailable, "agent speaks protocol 7 and its plugin 1: this node has files of two releases", false},
		"is of another kind":      {"unix", func(net.Conn) {}, CodeTryAgainLater, CodeNotAvailable, "protocol wrong type for socket", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			socket := rawAgent(t, c.network, c.agent)
			for command, code := range map[string]Code{"ADD": c.add, "DEL": c.add, "CHECK": c.add, "GC": c.add, "STATUS": c.status} {
				e := runToError(t, pluginDir, conf("1.0.0", socket, ""), addEnv(command, netNS)...)
				if e.Code != code || !strings.Contains(e.Msg, c.msg) || c.mentions != strings.Contains(e.Msg, socket) || e.CNIVersion != "1.0.0" {
					t.Errorf("%s: got %+v, want code %d and %q in its text", command, e, code, c.msg)
				}
			}
		})
	}
}

// An agent that was killed leaves a socket without a listener.
func TestAgentKilledBefore(t *testing.T) {
	t.Parallel()
	socket := staleSocket(t)
	e := runToError(t, pluginDir, conf("1.1.0", socket, ""), addEnv("DEL", "")...)
	if e.Code != CodeTryAgainLater || !strings.Contains(e.Msg, "flock's agent is not running on this node: "+socket+": connection refused") {
		t.Errorf("got %+v", e)
	}
}

// A hung agent must cost a bounded time, wherever it hangs. The plugin here
// waits one second instead of sixty.
func TestAgentHangs(t *testing.T) {
	t.Parallel()
	impatient := linkSelf(t, "flock")
	netNS, _ := newNetNS(t)
	for name, socket := range map[string]string{
		"after accepting":         rawAgent(t, "unixpacket", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }),
		"before accepting":        silentSocket(t, 10),
		"with many calls waiting": fullSocket(t),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			e := runToError(t, impatient, conf("1.1.0", socket, ""), addEnv("ADD", netNS)...)
			if took := time.Since(start); took < time.Second || took > 10*time.Second {
				t.Errorf("took %v", took)
			}
			if e.Code != CodeTryAgainLater || e.Msg != "flock's agent did not answer on "+socket+" within 1 s" {
				t.Errorf("got %+v", e)
			}
		})
	}
}

// silentSocket is one on which connections are never accepted.
func silentSocket(t *testing.T, backlog int) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "cni.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, backlog)); err != nil {
		t.Fatal(err)
	}
	return path
}

// fullSocket is a silent one with as many waiting as it takes.
func fullSocket(t *testing.T) (path string) {
	t.Helper()
	path = silentSocket(t, 0)
	for {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == unix.EAGAIN {
			return path
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func staleSocket(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "cni.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	return path
}

// The agent's side, with a plugin that misbehaves.
func TestPluginsThatMisbehave(t *testing.T) {
	t.Parallel()
	agent := &recorder{}
	socket := serve(t, agent)
	for name, c := range map[string]struct {
		request string
		code    Code
		msg     string
	}{
		"garbage":            {"GET / HTTP/1.1\r\n", CodeIO, "not a message of flock's CNI protocol"},
		"cut":                {"FLK\x01\x00", CodeIO, "message ends too early"},
		"of a later release": {"FLK\x02\x00", CodeTryAgainLater, "flock's plugin speaks protocol 2 and its agent 1"},
		"empty":              {string(wire.AppendRequest(nil, wire.Request{})), CodeDecode, "not a JSON object"},
	} {
		conn, err := net.Dial("unixpacket", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte(c.request)); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, wire.MaxMessage)
		n, err := conn.Read(answer)
		if err != nil {
			t.Fatal(err)
		}
		var e cniError
		r, err := wire.ParseResponse(answer[:n])
		if err := errors.Join(err, json.Unmarshal(r.Output, &e)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if r.Exit != 1 || e.Code != c.code || !strings.Contains(e.Msg, c.msg) || e.CNIVersion != "1.1.0" {
			t.Errorf("%s: got %+v", name, e)
		}
	}
	// One that says nothing does not keep the agent from stopping: Serve's
	// end is waited for when the test ends.
	conn, err := net.Dial("unixpacket", socket)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestFilesThatMisbehave(t *testing.T) {
	t.Parallel()
	agent := &recorder{}
	socket := serve(t, agent)
	netNS, ino := newNetNS(t)
	file, err := os.Open(netNS)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	request := func(env ...string) []byte {
		return wire.AppendRequest(nil, wire.Request{Env: env, Stdin: []byte(conf("1.1.0", socket, ""))})
	}
	for name, c := range map[string]struct {
		files   []int
		refused string
	}{
		"none":             {nil, "the plugin did not hand over the open file"},
		"one":              {[]int{int(file.Fd())}, ""},
		"more than wanted": {[]int{int(file.Fd()), 0, 1, 2}, ""}, // the kernel closes what there is no room for
	} {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		var control []byte
		if len(c.files) > 0 {
			control = unix.UnixRights(c.files...)
		}
		if _, _, err := conn.WriteMsgUnix(request(addEnv("ADD", netNS)...), control, nil); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, wire.MaxMessage)
		n, err := conn.Read(answer)
		if err != nil {
			t.Fatal(err)
		}
		r, err := wire.ParseResponse(answer[:n])
		if err != nil || !strings.Contains(string(r.Output), c.refused) || (r.Exit != 0) != (c.refused != "") {
			t.Errorf("%s: %v: %d %s", name, err, r.Exit, r.Output)
		}
		if _, gotIno := agent.last(); r.Exit == 0 && gotIno != ino {
			t.Errorf("%s: another namespace arrived", name)
		}
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	t.Run("for root alone", func(t *testing.T) {
		t.Parallel()
		socket := serve(t, &recorder{})
		info, err := os.Stat(socket)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", info.Mode(), err)
		}
	})
	t.Run("in place of a stale one", func(t *testing.T) {
		t.Parallel()
		socket := staleSocket(t)
		start(t, socket, &recorder{})
		if out, exit := run(t.Context(), t, pluginDir, conf("1.1.0", socket, ""), addEnv("DEL", "")...); exit != 0 {
			t.Error(out)
		}
	})
	t.Run("not beside another agent", func(t *testing.T) {
		t.Parallel()
		socket := serve(t, &recorder{})
		wantListenError(t, socket, "another flock-agent runs on this node")
		if out, exit := run(t.Context(), t, pluginDir, conf("1.1.0", socket, ""), addEnv("DEL", "")...); exit != 0 {
			t.Errorf("the first agent was harmed: %s", out)
		}
	})
	t.Run("not beside a listener without the lock", func(t *testing.T) {
		t.Parallel()
		wantListenError(t, rawAgent(t, "unixpacket", func(net.Conn) {}), "a process answers on")
	})
	t.Run("not in place of another program's socket", func(t *testing.T) {
		t.Parallel()
		wantListenError(t, rawAgent(t, "unix", func(net.Conn) {}), "protocol wrong type for socket")
	})
	t.Run("not in place of a file", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "cni.sock")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		wantListenError(t, path, "is not a socket")
	})
	t.Run("not without the directory", func(t *testing.T) {
		t.Parallel()
		wantListenError(t, filepath.Join(t.TempDir(), "run", "cni.sock"), "no such file or directory")
	})
	t.Run("again after it was given up", func(t *testing.T) {
		t.Parallel()
		socket := filepath.Join(t.TempDir(), "cni.sock")
		l, err := Listen(socket)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := start(t, socket, &recorder{})(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
		start(t, socket, &recorder{})
	})
}

func wantListenError(t *testing.T, socket, text string) {
	t.Helper()
	l, err := Listen(socket)
	if err == nil {
		l.Close()
	}
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want %q in the text", err, text)
	}
}

func TestStopLetsCallsFinish(t *testing.T) {
	t.Parallel()
	running, finish := make(chan struct{}), make(chan struct{})
	agent := &recorder{add: func(ctx context.Context, _ *Call) (*Result, error) {
		close(running)
		<-finish
		return sample(), ctx.Err()
	}}
	socket := filepath.Join(t.TempDir(), "cni.sock")
	stop := start(t, socket, agent)
	netNS, _ := newNetNS(t)
	added := make(chan string, 1)
	go func() {
		out, _ := run(context.Background(), t, pluginDir, conf("1.1.0", socket, ""), addEnv("ADD", netNS)...)
		added <- out
	}()
	<-running
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	// No more calls are taken, and the plugin knows soon.
	for exists(socket) {
		time.Sleep(time.Millisecond)
	}
	if e := runToError(t, pluginDir, conf("1.1.0", socket, ""), addEnv("DEL", "")...); e.Code != CodeTryAgainLater {
		t.Errorf("while it stops: %+v", e)
	}
	select {
	case err := <-stopped:
		t.Fatalf("Serve returned with a call running: %v", err)
	default:
	}
	close(finish)
	if out := <-added; !strings.Contains(out, "2001:db8:100:1::a/128") {
		t.Errorf("the running call got %q", out)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestStopEndsCallsAfterTheGracePeriod(t *testing.T) {
	t.Parallel()
	running := make(chan struct{})
	agent := &recorder{add: func(ctx context.Context, _ *Call) (*Result, error) {
		close(running)
		<-ctx.Done()
		return nil, TryAgainLater("%w", context.Cause(ctx))
	}}
	socket := filepath.Join(t.TempDir(), "cni.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	l.grace = 0
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- l.Serve(ctx, agent, discard) }()
	netNS, _ := newNetNS(t)
	go func() { <-running; cancel() }()
	if e := runToError(t, pluginDir, conf("1.1.0", socket, ""), addEnv("ADD", netNS)...); e.Code != CodeTryAgainLater || e.Msg != "flock's agent stops" {
		t.Errorf("got %+v", e)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// The agent is killed for real, with a call running in it.
func TestAgentKilledDuringACall(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "cni.sock")
	agent := exec.Command(filepath.Join(linkSelf(t, "hungagent"), "hungagent"), socket)
	said, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Process.Kill(); _ = agent.Wait() })
	line := make([]byte, 1)
	if _, err := said.Read(line); err != nil { // it listens
		t.Fatal(err)
	}
	go func() {
		_, _ = said.Read(line) // the call is there
		_ = agent.Process.Kill()
	}()
	netNS, _ := newNetNS(t)
	e := runToError(t, pluginDir, conf("1.1.0", socket, ""), addEnv("ADD", netNS)...)
	if e.Code != CodeTryAgainLater || !strings.Contains(e.Msg, "flock's agent stopped during the call") {
		t.Errorf("got %+v", e)
	}
	_ = agent.Wait()
	start(t, socket, &recorder{})
	if out, exit := run(t.Context(), t, pluginDir, conf("1.1.0", socket, ""), addEnv("DEL", netNS)...); exit != 0 {
		t.Errorf("with the next agent: %s", out)
	}
}

// However many calls wait, the next one is served, and Serve returns after them.
func TestCallsThatWaitHoldUpNoOther(t *testing.T) {
	t.Parallel()
	const waiting = 20
	running, finish := make(chan struct{}, waiting), make(chan struct{})
	agent := &recorder{do: func(context.Context, *Call) error {
		running <- struct{}{}
		<-finish
		return nil
	}}
	socket := filepath.Join(t.TempDir(), "cni.sock")
	stop := start(t, socket, agent)
	for range 2 {
		var done sync.WaitGroup
		for i := range waiting {
			done.Go(func() {
				env := append(addEnv("DEL", ""), fmt.Sprintf("CNI_CONTAINERID=c%d", i))
				if out, exit := run(context.Background(), t, pluginDir, conf("1.1.0", socket, ""), env...); exit != 0 {
					t.Errorf("DEL %d: %s", i, out)
				}
			})
		}
		for range waiting {
			<-running
		}
		if out, exit := run(context.Background(), t, pluginDir, conf("1.1.0", socket, ""), "CNI_COMMAND=STATUS"); exit != 0 {
			t.Errorf("STATUS: %s", out)
		}
		for range waiting {
			finish <- struct{}{}
		}
		done.Wait()
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
