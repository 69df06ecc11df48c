// Package state says where a lab keeps its files, and lets one program at a time
// change it. Everything a lab leaves on disk is below one directory; removing
// the lab is removing it. It knows nothing of what the files mean.
package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Root holds a directory per lab.
const Root = "/var/lib/flock-lab"

// Dir is the directory of one lab.
type Dir struct{ name string }

var validName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

// For names the lab's directory, which need not exist.
func For(lab string) (Dir, error) {
	if !validName.MatchString(lab) {
		return Dir{}, fmt.Errorf("--name %q: want lower-case letters, digits and dashes, beginning with a letter, at most 31", lab)
	}
	return Dir{lab}, nil
}

// Lab is the lab's name.
func (d Dir) Lab() string { return d.name }

// Path is the directory itself, or what is at these names below it.
func (d Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{Root, d.name}, elem...)...)
}

// Namespaces holds the namespaces of the members.
func (d Dir) Namespaces() string { return d.Path("ns") }

// Member holds what belongs to one member, its configuration and disk.
func (d Dir) Member(member string, elem ...string) string {
	return d.Path(append([]string{"members", member}, elem...)...)
}

// Log is the file that a process of a member writes to.
func (d Dir) Log(member, process string) string {
	return d.Member(member, "log", process+".log")
}

// Exists reports whether anything of the lab is on disk.
func (d Dir) Exists() bool {
	_, err := os.Stat(d.Path())
	return err == nil
}

// Write replaces a file of the lab atomically, creates its directory if needed, and
// reports whether that changed anything.
func (d Dir) Write(path string, content []byte, mode os.FileMode) (changed bool, err error) {
	if !strings.HasPrefix(path, d.Path()+"/") {
		return false, fmt.Errorf("%s is not below %s", path, d.Path())
	}
	if old, err := os.ReadFile(path); err == nil && string(old) == string(content) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, content, mode); err != nil {
		return false, err
	}
	return true, os.Rename(temp, path)
}

// Lock makes the directory and keeps other programs from changing the lab until
// unlock. It waits up to patience for one that is at it.
func (d Dir) Lock(patience time.Duration) (unlock func(), err error) {
	deadline := time.Now().Add(patience)
	for {
		f, err := d.tryLock()
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("lock lab %s: %w", d.name, err)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("lab %s is being changed by another lab up or lab down: wait for it, or use another --name", d.name)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// tryLock locks the directory itself, so that no lock file outlives the lab. A
// lock on one that was removed meanwhile guards nothing and does not count.
func (d Dir) tryLock() (*os.File, error) {
	if err := os.MkdirAll(d.Path(), 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(d.Path())
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	locked, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Stat(d.Path()); err == nil && !os.SameFile(locked, there) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Remove deletes all files of the lab, and Root with the last lab.
func (d Dir) Remove() error {
	if err := os.RemoveAll(d.Path()); err != nil {
		return err
	}
	if err := os.Remove(Root); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
