package installer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// tempPath is the name that a file has while it is written. It is hidden, has no
// ending that a runtime looks for, and is always the same, so that at most one is
// left behind, which the next run takes away.
func tempPath(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".installing")
}

// put makes the file at path hold content with mode, in one step as far as
// anyone sees, on the disk when it returns. A file that does already is left.
func (i *Installer) put(path string, content []byte, mode fs.FileMode) error {
	if err := removeTemp(path); err != nil {
		return err
	}
	if holds(path, content, mode) {
		i.Log.Info("already installed", "path", path)
		return nil
	}
	i.at()
	temp := tempPath(path)
	if err := i.write(temp, content, mode); err != nil {
		return errors.Join(fmt.Errorf("install %s: %w", path, err), removeTemp(path))
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(fmt.Errorf("install %s: %w", path, err), removeTemp(path))
	}
	i.at()
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("install %s: %w", path, err)
	}
	i.at()
	i.Log.Info("installed", "path", path)
	return nil
}

// write makes a new file; what is in it is on the disk when it returns.
func (i *Installer) write(path string, content []byte, mode fs.FileMode) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	i.at()
	half := len(content) / 2
	for _, part := range [][]byte{content[:half], content[half:]} {
		if _, err := file.Write(part); err != nil {
			return err
		}
		i.at()
	}
	if err := file.Chmod(mode); err != nil { // the umask does not count
		return err
	}
	i.at()
	return file.Sync()
}

func holds(path string, content []byte, mode fs.FileMode) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != mode || info.Size() != int64(len(content)) {
		return false
	}
	there, err := os.ReadFile(path)
	return err == nil && bytes.Equal(there, content)
}

func (i *Installer) remove(path string) error {
	i.at()
	if err := os.Remove(path); err != nil {
		return err
	}
	i.at()
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	i.Log.Info("removed", "path", path)
	return nil
}

func removeTemp(path string) error {
	if err := os.Remove(tempPath(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
