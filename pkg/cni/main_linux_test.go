package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/cni/plugin"
)

// pluginDir holds the plugin as it is shipped, under the name flock.
var pluginDir string

// The first thread stays the main goroutine's, so that no test's namespace takes it:
// /proc/PID/ns/net, the test's idea of the node's own namespace, is that thread's.
func init() { runtime.LockOSThread() }

// TestMain builds the plugin once. The test binary itself also serves as the
// programs below, by the name it is called with.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "flock": // the plugin, but it waits a second only
		syscall.Exit(plugin.Plugin{Socket: plugin.DefaultSocket, TimeoutSeconds: 1}.Run())
	case "hungagent": // an agent that never answers
		os.Exit(hungAgent(os.Args[1]))
	case "chained": // a plugin that stands behind flock in a list
		os.Exit(chained())
	}
	os.Exit(func() int {
		var err error
		if pluginDir, err = os.MkdirTemp("", "flock-cni-"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(pluginDir)
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -E "+plugin.Entry, "-o", pluginDir, "flock.fritzlab.net/flock/cmd/flock")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%v: %s", err, out))
		}
		return m.Run()
	}())
}

var discard = slog.New(slog.DiscardHandler)

// hungAgent says by a byte each that it listens and that a call has begun.
func hungAgent(socket string) int {
	l, err := Listen(socket)
	if err != nil {
		return 1
	}
	fmt.Print("l")
	_ = l.Serve(context.Background(), &recorder{add: func(context.Context, *Call) (*Result, error) {
		fmt.Print("c")
		select {}
	}}, discard)
	return 0
}

// chained passes on what it was given, with an interface of its own.
func chained() int {
	var config struct {
		PrevResult map[string]any `json:"prevResult"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&config); err != nil {
		return 1
	}
	switch os.Getenv("CNI_COMMAND") {
	case "ADD", "CHECK":
		interfaces, ok := config.PrevResult["interfaces"].([]any)
		if !ok {
			return 1
		}
		config.PrevResult["interfaces"] = append(interfaces, map[string]any{"name": "ifb0"})
		if os.Getenv("CNI_COMMAND") == "ADD" {
			_ = json.NewEncoder(os.Stdout).Encode(config.PrevResult)
		}
	}
	return 0
}

// linkSelf makes the test binary run under another name, and returns where.
func linkSelf(t *testing.T, name string) (dir string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// recorder is a Backend that remembers what it was called with. The functions,
// where set, decide what it does.
type recorder struct {
	mu    sync.Mutex
	calls []*Call
	valid []AttachmentID
	inos  []uint64 // of the network namespaces handed over, 0 for none

	add    func(context.Context, *Call) (*Result, error)
	do     func(context.Context, *Call) error // DEL, CHECK and GC
	status func(context.Context) error
}

func (r *recorder) record(c *Call) {
	var st unix.Stat_t
	if c.NetNS != nil {
		if err := unix.Fstat(int(c.NetNS.Fd()), &st); err != nil {
			panic(err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, c)
	r.inos = append(r.inos, st.Ino)
}

func (r *recorder) last() (*Call, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.calls) == 0 {
		return nil, 0
	}
	return r.calls[len(r.calls)-1], r.inos[len(r.inos)-1]
}

func (r *recorder) Add(ctx context.Context, c *Call) (*Result, error) {
	r.record(c)
	if r.add != nil {
		return r.add(ctx, c)
	}
	return sample(), nil
}

func (r *recorder) Del(ctx context.Context, c *Call) error   { return r.other(ctx, c) }
func (r *recorder) Check(ctx context.Context, c *Call) error { return r.other(ctx, c) }

func (r *recorder) GC(ctx context.Context, c *Call, valid []AttachmentID) error {
	r.mu.Lock()
	r.valid = slices.Clone(valid)
	r.mu.Unlock()
	return r.other(ctx, c)
}

func (r *recorder) other(ctx context.Context, c *Call) error {
	r.record(c)
	if r.do != nil {
		return r.do(ctx, c)
	}
	return nil
}

func (r *recorder) Status(ctx context.Context) error {
	if r.status != nil {
		return r.status(ctx)
	}
	return nil
}

// serve runs an agent's end with b, and returns its socket.
func serve(t testing.TB, b Backend) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cni.sock")
	start(t, socket, b)
	return socket
}

// start serves b on socket until the test's end or until stop is called, which
// returns what Serve returned.
func start(t testing.TB, socket string, b Backend) (stop func() error) {
	t.Helper()
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- l.Serve(ctx, b, discard) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-served
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return stop
}

// newNetNS makes a network namespace that lives as long as the test, and returns
// a path that leads to it and its inode.
func newNetNS(t testing.TB) (path string, ino uint64) {
	t.Helper()
	ns := nettest.New(t)
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.File().Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return ns.Path(), st.Ino
}

// cniError is what a runtime reads of a failed plugin's output.
type cniError struct {
	CNIVersion string `json:"cniVersion"`
	Code       Code   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details"`
}

// run starts the plugin that is in dir as a runtime does, without libcni.
func run(ctx context.Context, t testing.TB, dir, stdin string, env ...string) (stdout string, exit int) {
	t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "flock"))
	cmd.Env = env
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// runToError is run for a call that must fail.
func runToError(t testing.TB, dir, stdin string, env ...string) cniError {
	t.Helper()
	out, exit := run(t.Context(), t, dir, stdin, env...)
	if exit != 1 {
		t.Errorf("exit code %d, want 1; printed %q", exit, out)
	}
	var e cniError
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		t.Fatalf("printed %q: %v", out, err)
	}
	if e.Code == 0 || e.Msg == "" || e.CNIVersion == "" {
		t.Errorf("not an error as the spec wants it: %q", out)
	}
	return e
}

// conf is a network configuration that leads to socket.
func conf(cniVersion, socket, more string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"flock","type":"flock","agentSocket":%q%s}`, cniVersion, socket, more)
}

// addEnv is what a runtime sets for ADD and the like.
func addEnv(command, netNS string) []string {
	return []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=c0ffee", "CNI_IFNAME=eth0", "CNI_NETNS=" + netNS,
		"CNI_PATH=/opt/cni/bin", "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1",
	}
}
