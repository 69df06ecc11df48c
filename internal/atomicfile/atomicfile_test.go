package atomicfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	holds := func(want string) {
		t.Helper()
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("the file holds %q, %v; want %q", b, err, want)
		}
	}
	for _, content := range []string{strings.Repeat("long", 1000), "short"} {
		if err := Write(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		holds(content)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file is %v, %v; want it for root alone", info.Mode(), err)
	}

	// What somebody else holds open is not written into.
	before, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	temp := filepath.Join(dir, ".file.new")
	if err := os.WriteFile(temp, []byte("left behind, and longer than what follows"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	holds("new")
	b := make([]byte, 10)
	if n, _ := before.Read(b); string(b[:n]) != "short" {
		t.Errorf("who had it open reads %q, want what it held then", b[:n])
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v, %v; want the file alone", entries, err)
	}

	// A write that fails leaves the file as it is.
	if err := os.Mkdir(temp, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, []byte("newer")); err == nil {
		t.Error("no error where nothing can be written")
	}
	holds("new")
}
