//go:build release

package release

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSameBytesTwice makes a release in two places, from two copies of the sources, and
// compares every file. $ARCH has the architectures, separated by commas; amd64 if empty.
func TestSameBytesTwice(t *testing.T) {
	archs := strings.FieldsFunc(os.Getenv("ARCH"), func(r rune) bool { return r == ',' })
	if len(archs) == 0 {
		archs = []string{"amd64"}
	}
	cache := debs(t, archs)
	var outs, copies []string
	for _, place := range []string{"a", "another/and-longer"} {
		dir := filepath.Join(t.TempDir(), place)
		copySources(t, dir)
		s := testSource()
		s.Checkout = dir
		o := Options{Source: s, Out: filepath.Join(dir, "out"), Cache: cache, Architectures: archs, DownloadURL: "https://example.org/v1.2.3", Image: "registry.example/flock", Progress: os.Stderr}
		if _, err := Make(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		outs, copies = append(outs, o.Out), append(copies, dir)
	}
	differ, err := Changed(outs[0], outs[1])
	if err != nil {
		t.Fatal(err)
	}
	if len(differ) > 0 {
		t.Fatalf("these files have other bytes the second time: %q", differ)
	}
	check := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = outs[0]
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}

	krewInstalls(t, outs[0])
	index, _, cleanup, err := readArchive(filepath.Join(outs[0], "flock_v1.2.3_image.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer cleanup()
	for i, m := range must(index.IndexManifest()).Manifests {
		if i == 0 {
			var size int64
			for _, l := range must(must(index.Image(m.Digest)).Layers()) {
				size += must(l.Size())
			}
			t.Logf("the image for %s has %.1f MB to pull", m.Platform.Architecture, float64(size)/1e6)
		}
		inImage := imageFiles(t, must(index.Image(m.Digest)))
		root := filepath.Join(t.TempDir(), "rootfs")
		s := testSource()
		s.Checkout = copies[0]
		if err := Root(t.Context(), s, m.Platform.Architecture, cache, root); err != nil {
			t.Fatal(err)
		}
		// What the Dockerfile copies is what the image has.
		for name, f := range inImage {
			content, err := os.ReadFile(filepath.Join(root, name))
			if err != nil || string(content) != f.content {
				t.Errorf("%s of the Dockerfile's content differs from the image's: %v", name, err)
			} else if st := must(os.Stat(filepath.Join(root, name))); int64(st.Mode().Perm()) != f.mode {
				t.Errorf("%s has the mode %o, in the image %o", name, st.Mode().Perm(), f.mode)
			}
		}
		if n := strings.Count(string(must(exec.Command("find", root, "-type", "f").Output())), "\n"); n != len(inImage) {
			t.Errorf("the Dockerfile's content has %d files, the image %d", n, len(inImage))
		}
		if m.Platform.Architecture == "amd64" {
			starts(t, root)
		}
	}
}

// krewInstalls has the real krew install flockctl from the release, by its manifest, and
// executes what kubectl would.
func krewInstalls(t *testing.T, out string) {
	t.Helper()
	archive := filepath.Join(out, "flockctl_v1.2.3_linux_"+runtime.GOARCH+".tar.gz")
	if _, err := os.Stat(archive); err != nil {
		t.Logf("krew was not tried: the release has no flockctl for %s", runtime.GOARCH)
		return
	}
	dir := t.TempDir()
	run := func(name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOWORK=off", "KREW_ROOT="+filepath.Join(dir, "krew-root"), "KREW_NO_UPGRADE_CHECK=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("go", "install", "sigs.k8s.io/krew/cmd/krew@v0.4.3"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	install := []string{"install", "--manifest=" + filepath.Join(out, "krew.yaml"), "--archive=" + archive}
	if out, err := run(filepath.Join(dir, "krew"), install...); err != nil || !strings.Contains(out, "Installed plugin: flock") {
		t.Fatalf("krew %q: %v: %s", install, err, out)
	}
	plugin := filepath.Join(dir, "krew-root", "bin", "kubectl-flock")
	if out, err := run(plugin, "version"); err != nil || !strings.Contains(out, "v1.2.3") {
		t.Errorf("kubectl flock version: %v: %s, want v1.2.3", err, out)
	}
	if license := must(filepath.Glob(filepath.Join(dir, "krew-root", "store", "flock", "*", "LICENSE"))); len(license) != 1 {
		t.Errorf("krew's copy has the licenses %v, want one", license)
	}
	// It holds the archive to the manifest's sum.
	other := filepath.Join(dir, "other.tar.gz")
	if err := os.WriteFile(other, append(must(os.ReadFile(archive)), 0), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "krew-root")); err != nil {
		t.Fatal(err)
	}
	if out, err := run(filepath.Join(dir, "krew"), "install", install[1], "--archive="+other); err == nil || !strings.Contains(out, "checksum") {
		t.Errorf("krew takes an archive with another sum: %v: %s", err, out)
	}
}

// starts executes each program of the image where there is nothing else.
func starts(t *testing.T, root string) {
	t.Helper()
	for want, args := range map[string][]string{
		"BIRD version 2.": {"/usr/sbin/bird", "--version"},
		"Unable to connect to server control socket (/none)": {"/usr/sbin/birdc", "-s", "/none", "show", "status"},
		"v1.2.3": {"/usr/local/bin/flock-agent", "--version"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir, cmd.Env = "/", []string{}
		if out, _ := cmd.CombinedOutput(); !strings.Contains(string(out), want) {
			t.Errorf("%q in the image: %s, want %q", args, out, want)
		}
	}
}

// debs returns a cache that has the packages. Debian's mirrors serve only the newest
// version of a package: if they no longer have a pinned one, the test takes what they
// have. A release does not: make release-lock is the way there.
func debs(t *testing.T, archs []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	dir := filepath.Join(must(os.UserCacheDir()), "flock-release")
	for _, arch := range archs {
		if _, err := download(ctx, dir, must(Pinned(arch))); err != nil {
			t.Logf("testing with the packages that Debian has now: %v", err)
			debianLock = must(Lock(ctx))
			break
		}
	}
	return dir
}

// copySources copies what git knows of the checkout, changes included.
func copySources(t *testing.T, dir string) {
	t.Helper()
	out := must(exec.Command("git", "-C", checkout, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output())
	names := strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })
	slices.Reverse(names) // another order of creation, for directories
	for _, name := range names {
		from, to := filepath.Join(checkout, name), filepath.Join(dir, name)
		st, err := os.Lstat(from)
		if err != nil {
			continue // deleted, not yet committed
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if st.Mode()&os.ModeSymlink != 0 {
			err = os.Symlink(must(os.Readlink(from)), to)
		} else {
			err = os.WriteFile(to, must(os.ReadFile(from)), st.Mode().Perm())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
