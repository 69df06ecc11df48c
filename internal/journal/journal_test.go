package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/iotest"

	"flock.fritzlab.net/flock/internal/sys"
)

func open(t *testing.T, path string) (*Journal, map[string]string) {
	t.Helper()
	got := map[string]string{}
	j, err := Open(path, func(key string, value []byte) { got[key] = string(value) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j, got
}

// What was flushed is there at the next start, through any number of changes.
func TestJournalIsAMap(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	want := map[string]string{}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		j, got := open(t, path)
		if !maps.Equal(got, want) {
			t.Fatalf("seed %d: the journal has %d keys, want %d", seed, len(got), len(want))
		}
		for range random.IntN(2000) {
			key := fmt.Sprint("key", random.IntN(300))
			if random.IntN(3) == 0 {
				j.Delete(key)
				delete(want, key)
			} else {
				value := string(bytes.Repeat([]byte{byte(random.IntN(256))}, random.IntN(5000)))
				j.Put(key, []byte(value))
				want[key] = value
			}
			if random.IntN(10) == 0 {
				if err := j.Flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := j.Flush(); err != nil {
			t.Fatal(err)
		}
		live := int64(0)
		for key, value := range want {
			live += int64(len(key) + len(value) + 10)
		}
		if info, err := os.Stat(path); err != nil || info.Size() > 2*live+3*slack || info.Mode().Perm() != 0o600 {
			t.Fatalf("seed %d: the file has %d bytes, mode %v, for %d: %v", seed, info.Size(), info.Mode(), live, err)
		}
		j.Put("not flushed", nil)
		j.Close()
	}
}

// A file that was cut short anywhere has what was complete, and goes on from there.
func TestCutShort(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := open(t, path)
	var ends []int64
	for i := range 10 {
		j.Put(fmt.Sprint(i), []byte("value"))
		if err := j.Flush(); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, j.size)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(header); cut <= len(whole); cut++ {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want := 0
		for want < len(ends) && ends[want] <= int64(cut) {
			want++
		}
		j, got := open(t, path)
		if len(got) != want {
			t.Fatalf("cut after %d bytes, %d values are left, want %d", cut, len(got), want)
		}
		j.Put("next", []byte("one"))
		if err := j.Flush(); err != nil {
			t.Fatal(err)
		}
		if _, got := open(t, path); len(got) != want+1 || got["next"] != "one" {
			t.Fatalf("cut after %d bytes and continued, there are %v", cut, got)
		}
	}
}

// What is not a journal is not taken for one, nor is one with a byte changed.
func FuzzCorrupt(f *testing.F) {
	f.Add(uint16(3), byte(1))
	f.Add(uint16(30), byte(0x80))
	f.Fuzz(func(t *testing.T, at uint16, flip byte) {
		path := filepath.Join(t.TempDir(), "journal")
		want := map[string]string{"a": "first", "b": string(bytes.Repeat([]byte("long"), 100))}
		j, _ := open(t, path)
		j.Put("a", []byte(want["a"]))
		j.Put("b", []byte(want["b"]))
		if err := j.Flush(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[int(at)%len(b)] ^= flip
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		j, err = Open(path, func(key string, value []byte) { got[key] = string(value) })
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		defer j.Close()
		for key, value := range got { // perhaps fewer, never others
			if want[key] != value {
				t.Errorf("%q is %q", key, value)
			}
		}
		if flip == 0 && len(got) != 2 {
			t.Errorf("%d values, want 2", len(got))
		}
	})
}

// While the file cannot be written, what was changed waits, and is written in the end.
func TestWriteFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := open(t, path)
	file := j.file
	broken, err := os.Open(path) // for reading alone
	if err != nil {
		t.Fatal(err)
	}
	defer broken.Close()
	j.file = &sys.File{File: broken}
	j.Put("a", []byte("1"))
	if err := j.Flush(); err == nil {
		t.Error("no error")
	}
	// A start at this moment knows nothing, rather than what was true before.
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there, out of date: %v", err)
	}
	j.file = file
	j.Put("b", []byte("2"))
	if err := j.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, got := open(t, path); got["a"] != "1" || got["b"] != "2" {
		t.Errorf("the journal has %v", got)
	}
	// One that can never be written is out of date, and goes.
	j.file = &sys.File{File: broken}
	j.Put("c", make([]byte, most+1))
	if err := j.Flush(); err == nil {
		t.Error("no error")
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("there are still %v, %v", left, err)
	}
	if err := j.Flush(); err != nil || j.IsOpen() {
		t.Errorf("%v, open: %v", err, j.IsOpen())
	}
}

// A read that fails says nothing about the file, wherever it is.
func TestReadFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := open(t, path)
	j.Put("key", bytes.Repeat([]byte("value"), 100)) // its length takes two bytes
	if err := j.Flush(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) + 1 {
		from := io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(syscall.EIO))
		if _, err := scan(from, func([]byte, []byte, int64) error { return nil }); !errors.Is(err, syscall.EIO) || errors.Is(err, ErrCorrupt) {
			t.Fatalf("a read fails after %d bytes: %v", n, err)
		}
	}
	// What is wrong before that is wrong.
	from := io.MultiReader(bytes.NewReader(bytes.Repeat([]byte{0xff}, 50)), iotest.ErrReader(syscall.EIO))
	if _, err := scan(from, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another file: %v", err)
	}
}
