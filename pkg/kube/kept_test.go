package kube

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

func openKept(t *testing.T, path string) *Kept[map[string]int] {
	t.Helper()
	k, err := OpenKept[map[string]int](path, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// obstruct keeps the file at path from being written until the result is called.
func obstruct(t *testing.T, path string) (clear func()) {
	t.Helper()
	dir := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.MkdirAll(filepath.Join(dir, "in-the-way"), 0o700); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// What could not be written is written later, though nobody asks for it again.
func TestKeptTriesAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "copy.json")
	holds := func(want int) {
		t.Helper()
		if got := openKept(t, path).Get()["v"]; got != want {
			t.Errorf("a start finds %d, want %d", got, want)
		}
	}
	k := openKept(t, path)
	if k.Get() != nil {
		t.Errorf("%v where there is no file", k.Get())
	}
	k.Save(map[string]int{"v": 1})
	if k.Due() != nil {
		t.Error("an attempt is due after one that succeeded")
	}
	holds(1)

	clear := obstruct(t, path)
	k.Save(map[string]int{"v": 2})
	if got := k.Get()["v"]; got != 1 {
		t.Errorf("it takes %d for what the file holds, which could not be written", got)
	}
	<-k.Due()
	k.Retry() // fails too
	clear()
	k.Save(map[string]int{"v": 2}) // the same waits for the attempt that is due
	holds(1)
	<-k.Due()
	k.Retry()
	if k.Due() != nil {
		t.Error("another attempt is due")
	}
	holds(2)

	// What the file holds still needs no attempt.
	clear = obstruct(t, path)
	k.Save(map[string]int{"v": 3})
	k.Save(map[string]int{"v": 2})
	if k.Due() != nil {
		t.Error("an attempt is due though the file holds what it is to hold")
	}
	clear()
	k.Retry()
	holds(2)
}

// What somebody has removed is written again when it is to be kept once more.
func TestKeptIsRemoved(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "copy.json")
	for range 3 { // written, written again, and read by the next start
		k := openKept(t, path)
		for range 2 {
			k.Save(map[string]int{"v": 1})
			if got := openKept(t, path).Get()["v"]; got != 1 {
				t.Errorf("a start finds %d, want 1", got)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		k.Save(map[string]int{"v": 1})
	}
}

// Nothing is known of a file that cannot be read; one that is damaged is as none.
func TestKeptUnreadable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := OpenKept[map[string]int](dir, nil, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no error for what cannot be read")
	}
	path := filepath.Join(dir, "copy.json")
	if err := os.WriteFile(path, []byte(`{"v":`), 0o600); err != nil {
		t.Fatal(err)
	}
	k := openKept(t, path)
	if k.Get() != nil {
		t.Errorf("%v of a damaged file", k.Get())
	}
	k.Save(map[string]int{"v": 1})
	if got := openKept(t, path).Get()["v"]; got != 1 {
		t.Errorf("a start finds %d, want 1", got)
	}
}
