// Package sys is how the agent's packages change files, and how they talk to the kernel: the same
// functions as in os and golang.org/x/sys/unix.
//
// Built with the tag "faults", each call can fail, or be the last thing that the process does:
// see faults.go. Without it the functions are those of os and unix, inlined. TestCallSites holds
// the agent's packages to this package, so that a call that is added later is covered.
package sys

import (
	"bytes"
	"io/fs"
	"net"
	"os"
	"os/exec"
)

// ReadFile is [os.ReadFile].
func ReadFile(name string) ([]byte, error) {
	if err := read("read", name); err != nil {
		return nil, err
	}
	return os.ReadFile(name)
}

// ReadDir is [os.ReadDir].
func ReadDir(name string) ([]fs.DirEntry, error) {
	if err := read("readdir", name); err != nil {
		return nil, err
	}
	return os.ReadDir(name)
}

// Readlink is [os.Readlink].
func Readlink(name string) (string, error) {
	if err := read("readlink", name); err != nil {
		return "", err
	}
	return os.Readlink(name)
}

// InterfaceAddrs is [net.InterfaceAddrs].
func InterfaceAddrs() ([]net.Addr, error) {
	if err := read("addresses", "of all interfaces"); err != nil {
		return nil, err
	}
	return net.InterfaceAddrs()
}

// CombinedOutput is that of [exec.Cmd], of a program that only judges. It has no real-time priority
// of this process.
func CombinedOutput(cmd *exec.Cmd) ([]byte, error) {
	if err := read("execute", cmd.Path); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	release(cmd.Process.Pid)
	err := cmd.Wait()
	return out.Bytes(), err
}

// Lstat is [os.Lstat].
func Lstat(name string) (fs.FileInfo, error) {
	if err := read("lstat", name); err != nil {
		return nil, err
	}
	return os.Lstat(name)
}

// Stat is [os.Stat].
func Stat(name string) (fs.FileInfo, error) {
	if err := read("stat", name); err != nil {
		return nil, err
	}
	return os.Stat(name)
}

// Open is [os.Open].
func Open(name string) (*os.File, error) {
	if err := read("open", name); err != nil {
		return nil, err
	}
	return os.Open(name)
}

// OpenFile is [os.OpenFile], for files that are changed in place.
func OpenFile(name string, flag int, perm fs.FileMode) (*File, error) {
	if err := effect("open", name); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &File{f}, nil
}

// File is an [os.File] of OpenFile.
type File struct{ *os.File }

// ReadAt is that of [os.File].
func (f *File) ReadAt(b []byte, at int64) (int, error) {
	if err := read("read", f.Name()); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, at)
}

// Write is that of [os.File].
func (f *File) Write(b []byte) (int, error) {
	if err := effect("write", f.Name()); err != nil {
		return 0, err
	}
	return f.File.Write(b)
}

// WriteAt is that of [os.File].
func (f *File) WriteAt(b []byte, at int64) (int, error) {
	if err := effect("write", f.Name()); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, at)
}

// Truncate is that of [os.File].
func (f *File) Truncate(size int64) error {
	if err := effect("truncate", f.Name()); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// WriteFile is [os.WriteFile].
func WriteFile(name string, data []byte, perm fs.FileMode) error {
	if err := effect("write", name); err != nil {
		return err
	}
	return os.WriteFile(name, data, perm)
}

// Rename is [os.Rename].
func Rename(from, to string) error {
	if err := effect("rename", to); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// Remove is [os.Remove].
func Remove(name string) error {
	if err := effect("remove", name); err != nil {
		return err
	}
	return os.Remove(name)
}

// RemoveAll is [os.RemoveAll].
func RemoveAll(name string) error {
	if err := effect("remove", name); err != nil {
		return err
	}
	return os.RemoveAll(name)
}

// Mkdir is [os.Mkdir].
func Mkdir(name string, perm fs.FileMode) error {
	if err := effect("mkdir", name); err != nil {
		return err
	}
	return os.Mkdir(name, perm)
}

// MkdirAll is [os.MkdirAll].
func MkdirAll(name string, perm fs.FileMode) error {
	if err := effect("mkdir", name); err != nil {
		return err
	}
	return os.MkdirAll(name, perm)
}

// Step marks an effect of another kind: an answer to the plugin.
func Step(op, what string) { effect(op, what) }

// Command is before a command to BIRD is written.
func Command(what string) error { return effect("bird", what) }

// Request is before a request to the API server, which changes something there or only asks.
func Request(isChange bool, what string) error {
	if isChange {
		return effect("api", what)
	}
	return read("api", what)
}
