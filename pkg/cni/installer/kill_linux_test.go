package installer

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// runToBeKilled is the test binary as an installer that is killed at its nth
// step.
func runToBeKilled(nth string) {
	n, err := strconv.Atoi(nth)
	if err != nil {
		panic(err)
	}
	i := &Installer{BinDir: os.Args[2], ConfDir: os.Args[3], StateDir: os.Args[4], Plugin: os.Args[5], Log: slog.New(slog.DiscardHandler)}
	i.reached = func() {
		if n--; n == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	run := i.Install
	if os.Args[1] == "uninstall" {
		run = i.Uninstall
	}
	if err := run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// killedAt runs a command in a process that is killed at its nth step (at none if
// that is negative), and says whether it came that far.
func (n node) killedAt(t *testing.T, command string, nth int) bool {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", command, n.BinDir, n.ConfDir, n.StateDir, n.Plugin)
	cmd.Env = append(os.Environ(), "INSTALLER_TEST_KILL_AT="+strconv.Itoa(nth))
	out, err := cmd.CombinedOutput()
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() && err != nil {
		t.Errorf("%v: %s", err, out)
	}
	return status.Signaled()
}

// Killed between any two changes, an installer leaves each file whole, no
// configuration without its plugin, and a node that the next run puts right.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	old := map[string]string{PluginName: read(t, older), ConflistName: olderConflist()}
	fresh := map[string]string{PluginName: read(t, newer), ConflistName: string(conflist())}
	for _, c := range []struct {
		name, command string
		before, after map[string]string
		atLeast       int // steps at which it can be killed
	}{
		{"install", "install", nil, fresh, 15},
		{"upgrade", "install", old, fresh, 15},
		{"uninstall", "uninstall", old, nil, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for nth := 1; ; nth++ {
				n := newNode(t)
				for name, dir := range map[string]string{PluginName: n.BinDir, ConflistName: n.ConfDir} {
					if content, ok := c.before[name]; ok {
						write(t, filepath.Join(dir, name), content)
					}
				}
				killed := n.killedAt(t, c.command, nth)
				found := n.files(t)
				for name, content := range found {
					if name[0] != '.' && content != c.before[name] && content != c.after[name] {
						t.Errorf("killed at step %d: %s is neither as before nor as after", nth, name)
					}
					if strings.HasPrefix(name, ".") && filepath.Ext(name) != ".installing" {
						t.Errorf("killed at step %d: leaves %s", nth, name)
					}
				}
				for name := range c.before {
					if _, there := found[name]; !there && c.after[name] != "" {
						t.Errorf("killed at step %d: %s is gone", nth, name)
					}
				}
				if _, there := found[ConflistName]; there && found[PluginName] == "" {
					t.Errorf("killed at step %d: the configuration is there without its plugin", nth)
				}

				again := n.Install
				if c.command == "uninstall" {
					again = n.Uninstall
				}
				if err := again(); err != nil {
					t.Errorf("after a kill at step %d: %v", nth, err)
				}
				if got := n.files(t); len(got) != len(c.after) || got[PluginName] != c.after[PluginName] || got[ConflistName] != c.after[ConflistName] {
					t.Errorf("after a kill at step %d and another run there are %d files, not all as they should be", nth, len(got))
				}
				if !killed {
					if nth <= c.atLeast {
						t.Errorf("could be killed at %d steps only, want %d", nth-1, c.atLeast)
					}
					return
				}
			}
		})
	}
}
