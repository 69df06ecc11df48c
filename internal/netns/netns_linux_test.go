package netns

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
)

// link names the namespace that the calling thread is in.
func link(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink(own)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDo(t *testing.T) {
	t.Parallel()
	file, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	outside := link(t)
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd())
	var first string
	for i, run := range []func(func() error) error{
		func(f func() error) error { return Do(file, f) },
		func(f func() error) error { return DoPath(path, f) },
	} {
		want := errors.New("from f")
		var inside string
		if err := run(func() error { inside = link(t); return want }); err != want {
			t.Errorf("it returned %v, want the error of f", err)
		}
		if inside == outside || first != "" && inside != first {
			t.Errorf("run %d was in %s, the test is in %s", i, inside, outside)
		}
		first = inside
	}
	// The threads that were away have returned, or have ended.
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			for range 20 {
				if err := Do(file, func() error { return nil }); err != nil {
					t.Error(err)
				}
				if got := link(t); got != outside {
					t.Errorf("a goroutine runs in %s, want %s", got, outside)
				}
			}
		})
	}
	all.Wait()
}

func TestNotANetworkNamespace(t *testing.T) {
	t.Parallel()
	called := false
	f := func() error { called = true; return nil }
	if err := DoPath("/proc/thread-self/ns/mnt", f); err == nil || called {
		t.Errorf("a mount namespace: %v, called: %t", err, called)
	}
	if err := DoPath("/nonexistent", f); !errors.Is(err, os.ErrNotExist) || called {
		t.Errorf("no file: %v, called: %t", err, called)
	}
}
