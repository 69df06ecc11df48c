package startup

import (
	"bytes"
	"os"

	"flock.fritzlab.net/flock/pkg/atomicfile"
)

// bootIDPath names the running boot (random(4)); a variable for the tests.
var bootIDPath = "/proc/sys/kernel/random/boot_id"

// Latch remembers in a file that the node has taken pods in this boot.
type Latch struct {
	path string
	boot []byte
}

// OpenLatch returns the latch whose file is at path. One of an earlier boot, where
// the directory has outlived it, is not set.
func OpenLatch(path string) (*Latch, error) {
	boot, err := os.ReadFile(bootIDPath)
	return &Latch{path, boot}, err
}

// IsSet tells whether Set was called in this boot.
func (l *Latch) IsSet() bool {
	boot, err := os.ReadFile(l.path)
	return err == nil && bytes.Equal(boot, l.boot)
}

// Set sets the latch until the next boot.
func (l *Latch) Set() error { return atomicfile.Write(l.path, l.boot) }
