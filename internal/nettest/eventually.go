package nettest

import (
	"fmt"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen. It is long: a machine that
// is busy must not fail a test.
const patience = 20 * time.Second

// Eventually waits until check returns nil. If that takes too long the test ends with
// check's last error.
func Eventually(t testing.TB, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %v", patience, err)
		}
	}
}

// Await is Eventually for a condition, which what describes.
func Await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	Eventually(t, func() error {
		if holds() {
			return nil
		}
		return fmt.Errorf("still waiting for %s", what)
	})
}
