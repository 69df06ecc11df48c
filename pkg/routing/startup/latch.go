package startup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"flock.fritzlab.net/flock/internal/atomicfile"
)

// bootIDPath names the running boot (random(4)); a variable for the tests.
var bootIDPath = "/proc/sys/kernel/random/boot_id"

// Latch remembers in a file that the node has taken pods in this boot.
type Latch struct {
	path string
	boot []byte
}

// OpenLatch returns the latch with the file at path. A file from an earlier boot, if
// the directory survives a reboot, does not set it.
func OpenLatch(path string) (*Latch, error) {
	boot, err := atomicfile.Read(bootIDPath)
	return &Latch{path, boot}, err
}

// IsSet reports whether Set was called in this boot. An error says that nobody knows.
func (l *Latch) IsSet() (bool, error) {
	boot, err := atomicfile.Read(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot tell whether the node has taken pods since it booted: %w; if that stays, remove %s", err, l.path)
	}
	return bytes.Equal(boot, l.boot), nil
}

// Set sets the latch until the next boot.
func (l *Latch) Set() error { return atomicfile.Write(l.path, l.boot) }
