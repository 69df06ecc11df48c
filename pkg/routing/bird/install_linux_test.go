package bird

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What cannot be read is not replaced: it could not be restored if BIRD refused what follows it.
func TestInstallKeepsWhatItCannotRead(t *testing.T) {
	t.Parallel()
	a := NewApplier(ApplierConfig{Dir: t.TempDir()})
	path := filepath.Join(a.Dir, confName)
	if err := os.Symlink("/proc/self/mem", path); err != nil { // its first page has EIO
		t.Fatal(err)
	}
	if _, err := a.install(t.Context(), []byte("new"), nil); !errors.Is(err, unix.EIO) {
		t.Errorf("%v, want EIO", err)
	}
	if to, err := os.Readlink(path); err != nil || to != "/proc/self/mem" {
		t.Errorf("it was replaced: %q, %v", to, err)
	}
}
