package image

import (
	"archive/tar"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const checkout = "../.."

// flockSpec is the image with stand-ins for flock's programs.
func flockSpec(t *testing.T) Spec {
	t.Helper()
	bin := t.TempDir()
	for _, p := range Programs {
		if err := os.WriteFile(filepath.Join(bin, p), []byte(p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return must(Flock(checkout, bin))
}

// unpackFlock lays flock's image out in a directory.
func unpackFlock(t *testing.T) (root string, spec Spec) {
	t.Helper()
	spec = flockSpec(t)
	file := filepath.Join(t.TempDir(), "flock.tar")
	if err := Write(file, spec); err != nil {
		t.Fatal(err)
	}
	root = t.TempDir()
	u := unpack(t, file)
	for _, h := range u.layer {
		to := filepath.Join(root, h.Name)
		var err error
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(to, 0o755)
		case tar.TypeReg:
			err = os.WriteFile(to, u.files[h.Name], 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root, spec
}

// The programs of Debian must start where there is nothing but their image, and
// BIRD accept what it starts from: alone, and with what the agent leaves.
func TestFlockImageRuns(t *testing.T) {
	root, spec := unpackFlock(t)
	const agents = "run/flock/bird/bird.conf"
	if err := os.MkdirAll(filepath.Dir(filepath.Join(root, agents)), 0o755); err != nil {
		t.Fatal(err)
	}
	check := []string{"/usr/sbin/bird", "-p", "-c", "/etc/flock/bird.conf"}
	for _, tc := range []struct {
		name   string
		agents string // bird.conf
		args   []string
		want   string // in the output; empty if there is none
	}{
		{"bird", "", []string{"/usr/sbin/bird", "--version"}, "BIRD version 2."},
		{"birdc", "", []string{"/usr/sbin/birdc", "-s", "/none", "show", "status"}, "Unable to connect to server control socket (/none)"},
		{"unconfigured", "", check, ""},
		{"configured", "router id 192.0.2.11;\nprotocol device {}\n", check, ""},
		{"configured wrongly", "router id 192.0.2.11;\nnonsense\n", check, "bird.conf:2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.agents != "" {
				if err := os.WriteFile(filepath.Join(root, agents), []byte(tc.agents), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(tc.args[0], tc.args[1:]...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
			cmd.Dir, cmd.Env = "/", spec.Env
			out, err := cmd.CombinedOutput()
			if !strings.Contains(string(out), tc.want) || tc.want == "" && (err != nil || len(out) > 0) {
				t.Errorf("%v in the image: %v: %s", tc.args, err, out)
			}
		})
	}
}
