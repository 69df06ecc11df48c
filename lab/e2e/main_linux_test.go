//go:build cluster

package e2e

import (
	"os"
	"testing"

	"flock.fritzlab.net/flock/lab/member"
)

// TestMain: what a test runs in a member of the lab by itself, and not by bin/lab, starts this
// program again.
func TestMain(m *testing.M) {
	member.RunHelper()
	os.Exit(m.Run())
}
