package sysctl

import (
	"os"
	"path/filepath"
	"testing"
)

// A look at the mount that failed is no reason to write to what is read-only from then on.
func TestPlaceIsLookedForAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "net")
	if err := os.Symlink(dir, dir); err != nil { // ELOOP
		t.Fatal(err)
	}
	p := place{mounted: dir}
	if got, err := p.path("ipv4/ip_forward"); err == nil {
		t.Errorf("it is at %s, though nobody can know", got)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := p.path("ipv4/ip_forward"); err != nil || got != filepath.Join(dir, "ipv4/ip_forward") {
		t.Errorf("%s, %v; want it in the mount", got, err)
	}
	absent := place{mounted: filepath.Join(dir, "absent")}
	if got, err := absent.path("ipv4/ip_forward"); err != nil || got != "/proc/sys/net/ipv4/ip_forward" {
		t.Errorf("%s, %v; want the only one that there is", got, err)
	}
}
