package image

import (
	"archive/tar"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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
		want   string // in the output; empty: there is none
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

// The Dockerfile cannot be run where the lab runs: so it must say the same.
func TestDockerfileSaysTheSame(t *testing.T) {
	spec := flockSpec(t)
	all := string(must(os.ReadFile(filepath.Join(checkout, "Dockerfile"))))
	all = strings.ReplaceAll(all, "\\\n", " ")
	_, last, ok := strings.Cut(all, "FROM debian:12-slim\n")
	if !ok || strings.Contains(last, "\nFROM ") {
		t.Fatal("Dockerfile: the last stage must be FROM debian:12-slim, whose packages the lab takes too")
	}

	var want []string // as the spec has it
	for _, e := range spec.Entries {
		switch {
		case strings.HasPrefix(e.Path, "/usr/local/bin/"):
			want = append(want, "COPY --from=build /out/"+filepath.Base(e.Path)+" "+e.Path)
		case strings.HasPrefix(e.Source, checkout):
			want = append(want, "COPY "+must(filepath.Rel(checkout, e.Source))+" "+e.Path)
		}
	}
	want = append(want, `ENTRYPOINT ["`+strings.Join(spec.Entrypoint, `", "`)+`"]`)
	var got []string
	for line := range strings.Lines(last) {
		if word, _, _ := strings.Cut(line, " "); word != "RUN" && strings.TrimSpace(line) != "" {
			got = append(got, strings.TrimSpace(line))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("Dockerfile:\n%s\nlab/image:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	// What is not copied comes from Debian: the programs from the packages that
	// the Dockerfile installs, the rest from what those depend on.
	install := regexp.MustCompile(`apt-get install --yes --no-install-recommends ([a-z0-9 -]+?)\s+&&`).FindStringSubmatch(last)
	if install == nil {
		t.Fatal("Dockerfile: no apt-get install --yes --no-install-recommends PACKAGES")
	}
	files := strings.Fields(string(must(exec.Command("dpkg", append([]string{"-L"}, strings.Fields(install[1])...)...).Output())))
	for _, e := range spec.Entries {
		if e.Source == e.Path && strings.Contains(e.Path, "bin/") && !slices.Contains(files, e.Path) {
			t.Errorf("%s is in the lab's image and not in Debian's %s", e.Path, install[1])
		}
	}
	for _, p := range Programs {
		if !strings.Contains(all, " ./cmd/"+p+" ") && !strings.Contains(all, " ./cmd/"+p+"\n") {
			t.Errorf("Dockerfile: does not build ./cmd/%s", p)
		}
	}
}
