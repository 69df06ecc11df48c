//go:build amd64 || arm64

package plugin

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// needsNoRuntime are the functions outside of flock that quick may call. They work
// before the runtime has started.
var needsNoRuntime = []string{
	"syscall.RawSyscall", "syscall.RawSyscall6", "internal/runtime/syscall/linux.Syscall6", "runtime.memmove",
	"runtime.memequal", "runtime.memequal0", "internal/bytealg.Equal", "memeqbody", "runtime.memclrNoHeapPointers",
	// Named in the code, and never called: a stack that is too small, an index or length
	// out of range, a buffer that is too small, a write barrier of a garbage collection.
	"runtime.morestack_noctxt", "runtime.panicBounds", "runtime.panicunsafestringlen", "runtime.panicunsafeslicelen", "runtime.growslice", "runtime.gcWriteBarrier1", "runtime.gcWriteBarrier2",
	// Where quick has given up.
	"_rt0_amd64_linux", "_rt0_arm64_linux",
}

// TestQuickNeedsNoRuntime follows the calls in the machine code of the plugin from its
// entry point. A function that allocates, or enters a system call as goroutines do, would
// crash it.
func TestQuickNeedsNoRuntime(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "flock")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-E "+Entry, "-o", program, "flock.fritzlab.net/flock/cmd/flock")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	seen := map[string]bool{}
	for follow := []string{Entry}; len(follow) > 0; {
		var names []string
		for _, name := range follow {
			seen[name] = true
			names = append(names, regexp.QuoteMeta(name))
		}
		out, err := exec.Command("go", "tool", "objdump", "-s", "^("+strings.Join(names, "|")+`)(\.abi0)?$`, program).Output()
		if err != nil {
			t.Fatal(err)
		}
		follow = nil
		for line := range strings.Lines(string(out)) {
			// file:line, address, bytes, and the instruction with its operand.
			f := strings.Fields(line)
			if len(f) != 5 || !slices.Contains([]string{"CALL", "JMP", "BL", "B"}, f[3]) {
				continue
			}
			name, function := strings.CutSuffix(f[4], "(SB)")
			name = strings.TrimSuffix(name, ".abi0")
			switch {
			case strings.HasPrefix(f[4], "0x") || strings.HasSuffix(f[4], "(PC)"): // within the function
			case !function:
				t.Errorf("%s: a call of what cannot be followed: %s", f[0], strings.Join(f[3:], " "))
			case seen[name]:
			case strings.HasPrefix(name, "flock.fritzlab.net/"):
				if !slices.Contains(follow, name) {
					follow = append(follow, name)
				}
			case !slices.Contains(needsNoRuntime, name):
				t.Errorf("%s: calls %s, which may need the runtime", f[0], name)
			}
		}
	}
	if want := Entry[:strings.LastIndex(Entry, ".")] + ".quick"; !seen[want] {
		t.Errorf("%s was not followed; these were: %v", want, seen)
	}
}
