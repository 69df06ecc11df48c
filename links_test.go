package flock_test

import (
	"io/fs"
	"path/filepath"
	"testing"
)

// TestNoSymbolicLinks: an archive of the sources, a checkout with core.symlinks off and
// Helm's archives turn a link into a file that holds the target's name.
func TestNoSymbolicLinks(t *testing.T) {
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (name == ".git" || name == "bin" || name == "out") {
			return filepath.SkipDir
		}
		if d.Type()&fs.ModeSymlink != 0 {
			t.Errorf("%s is a symbolic link: put the file itself where it is read", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
