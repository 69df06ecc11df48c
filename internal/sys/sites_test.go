package sys

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What the agent's packages may call of os, syscall, unix, net and os/exec beside this package,
// and why no test needs to make it fail, or be the last thing that the process does.
var uncovered = map[string][]string{
	"they ask the kernel nothing": {
		"net.Addr.String", "net.HardwareAddr.String", "net.IPMask.Size", "net.ParseMAC", "net.SplitHostPort",
		"os.File.Fd", "os.File.Name", "os.File.SyscallConn", "os.NewFile", "os.NewSyscallError", "os.ProcessState.Exited",
		"os/exec.CommandContext", "syscall.Errno.Error", "syscall.RawConn.Control",
		"unix.ByteSliceToString", "unix.CmsgSpace", "unix.NsecToTimespec", "unix.ParseSocketControlMessage", "unix.ParseUnixRights", "unix.Timeval.Nano",
	},
	"nothing follows from their failure": {
		"net.Conn.Close", "net.UnixListener.Close", "net.conn.Close", "os.File.Close", "unix.Close",
		"net.Conn.SetDeadline", "net.conn.SetReadDeadline", "os.File.SetReadDeadline", "unix.Nanosleep", "unix.Getrusage",
	},
	"of what the call before has just opened; or the agent ends at its start, and is started again": {
		"net.Listen", "net.ListenConfig.Listen", "os.File.Stat", "unix.Fchmod", "unix.Getsockname", "unix.IoctlRetInt", "unix.Unshare",
	},
	"the other end makes them fail: the plugin, BIRD, the container runtime, the kubelet": {
		"net.DialUnix", "net.Dialer.DialContext", "net.UnixConn.ReadMsgUnix", "net.UnixListener.AcceptUnix", "net.conn.Read", "net.conn.Write",
	},
	"counted beside the call, by Recvfrom and Ask": {
		"os.File.Write", "syscall.RawConn.Read",
	},
}

// These packages hold no state of flock's. Tests of pkg/support have the kernel refuse each of
// its questions.
var exempt = []string{"cmd/flock-agent", "internal/sys", "internal/timeslice", "internal/version", "pkg/support"}

// TestCallSites type-checks all that the agent is made of. A function or method of the packages
// that reach the kernel is called through this package, or is named above.
func TestCallSites(t *testing.T) {
	t.Parallel()
	const module = "flock.fritzlab.net/flock/"
	cmd := exec.Command("go", "list", "-deps", "-export", "-json=ImportPath,Dir,GoFiles,Export", module+"cmd/flock-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	type listed struct {
		ImportPath, Dir, Export string
		GoFiles                 []string
	}
	var ours []listed
	exports := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		exports[p.ImportPath] = p.Export
		if name, ok := strings.CutPrefix(p.ImportPath, module); ok && !slices.Contains(exempt, name) {
			ours = append(ours, p)
		}
	}
	if len(ours) < 50 {
		t.Fatalf("the agent has %d packages", len(ours))
	}
	allowed := map[string]bool{} // to whether it is used
	for _, names := range uncovered {
		for _, name := range names {
			allowed[name] = false
		}
	}
	set := token.NewFileSet()
	config := types.Config{Importer: importer.ForCompiler(set, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })}
	for _, p := range ours {
		var files []*ast.File
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
		info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
		if _, err := config.Check(p.ImportPath, set, files, info); err != nil {
			t.Fatal(err)
		}
		for at, used := range info.Uses {
			f, ok := used.(*types.Func)
			if !ok || f.Pkg() == nil || !slices.Contains([]string{"os", "os/exec", "syscall", "net", "golang.org/x/sys/unix"}, f.Pkg().Path()) {
				continue
			}
			name := strings.NewReplacer("golang.org/x/sys/", "", "*", "", "(", "", ")", "").Replace(f.FullName())
			if _, ok := allowed[name]; !ok {
				t.Errorf("%v: %s: call package sys, so that tests can make it fail, or say in this test why not", set.Position(at.Pos()), name)
				continue
			}
			allowed[name] = true
		}
	}
	for name, used := range allowed {
		if !used {
			t.Errorf("%s is excepted, and nobody calls it", name)
		}
	}
}
