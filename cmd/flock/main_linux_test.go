package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/cni/plugin"
)

// The plugin's start-up is most of what an ADD costs, and what a Go program
// links decides it. Each of these was left out on purpose.
func TestPluginLinksLittle(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	unwanted := map[string]bool{
		"os": true, "fmt": true, "net": true, "flag": true, "reflect": true, "time": true,
		"strings": true, "strconv": true, "encoding/json": true, "context": true, "log/slog": true,
		"flock.fritzlab.net/flock/pkg/cni": true,
	}
	for dep := range strings.FieldsSeq(string(out)) {
		if unwanted[dep] {
			t.Errorf("the plugin links %s", dep)
		}
		if first, _, _ := strings.Cut(dep, "/"); strings.Contains(first, ".") && first != "flock.fritzlab.net" {
			t.Errorf("the plugin links %s, of another module", dep)
		}
	}
}

func TestPluginIsSmallAndStatic(t *testing.T) {
	t.Parallel()
	path := build(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(1536 << 10); info.Size() > limit {
		t.Errorf("the plugin has %d bytes, more than %d", info.Size(), limit)
	}
	modules, err := exec.Command("go", "version", "-m", path).Output()
	if err != nil || strings.Contains(string(modules), "\tdep\t") {
		t.Errorf("modules of the plugin: %v\n%s", err, modules)
	}
}

// Someone who starts it by hand learns what it is; a runtime gets its error.
func TestByHand(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(build(t))
	cmd.Env = []string{"PATH=/"}
	var said, printed strings.Builder
	cmd.Stderr, cmd.Stdout = &said, &printed
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("ended with %v", err)
	}
	if !strings.Contains(said.String(), "It is not started by hand") {
		t.Errorf("said %q", said.String())
	}
	want := `{"cniVersion":"1.1.0","code":4,"msg":"CNI_COMMAND is not set: want ADD, DEL, CHECK, GC, STATUS or VERSION"}` + "\n"
	if printed.String() != want {
		t.Errorf("printed %q", printed.String())
	}
}

// On a terminal the error, which is for machines, stays away.
func TestOnATerminal(t *testing.T) {
	t.Parallel()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ptmx.Close()
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	cmd := exec.Command(build(t))
	cmd.Env = []string{"PATH=/"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	shown := make([]byte, 8192)
	k, err := ptmx.Read(shown)
	if err != nil || !strings.Contains(string(shown[:k]), "It is not started by hand") || strings.Contains(string(shown[:k]), "code") {
		t.Errorf("showed %q, %v", shown[:k], err)
	}
}

// build builds the plugin as it is shipped.
func build(t *testing.T) (path string) {
	t.Helper()
	return buildWith(t, "-s -w -E "+plugin.Entry)
}

func buildWith(t *testing.T, ldflags string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "flock")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", ldflags, "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}
