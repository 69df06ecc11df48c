//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const inside = "ECHO_TEST_NETNS"

// TestMain runs the tests in a network namespace of their own: nothing listens
// in the machine's.
func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		self := exec.Command(os.Args[0], os.Args[1:]...)
		self.Env = append(os.Environ(), inside+"=1")
		self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
		self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if err := self.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "tests in a new network namespace:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "ip link set lo up: %v: %s\n", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// running is a server started by a test.
type running struct {
	port    int
	unready string
	stop    context.CancelFunc
	ended   chan error
	log     *lines
}

func start(t *testing.T, linger time.Duration) *running {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r := &running{unready: filepath.Join(t.TempDir(), "state", "unready"), stop: stop, ended: make(chan error, 1), log: &lines{}}
	addr := make(chan net.Addr, 1)
	s := &server{
		pod: "web-0", node: "node1", unready: r.unready, linger: linger,
		log: newLog(r.log), started: func(a net.Addr) { addr <- a },
	}
	go func() { r.ended <- s.serve(ctx, ":0") }()
	select {
	case a := <-addr:
		r.port = a.(*net.TCPAddr).Port
	case err := <-r.ended:
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return r
}

func (r *running) url(path string) string { return fmt.Sprintf("http://[::1]:%d%s", r.port, path) }

// lines collects what is logged, and may be read meanwhile.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func decodeLines[T any](t *testing.T, l *lines) (all []T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for dec := json.NewDecoder(bytes.NewReader(l.buf.Bytes())); dec.More(); {
		var v T
		if err := dec.Decode(&v); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

func status(t *testing.T, method, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(body))
}

func TestSaysWhoAsked(t *testing.T) {
	r := start(t, 0)
	for _, tc := range []struct{ to, from string }{
		{"[::1]", "::1"},
		{"127.0.0.1", "127.0.0.1"},
		{"127.1.2.3", "127.0.0.1"},
	} {
		out := &lines{}
		if err := run(t.Context(), []string{"get", fmt.Sprintf("http://%s:%d/", tc.to, r.port)}, out); err != nil {
			t.Fatal(err)
		}
		got := decodeLines[struct {
			result
			Body answer `json:"body"`
		}](t, out)
		if len(got) != 1 || !got[0].OK || got[0].Status != 200 || got[0].Monotonic == 0 {
			t.Fatalf("%s: printed %+v", tc.to, got)
		}
		b := got[0].Body
		if b.Pod != "web-0" || b.Node != "node1" || b.Client.String() != tc.from || b.ClientPort == 0 ||
			b.Local.String() != strings.Trim(tc.to, "[]") || int(b.LocalPort) != r.port {
			t.Errorf("asked %s: answered %+v", tc.to, b)
		}
	}
}

func TestReadiness(t *testing.T) {
	r := start(t, 0)
	want := func(code int, text string) {
		t.Helper()
		if got, body := status(t, "GET", r.url("/readyz")); got != code || !strings.Contains(body, text) {
			t.Errorf("/readyz: %d %q, want %d %q", got, body, code, text)
		}
	}
	want(200, "ready")
	if code, _ := status(t, "POST", r.url("/ready?ok=false")); code != 204 {
		t.Errorf("POST /ready?ok=false: %d", code)
	}
	want(503, "POST /ready")
	if code, body := status(t, "POST", r.url("/ready?ok=maybe")); code != 400 || body != `ok="maybe": want true or false` {
		t.Errorf("POST /ready?ok=maybe: %d %q", code, body)
	}
	want(503, "POST /ready")
	status(t, "POST", r.url("/ready?ok=true"))
	want(200, "ready")

	ready := func(verdict string) error {
		return run(t.Context(), []string{"ready", "-unready-file", r.unready, verdict}, io.Discard)
	}
	for _, verdict := range []string{"true", "false", "false"} {
		if err := ready(verdict); err != nil {
			t.Fatalf("ready %s: %v", verdict, err)
		}
	}
	want(503, r.unready+" exists")
	status(t, "POST", r.url("/ready?ok=true"))
	want(503, r.unready+" exists")
	if err := ready("true"); err != nil {
		t.Fatal(err)
	}
	want(200, "ready")
	if err := ready("perhaps"); err == nil || !strings.Contains(err.Error(), "want true or false") {
		t.Errorf("ready perhaps: %v", err)
	}
}

// At its end the server says it is not ready, lingers, and lets go of streams.
func TestEnd(t *testing.T) {
	before := monotonic()
	r := start(t, 200*time.Millisecond)
	resp, err := http.Get(r.url("/tick?interval=1ms"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stream := bufio.NewScanner(resp.Body)
	for i := range 3 {
		var got tick
		if !stream.Scan() || json.Unmarshal(stream.Bytes(), &got) != nil || got.Tick != i || got.Pod != "web-0" {
			t.Fatalf("line %d of /tick: %q", i, stream.Text())
		}
	}

	r.stop()
	for code := 200; code != 503; {
		code, _ = status(t, "GET", r.url("/readyz"))
	}
	for stream.Scan() {
	}
	if err := stream.Err(); err != nil {
		t.Errorf("the stream was cut off: %v", err)
	}
	if err := <-r.ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	var names []string
	last := before
	for _, e := range decodeLines[event](t, r.log) {
		names = append(names, e.Event)
		if e.Monotonic < last || time.Since(e.Wall) > time.Minute {
			t.Errorf("event %+v: before the one before it, or long ago", e)
		}
		last = e.Monotonic
	}
	if got := strings.Join(names, " "); got != "listening terminating closing ended" {
		t.Errorf("events: %s", got)
	}
	if conn, err := net.Dial("tcp", fmt.Sprintf("[::1]:%d", r.port)); err == nil {
		conn.Close()
		t.Error("still listening at its end")
	}
}

func TestGet(t *testing.T) {
	r := start(t, 0)
	status(t, "POST", r.url("/ready?ok=false"))
	for _, tc := range []struct {
		name  string
		args  []string
		error string
		lines []string // "status ok error" of each
	}{
		{"in rounds", []string{"-n", "2", "-interval", "1ms", r.url("/"), r.url("/readyz")}, "2 of 4 requests failed",
			[]string{"200 true ", "503 false ", "200 true ", "503 false "}},
		{"stream", []string{"-follow", "-timeout", "50ms", r.url("/tick?interval=1h")}, "1 of 1 requests failed",
			[]string{"200 true ", "200 false context deadline exceeded"}},
		{"no server", []string{"http://127.0.0.1:1/"}, "1 of 1 requests failed",
			[]string{"0 false connection refused"}},
		{"bad interval", []string{r.url("/tick?interval=1ns")}, "1 of 1 requests failed",
			[]string{"400 false "}},
		{"bad URL", []string{"http://::1/"}, "1 of 1 requests failed", []string{`0 false parse "http://::1/"`}},
		{"no URL", nil, "name at least one URL", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out := &lines{}
			err := run(t.Context(), append([]string{"get"}, tc.args...), out)
			if (err == nil) != (tc.error == "") || err != nil && !strings.Contains(err.Error(), tc.error) {
				t.Errorf("error %v, want %q", err, tc.error)
			}
			got := decodeLines[result](t, out)
			if len(got) != len(tc.lines) {
				t.Fatalf("printed %d lines, want %d: %s", len(got), len(tc.lines), &out.buf)
			}
			for i, r := range got {
				want := strings.SplitN(tc.lines[i], " ", 3)
				if fmt.Sprint(r.Status, " ", r.OK) != want[0]+" "+want[1] || !strings.Contains(r.Error, want[2]) {
					t.Errorf("line %d: %+v, want %s", i, r, tc.lines[i])
				}
			}
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		out := &lines{}
		ended := make(chan error, 1)
		go func() {
			ended <- run(ctx, []string{"get", "-timeout", "0", "-follow", r.url("/tick?interval=1h")}, out)
		}()
		for len(decodeLines[result](t, out)) == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if got := decodeLines[result](t, out); len(got) != 1 || !got[0].OK {
			t.Errorf("printed %+v, want nothing of the interrupt", got)
		}
	})
	if err := run(t.Context(), []string{"sing"}, io.Discard); err == nil || !strings.Contains(err.Error(), `command "sing"`) {
		t.Errorf("unknown command: %v", err)
	}
}

// A datagram comes back from the address that it was sent to, of several that the
// host has.
func TestDatagrams(t *testing.T) {
	r := start(t, 0)
	for _, to := range []string{"::1", "2001:db8::53", "127.0.0.1", "203.0.113.53"} {
		if addr := netip.MustParseAddr(to); !addr.IsLoopback() {
			out, err := exec.Command("ip", "address", "replace", netip.PrefixFrom(addr, addr.BitLen()).String(), "dev", "lo", "nodad").CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		conn, long := answered(t, net.JoinHostPort(to, fmt.Sprint(r.port))), make([]byte, longestDatagram+1)
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		for _, datagram := range [][]byte{long, []byte("one"), long[:longestDatagram], {}, []byte("two")} {
			if _, err := conn.Write(datagram); err != nil {
				t.Fatal(err)
			}
			if len(datagram) > longestDatagram {
				continue // not answered, so the next one is
			}
			if n, err := conn.Read(long); err != nil || n != len(datagram) {
				t.Errorf("to %s: %d bytes sent, %d came back: %v", to, len(datagram), n, err)
			}
		}
	}
	r.stop()
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
}

// answered returns a connection after an answer to its first datagram, because the
// kernel needs time for a new address. Datagrams from other sources are not received.
func answered(t *testing.T, to string) net.Conn {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; {
		conn, err := net.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(50 * time.Millisecond))
		_, err = conn.Write([]byte("first"))
		if err == nil {
			_, err = conn.Read(make([]byte, 10))
		}
		if err == nil {
			return conn
		}
		conn.Close()
		if time.Now().After(end) {
			t.Fatalf("%s does not answer: %v", to, err)
		}
	}
}

// slow answers each request a second later.
type slow struct{ began func() }

func (s slow) RoundTrip(r *http.Request) (*http.Response, error) {
	s.began()
	select {
	case <-time.After(time.Second):
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// TestAtRate: requests begin when they are due, however slow the answers are.
func TestAtRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var at []time.Duration
		began := time.Now()
		c := client{count: 100, rate: 50, log: func(any) {}}
		err := c.getAtRate(t.Context(), slow{func() {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(began))
		}}, []string{"http://192.0.2.1/"})
		if err != nil {
			t.Fatal(err)
		}
		for i, is := range at {
			if want := time.Duration(i) * 20 * time.Millisecond; is != want {
				t.Errorf("request %d began after %s, want %s", i, is, want)
			}
		}
		if took, want := time.Since(began), 99*20*time.Millisecond+time.Second; len(at) != 100 || took != want {
			t.Errorf("%d requests took %s, want 100 in %s", len(at), took, want)
		}
	})
}
