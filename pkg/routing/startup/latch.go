package startup

import (
	"bytes"

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

// IsSet reports whether Set was called in this boot.
func (l *Latch) IsSet() bool {
	boot, err := atomicfile.Read(l.path)
	return err == nil && bytes.Equal(boot, l.boot)
}

// Set sets the latch until the next boot.
func (l *Latch) Set() error { return atomicfile.Write(l.path, l.boot) }
