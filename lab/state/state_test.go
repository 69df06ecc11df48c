package state

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"lab": true, "test-2": true, "": false, "Lab": false, "../x": false, "a/b": false, "2x": false, strings.Repeat("x", 32): false} {
		if _, err := For(name); (err == nil) != ok {
			t.Errorf("For(%q): %v", name, err)
		}
	}
}

func TestLock(t *testing.T) {
	d, err := For(fmt.Sprintf("lock-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Remove() })
	unlock, err := d.Lock(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock(0); err == nil || !strings.Contains(err.Error(), "another lab up or lab down") {
		t.Errorf("a second lock: %v", err)
	}

	// Who waits while the lab is removed gets the lock of the next one.
	second := make(chan error, 1)
	go func() {
		unlock, err := d.Lock(10 * time.Second)
		if err == nil {
			defer unlock()
			if !d.Exists() {
				err = fmt.Errorf("holds the lock of a directory that is gone")
			}
		}
		second <- err
	}()
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := <-second; err != nil {
		t.Error(err)
	}
}

func TestWrite(t *testing.T) {
	d, err := For(fmt.Sprintf("write-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Remove() })
	file := d.Member("node1", "config", "a.yaml")
	for i, step := range []struct {
		content string
		changed bool
	}{{"a", true}, {"a", false}, {"b", true}} {
		changed, err := d.Write(file, []byte(step.content), 0o600)
		if err != nil || changed != step.changed {
			t.Errorf("step %d: changed %v (%v), want %v", i, changed, err, step.changed)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != step.content {
			t.Errorf("step %d: %q (%v), want %q", i, got, err, step.content)
		}
	}
	if _, err := d.Write("/tmp/elsewhere", nil, 0o600); err == nil {
		t.Error("writes outside the lab")
	}
}
