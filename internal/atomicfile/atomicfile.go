// Package atomicfile writes and reads the small files that the agent keeps for its own next
// start. Whoever reads one, also after a crash of the agent, finds what it held
// before or what it holds now.
//
// Nothing is synced to a disk: the files are of use in this boot alone, and are on
// a tmpfs. What must outlive a power loss is not for this package (see
// pkg/cni/installer).
package atomicfile

import (
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"flock.fritzlab.net/flock/internal/sys"
)

// Write makes content the file at path, which root alone may read. A file has one
// writer at a time. What an interrupted one leaves behind, hidden beside the file,
// the next one takes.
func Write(path string, content []byte) error {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	err := sys.WriteFile(temp, content, 0o600)
	if err == nil {
		err = sys.Rename(temp, path)
	}
	if err != nil {
		sys.Remove(temp) // where there is no room, what was written takes some
	}
	return err
}

// Read returns what the file at path holds. It tries again where the error may pass (EMFILE,
// EIO, ENOMEM): what an agent does not read at its start it has forgotten, and it may write
// over it. The error is [fs.ErrNotExist] if there is no file.
func Read(path string) ([]byte, error) {
	return again(func() ([]byte, error) { return sys.ReadFile(path) })
}

// ReadDir lists the directory of such files. It tries again as Read does.
func ReadDir(path string) ([]fs.DirEntry, error) {
	return again(func() ([]fs.DirEntry, error) { return sys.ReadDir(path) })
}

// again calls f up to three times within some 10 ms.
func again[T any](f func() (T, error)) (got T, err error) {
	for _, pause := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond} {
		time.Sleep(pause)
		if got, err = f(); err == nil || errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return got, err
}
