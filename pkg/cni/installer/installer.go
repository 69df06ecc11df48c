package installer

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The names of what is installed. The configuration's sorts before other
// networks' (10-calico.conflist), so that the runtime takes it.
const (
	PluginName   = "flock"
	ConflistName = "01-flock.conflist"
)

// The default paths on a node.
const (
	DefaultBinDir   = "/opt/cni/bin"
	DefaultConfDir  = "/etc/cni/net.d"
	DefaultStateDir = "/run/flock"
	DefaultPlugin   = "/usr/local/bin/flock"
)

// pluginPackage is what the Go build information of the plugin names. Another
// program of this name is util-linux's.
const pluginPackage = "flock.fritzlab.net/flock/cmd/flock"

// Installer says where to install from and to. Its methods may run at the same
// time in several processes.
type Installer struct {
	BinDir   string // where the runtime looks for plugins
	ConfDir  string // where the runtime looks for network configurations
	StateDir string // the agent's; Uninstall does not use it
	Plugin   string // the plugin's file in the image
	Log      *slog.Logger

	// reached is called by tests' doing between any two changes.
	reached func()
}

// Install puts the plugin and then the configuration in place. It changes
// nothing if it finds a reason against any of it. What is in place already stays
// as it is, and so does a configuration that was edited by hand.
func (i *Installer) Install() error {
	if err := errors.Join(
		checkDir("bin-dir", i.BinDir, DefaultBinDir),
		checkDir("conf-dir", i.ConfDir, DefaultConfDir),
		checkDir("state-dir", i.StateDir, DefaultStateDir),
	); err != nil {
		return err
	}
	plugin, err := os.ReadFile(i.Plugin)
	if err != nil {
		return fmt.Errorf("--plugin: %w", err)
	}
	if !isPlugin(plugin) {
		return fmt.Errorf("--plugin %s: is not flock's plugin", i.Plugin)
	}
	unlock, err := i.lock()
	if err != nil {
		return err
	}
	defer unlock()

	_, pluginErr := pluginAt(i.pluginPath())
	kind, listErr := conflistAt(i.conflistPath())
	if err := errors.Join(pluginErr, listErr); err != nil {
		return err
	}
	if err := i.prepareState(); err != nil {
		return err
	}
	if err := i.put(i.pluginPath(), plugin, 0o755); err != nil {
		return err
	}
	if kind == edited {
		i.Log.Warn("configuration was edited by hand and is left as it is; remove it and run again to get flock's own", "path", i.conflistPath())
	} else if err := i.put(i.conflistPath(), conflist(), 0o644); err != nil {
		return err
	}
	i.warnOfEarlier()
	return nil
}

// Uninstall removes the configuration and then the plugin, as far as they are
// what Install wrote. An edited configuration stays, and so does the plugin that
// it needs: that is an error which names both.
func (i *Installer) Uninstall() error {
	if err := errors.Join(
		checkDir("bin-dir", i.BinDir, DefaultBinDir),
		checkDir("conf-dir", i.ConfDir, DefaultConfDir),
	); err != nil {
		return err
	}
	unlock, err := i.lock()
	if err != nil {
		return err
	}
	defer unlock()

	// Both are read before anything is removed.
	kind, err := conflistAt(i.conflistPath())
	if err = i.leave(err); err != nil {
		return err
	}
	there, err := pluginAt(i.pluginPath())
	if err = i.leave(err); err != nil {
		return err
	}
	if kind == edited {
		return fmt.Errorf("%s was edited by hand, so it is left, and with it %s, which it names: remove both yourself, the configuration first", i.conflistPath(), i.pluginPath())
	}
	if kind == own {
		if err := i.remove(i.conflistPath()); err != nil {
			return err
		}
	}
	if there {
		if err := i.remove(i.pluginPath()); err != nil {
			return err
		}
	}
	return errors.Join(removeTemp(i.conflistPath()), removeTemp(i.pluginPath()))
}

// A foreignError says that what is at flock's path is not flock's. What could not be read may
// be.
type foreignError string

func (e foreignError) Error() string { return string(e) }

func foreign(format string, args ...any) error { return foreignError(fmt.Sprintf(format, args...)) }

// leave logs what Uninstall leaves because it is not flock's. It returns other errors.
func (i *Installer) leave(err error) error {
	if reason := foreignError(""); errors.As(err, &reason) {
		i.Log.Warn("left in place", "reason", reason)
		return nil
	}
	return err
}

func (i *Installer) pluginPath() string   { return filepath.Join(i.BinDir, PluginName) }
func (i *Installer) conflistPath() string { return filepath.Join(i.ConfDir, ConflistName) }

// prepareState gives the agent's directory and BIRD's in it to root alone: the
// sockets in them let anyone who can open them change the node's network.
func (i *Installer) prepareState() error {
	bird := filepath.Join(i.StateDir, "bird")
	if err := os.Mkdir(bird, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("--state-dir: %w", err)
	}
	i.at()
	for _, dir := range []string{bird, i.StateDir} {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("--state-dir: %w", err)
		}
	}
	i.at()
	return nil
}

// lock keeps other installers out until unlock is called or the process ends.
// The lock is on the directory, so there is no file of it to leave behind.
func (i *Installer) lock() (unlock func(), err error) {
	dir, err := os.Open(i.BinDir)
	if err != nil {
		return nil, fmt.Errorf("--bin-dir: %w", err)
	}
	err = flock(dir, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		i.Log.Info("waiting for another installer that is at work", "dir", i.BinDir)
		err = flock(dir, unix.LOCK_EX)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--bin-dir %s: lock: %w", i.BinDir, err), dir.Close())
	}
	return func() { _ = dir.Close() }, nil
}

// flock is flock(2), gone on with when a signal came in between.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// checkDir says what is wrong with a directory that a DaemonSet should have
// mounted, and what to add to it. usual is where it is on most nodes.
func checkDir(flag, dir, usual string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("--%s %s: there is no such directory: mount the node's there (volumes: hostPath: {path: %s, type: DirectoryOrCreate}; volumeMounts: mountPath: %s)", flag, dir, usual, dir)
	case err != nil:
		return fmt.Errorf("--%s: %w", flag, err)
	case !info.IsDir():
		return fmt.Errorf("--%s %s: is not a directory", flag, dir)
	}
	switch err := unix.Access(dir, unix.W_OK); {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("--%s %s: is mounted read-only: take readOnly from its volumeMount, or look at the node's own mount of %s", flag, dir, usual)
	case err != nil:
		return fmt.Errorf("--%s %s: user %d may not write there (%w): run as root, and look who owns the node's %s", flag, dir, os.Getuid(), err, usual)
	}
	return nil
}

// pluginAt says whether flock's plugin is at path, in whatever release. Anything
// else there is a [foreignError].
func pluginAt(path string) (bool, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, foreign("%s is not a regular file: move it away", path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	if !isPlugin(content) {
		return false, foreign("%s is not flock's plugin but another program (util-linux has a flock too): move it away, or choose another --bin-dir", path)
	}
	return true, nil
}

func isPlugin(content []byte) bool {
	info, err := buildinfo.Read(bytes.NewReader(content))
	return err == nil && info.Path == pluginPackage
}

// warnOfEarlier logs configurations that the runtime prefers.
func (i *Installer) warnOfEarlier() {
	entries, err := os.ReadDir(i.ConfDir)
	if err != nil {
		return
	}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			if e.Name() < ConflistName {
				i.Log.Warn("another configuration sorts before flock's, and the runtime uses that one", "path", filepath.Join(i.ConfDir, e.Name()))
			}
		}
	}
}

func (i *Installer) at() {
	if i.reached != nil {
		i.reached()
	}
}
