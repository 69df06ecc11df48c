package startup

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLatch(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taking-pods")
	open := func() *Latch {
		t.Helper()
		l, err := OpenLatch(path)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	isSet := func(l *Latch) bool {
		t.Helper()
		set, err := l.IsSet()
		if err != nil {
			t.Error(err)
		}
		return set
	}
	if isSet(open()) {
		t.Error("set before anybody did")
	}
	if err := open().Set(); err != nil {
		t.Fatal(err)
	}
	if !isSet(open()) {
		t.Error("not set any more after a start of the agent")
	}
	// A directory that outlives the boot.
	old := bootIDPath
	t.Cleanup(func() { bootIDPath = old })
	bootIDPath = filepath.Join(dir, "boot_id")
	if err := os.WriteFile(bootIDPath, []byte("another boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if isSet(open()) {
		t.Error("set after a reboot")
	}
	bootIDPath = filepath.Join(dir, "none")
	if _, err := OpenLatch(path); err == nil {
		t.Error("no error without a boot ID: each would be taken for this one")
	}
	l := &Latch{path: filepath.Join(dir, "missing", "x")}
	if err := l.Set(); err == nil || isSet(l) {
		t.Errorf("Set where nothing can be written: %v", err)
	}
	// That it cannot be read does not say that it is not set.
	if err := os.Mkdir(filepath.Join(dir, "unreadable"), 0o700); err != nil {
		t.Fatal(err)
	}
	l = &Latch{path: filepath.Join(dir, "unreadable")}
	if set, err := l.IsSet(); err == nil {
		t.Errorf("no error where it cannot be read; set: %v", set)
	}
}
