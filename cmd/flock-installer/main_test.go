package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"nothing":       {nil, `command is "": want install or uninstall`},
		"flags alone":   {[]string{"--bin-dir", "/x"}, `command is "": want install or uninstall`},
		"unknown":       {[]string{"remove"}, `command is "remove": want install or uninstall`},
		"unknown flag":  {[]string{"install", "--mtu", "1500"}, "flag provided but not defined: -mtu"},
		"more than one": {[]string{"install", "uninstall"}, `"uninstall": want nothing after the flags`},
		"help":          {[]string{"help"}, "help requested"},
		"--help":        {[]string{"--help"}, "help requested"},
		"its help":      {[]string{"uninstall", "--help"}, "help requested"},
		"no directory":  {[]string{"uninstall", "--bin-dir", "/nonexistent", "--conf-dir", "/"}, "--bin-dir /nonexistent: there is no such directory"},
	} {
		if err := run(c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in the text", name, err, c.want)
		}
	}
}

func TestProgram(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, ".", "flock.fritzlab.net/flock/cmd/flock")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program := filepath.Join(dir, "flock-installer")
	bin, conf := t.TempDir(), t.TempDir()
	flags := []string{"--bin-dir", bin, "--conf-dir", conf, "--state-dir", t.TempDir(), "--plugin", filepath.Join(dir, "flock")}
	there := func() bool {
		_, err := os.Stat(filepath.Join(conf, "01-flock.conflist"))
		return err == nil
	}
	for _, c := range []struct {
		args  []string
		exit  int
		says  string
		there bool // afterwards
	}{
		{[]string{"--help"}, 0, "puts flock's CNI plugin onto a node", false},
		{append([]string{"install"}, flags...), 0, "msg=installed", true},
		{append([]string{"install"}, flags...), 0, "already installed", true},
		{append([]string{"uninstall"}, flags...), 0, "msg=removed", false},
		{[]string{"install", "--bin-dir", "/nonexistent"}, 1, "flock-installer: --bin-dir /nonexistent", false},
	} {
		cmd := exec.Command(program, c.args...)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != c.exit || !strings.Contains(string(out), c.says) || there() != c.there {
			t.Errorf("%v: exit code %d, configuration there: %v, said %s", c.args, got, there(), out)
		}
	}
}

// TestOthersDirectories: with the one capability that the DaemonSet gives it, the
// installer writes to directories of another user. Without it, root may not.
func TestOthersDirectories(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, ".", "flock.fritzlab.net/flock/cmd/flock")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, c := range []struct {
		capabilities string
		works        bool
	}{{"-all", false}, {"-all,+dac_override", true}} {
		bin, conf := t.TempDir(), t.TempDir()
		for _, d := range []string{bin, conf} {
			if err := os.Chown(d, 12345, 12345); err != nil {
				t.Skip("only root can give directories away")
			}
		}
		cmd := exec.Command("setpriv", "--bounding-set", c.capabilities, "--inh-caps", "-all", "--no-new-privs", filepath.Join(dir, "flock-installer"), "install",
			"--bin-dir", bin, "--conf-dir", conf, "--state-dir", t.TempDir(), "--plugin", filepath.Join(dir, "flock"))
		out, err := cmd.CombinedOutput()
		if (err == nil) != c.works {
			t.Errorf("with %s: %v: %s", c.capabilities, err, out)
		}
	}
}
