package installer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/cni/plugin"
)

// Two releases of the plugin, from the installer's view.
var older, newer string

// The first thread stays the main goroutine's: tests that enter a mount namespace
// must not take it, for the process as a whole is seen through it.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if at := os.Getenv("INSTALLER_TEST_KILL_AT"); at != "" {
		runToBeKilled(at)
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "flock-installer-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		for _, release := range []struct {
			path *string
			name string
		}{{&older, "v0.1.0"}, {&newer, "v0.2.0"}} {
			*release.path = filepath.Join(dir, release.name)
			build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -E "+plugin.Entry+" -X flock.fritzlab.net/flock/internal/version.Version="+release.name,
				"-o", *release.path, "flock.fritzlab.net/flock/cmd/flock")
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				panic(fmt.Sprintf("%v: %s", err, out))
			}
		}
		return m.Run()
	}())
}

// node is a node's directories, empty, and an installer for them that writes
// its log to said.
type node struct {
	*Installer
	said *bytes.Buffer
}

func newNode(t *testing.T) node {
	t.Helper()
	n := node{said: &bytes.Buffer{}}
	n.Installer = &Installer{
		BinDir: t.TempDir(), ConfDir: t.TempDir(), StateDir: t.TempDir(), Plugin: newer,
		Log: slog.New(slog.NewTextHandler(n.said, nil)),
	}
	return n
}

func (n node) install(t *testing.T) {
	t.Helper()
	if err := n.Install(); err != nil {
		t.Fatal(err)
	}
}

// files lists what is in the directories of the runtime, by name.
func (n node) files(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, dir := range []string{n.BinDir, n.ConfDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			found[e.Name()] = read(t, filepath.Join(dir, e.Name()))
		}
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

func TestInstall(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.install(t)
	if got := n.files(t); len(got) != 2 || got[PluginName] != read(t, newer) || got[ConflistName] != string(conflist()) {
		t.Errorf("there is %d files", len(got))
	}
	for path, want := range map[string]fs.FileMode{
		n.pluginPath():                    0o755,
		n.conflistPath():                  0o644,
		n.StateDir:                        0o700 | fs.ModeDir,
		filepath.Join(n.StateDir, "bird"): 0o700 | fs.ModeDir,
	} {
		if got := mode(t, path); got != want {
			t.Errorf("%s: mode %v, want %v", path, got, want)
		}
	}
	list, err := libcni.NetworkConfFromFile(n.conflistPath())
	if err != nil {
		t.Fatal(err)
	}
	if list.Name != "flock" || list.CNIVersion != "1.1.0" || len(list.Plugins) != 1 || list.Plugins[0].Network.Type != PluginName {
		t.Errorf("the runtime reads %+v", list)
	}
}

func TestInstallAgainChangesNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.install(t)
	before := [2]uint64{inode(t, n.pluginPath()), inode(t, n.conflistPath())}
	n.install(t)
	if after := [2]uint64{inode(t, n.pluginPath()), inode(t, n.conflistPath())}; after != before {
		t.Error("files were written again")
	}
	// A mode that was changed, and a directory that was opened, are put right.
	for path, m := range map[string]fs.FileMode{n.pluginPath(): 0o644, n.conflistPath(): 0o600, n.StateDir: 0o777} {
		if err := os.Chmod(path, m); err != nil {
			t.Fatal(err)
		}
	}
	n.install(t)
	if mode(t, n.pluginPath()) != 0o755 || mode(t, n.conflistPath()) != 0o644 || mode(t, n.StateDir).Perm() != 0o700 {
		t.Error("modes were left wrong")
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// olderConflist is what an installer of another release wrote.
func olderConflist() string {
	return string(stamp([]byte(`{"cniVersion":"1.0.0","name":"flock","plugins":[{"type":"flock","mtu":1500}], "flockInstaller": "sha256:` + noDigest + `"}`)))
}

func TestUpgrade(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.Plugin = older
	n.install(t)
	write(t, n.conflistPath(), olderConflist())
	n.Plugin = newer
	n.install(t)
	if got := n.files(t); len(got) != 2 || got[PluginName] != read(t, newer) || got[ConflistName] != string(conflist()) {
		t.Error("not all of it is of the newer release")
	}
}

func TestEditedConfigurationStays(t *testing.T) {
	t.Parallel()
	edit := strings.Replace(string(conflist()), `{"type": "flock",`, `{"type": "flock"}, {"type": "portmap",`, 1)
	for name, content := range map[string]string{
		"edited":   edit,
		"own hand": `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"flock"}]}`,
	} {
		n := newNode(t)
		n.Plugin = older
		n.install(t)
		write(t, n.conflistPath(), content)
		n.Plugin = newer
		n.install(t)
		if got := n.files(t); got[ConflistName] != content || got[PluginName] != read(t, newer) {
			t.Errorf("%s: it was overwritten, or the plugin was not", name)
		}
		if !strings.Contains(n.said.String(), "edited by hand and is left") {
			t.Errorf("%s: log is %s", name, n.said)
		}
		err := n.Uninstall()
		if err == nil || !strings.Contains(err.Error(), n.conflistPath()+" was edited by hand, so it is left, and with it "+n.pluginPath()) {
			t.Errorf("%s: uninstall: %v", name, err)
		}
		if got := n.files(t); len(got) != 2 || got[ConflistName] != content {
			t.Errorf("%s: uninstall took it", name)
		}
	}
}

func TestInstallRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(*testing.T, node)
		want  []string
	}{
		"no directories": {func(t *testing.T, n node) {
			for _, dir := range []string{n.BinDir, n.ConfDir, n.StateDir} {
				if err := os.Remove(dir); err != nil {
					t.Fatal(err)
				}
			}
		}, []string{
			"--bin-dir ", "there is no such directory: mount the node's there (volumes: hostPath: {path: /opt/cni/bin, type: DirectoryOrCreate}",
			"--conf-dir ", "{path: /etc/cni/net.d,", "--state-dir ", "{path: /run/flock,",
		}},
		"a file for a directory": {func(_ *testing.T, n node) { n.StateDir = newer }, []string{"--state-dir " + newer + ": is not a directory"}},
		"no plugin":              {func(_ *testing.T, n node) { n.Plugin = "/nonexistent" }, []string{"--plugin: open /nonexistent: no such file"}},
		"another plugin":         {func(_ *testing.T, n node) { n.Plugin = "/bin/true" }, []string{"--plugin /bin/true: is not flock's plugin"}},
		"util-linux's flock there": {func(t *testing.T, n node) { write(t, n.pluginPath(), read(t, "/bin/true")) },
			[]string{"/flock is not flock's plugin but another program (util-linux has a flock too): move it away"}},
		"a link there": {func(t *testing.T, n node) {
			if err := os.Symlink(newer, n.pluginPath()); err != nil {
				t.Fatal(err)
			}
		}, []string{"/flock is not a regular file"}},
		"no configuration there":      {func(t *testing.T, n node) { write(t, n.conflistPath(), "{") }, []string{"01-flock.conflist is not a network configuration (unexpected end"}},
		"another configuration there": {func(t *testing.T, n node) { write(t, n.conflistPath(), `{"plugins":[{"type":"calico"}]}`) }, []string{`01-flock.conflist does not name the plugin "flock"`}},
		"a directory there": {func(t *testing.T, n node) {
			if err := os.Mkdir(n.conflistPath(), 0o755); err != nil {
				t.Fatal(err)
			}
		}, []string{"01-flock.conflist is not a regular file"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			bin, conf, state := n.BinDir, n.ConfDir, n.StateDir
			c.spoil(t, n)
			before := tree(t, bin, conf, state)
			err := n.Install()
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in the text", err, want)
				}
			}
			if after := tree(t, bin, conf, state); after != before {
				t.Errorf("something was changed:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// tree describes all that is in dirs.
func tree(t *testing.T, dirs ...string) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // the directory itself may be gone
			}
			fmt.Fprintln(&b, path, inode(t, path), mode(t, path))
			return nil
		})
	}
	return b.String()
}

func TestDirectoriesThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := checkDir("bin-dir", dir, DefaultBinDir); err != nil {
		t.Errorf("a directory that can be: %v", err)
	}
	inThread(t, func() error {
		return errors.Join(
			unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS),
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, ""),
		)
	}, func() {
		err := checkDir("bin-dir", dir, DefaultBinDir)
		if err == nil || !strings.Contains(err.Error(), "--bin-dir "+dir+": is mounted read-only: take readOnly from its volumeMount") {
			t.Errorf("read-only: %v", err)
		}
	})
	// Not even root may create a file here.
	err := checkDir("bin-dir", "/proc/sys/fs", DefaultBinDir)
	if err == nil || !strings.Contains(err.Error(), "--bin-dir /proc/sys/fs: user 0 may not write there (permission denied): run as root") {
		t.Errorf("not permitted: %v", err)
	}
}

// inThread runs enter and check in a thread of their own, which then ends.
func inThread(t *testing.T, enter func() error, check func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := enter()
		if err == nil {
			check()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestUninstall(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	write(t, filepath.Join(n.ConfDir, "10-calico.conflist"), "{}")
	write(t, filepath.Join(n.BinDir, "calico"), "#!")
	n.install(t)
	write(t, tempPath(n.pluginPath()), "left by a run that was killed")
	n.Plugin = "/nonexistent" // not needed
	for range 2 {
		if err := n.Uninstall(); err != nil {
			t.Fatal(err)
		}
		if got := n.files(t); len(got) != 2 || got["calico"] == "" || got["10-calico.conflist"] == "" {
			t.Errorf("what is there: %d files", len(got))
		}
	}
}

func TestUninstallTakesOtherReleases(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.Plugin = older
	n.install(t)
	write(t, n.conflistPath(), olderConflist())
	n.Plugin = newer
	if err := n.Uninstall(); err != nil || len(n.files(t)) != 0 {
		t.Errorf("%v, %d files are left", err, len(n.files(t)))
	}
}

func TestUninstallLeavesWhatIsNotFlocks(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	write(t, n.pluginPath(), read(t, "/bin/true"))
	write(t, n.conflistPath(), `{"plugins":[{"type":"calico"}]}`)
	if err := n.Uninstall(); err != nil {
		t.Error(err)
	}
	if len(n.files(t)) != 2 || strings.Count(n.said.String(), "left in place") != 2 {
		t.Errorf("%d files are left; log is %s", len(n.files(t)), n.said)
	}
	n.BinDir = "/nonexistent"
	if err := n.Uninstall(); err == nil || !strings.Contains(err.Error(), "--bin-dir /nonexistent: there is no such directory") {
		t.Errorf("got %v", err)
	}
}

func TestWarnsOfEarlierConfigurations(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	write(t, filepath.Join(n.ConfDir, "00-multus.conf"), "{}")
	write(t, filepath.Join(n.ConfDir, "00-README"), "")
	write(t, filepath.Join(n.ConfDir, "10-calico.conflist"), "{}")
	n.install(t)
	if said := n.said.String(); !strings.Contains(said, "00-multus.conf") || strings.Contains(said, "README") || strings.Contains(said, "calico") {
		t.Errorf("log is %s", said)
	}
}

// What cannot be read may be flock's. It is not called another's, and nothing is removed.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]func(node) string{
		"configuration": func(n node) string { return n.conflistPath() },
		"plugin":        func(n node) string { return n.pluginPath() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.install(t)
			inThread(t, func() error {
				return errors.Join(
					unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS),
					unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
					unix.Mount("/proc/self/mem", path(n), "", unix.MS_BIND, ""), // its first page has EIO
				)
			}, func() {
				for what, do := range map[string]func() error{"install": n.Install, "uninstall": n.Uninstall} {
					if err := do(); !errors.Is(err, unix.EIO) {
						t.Errorf("%s: %v", what, err)
					}
				}
			})
			if got := n.files(t); len(got) != 2 || strings.Contains(n.said.String(), "left in place") {
				t.Errorf("%d files are left; log is %s", len(got), n.said)
			}
		})
	}
}

// A full disk leaves what was there.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	inThread(t, func() error {
		return errors.Join(
			unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS),
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			unix.Mount("tmpfs", n.BinDir, "tmpfs", 0, "size=64k"),
		)
	}, func() {
		if err := n.Install(); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("got %v", err)
		}
		if got := n.files(t); len(got) != 0 {
			t.Errorf("%d files are left", len(got))
		}
	})
}

// Several installers and a runtime that reads all the time: whatever it finds is
// whole, and a configuration never comes before its plugin.
func TestRuntimeReadsMeanwhile(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	contents := map[string]bool{read(t, older): true, read(t, newer): true}
	stop := make(chan struct{})
	var reader, installers sync.WaitGroup
	reader.Go(func() {
		for found := false; ; {
			list, err := libcni.NetworkConfFromFile(n.conflistPath())
			switch {
			case err == nil:
				found = true
				if _, err := libcni.NewCNIConfig([]string{n.BinDir}, nil).ValidateNetworkList(t.Context(), list); err != nil {
					t.Errorf("the runtime finds a configuration, but: %v", err)
					return
				}
				if !contents[read(t, n.pluginPath())] {
					t.Error("the plugin is half there")
					return
				}
			case found || !errors.Is(err, fs.ErrNotExist):
				t.Errorf("the runtime reads: %v", err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	// In processes of their own: a file that one goroutine writes would be held
	// open by the processes that another starts.
	for _, plugin := range []string{older, newer} {
		installers.Go(func() {
			i := *n.Installer
			i.Plugin = plugin
			for range 20 {
				node{Installer: &i}.killedAt(t, "install", -1)
			}
		})
	}
	installers.Wait()
	close(stop)
	reader.Wait()
	if got := n.files(t); len(got) != 2 {
		t.Errorf("%d files are left", len(got))
	}
}
