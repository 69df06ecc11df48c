// Package atomicfile writes the small files that the agent keeps for its own next
// start. Whoever reads one, also after a crash of the agent, finds what it held
// before or what it holds now.
//
// Nothing is synced to a disk: the files are of use in this boot alone, and are on
// a tmpfs. What must outlive a power loss is not for this package (see
// pkg/cni/installer).
package atomicfile

import (
	"path/filepath"

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
