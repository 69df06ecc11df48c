//go:build cluster && anycast

package e2e

import (
	"testing"
	"time"
)

func init() {
	longOutages = append(longOutages,
		func(t *testing.T, client *load) {
			began := time.Now()
			mustKubectl(t, "--namespace=flock-system", "rollout", "restart", "daemonset/flock")
			mustKubectl(t, "--namespace=flock-system", "rollout", "status", "daemonset/flock", "--timeout=180s")
			sessionsUp(t)
			client.failedStrictly(t, "an upgrade of flock", began)
		},
		func(t *testing.T, client *load) { withoutAPIServer(t, client, time.Minute) },
	)
}

// TestAnycast is the story of anycast alone, with the outages that take minutes.
func TestAnycast(t *testing.T) {
	mustLab(t, "down") // what an earlier run may have left
	t.Cleanup(func() { mustLab(t, "down") })
	part(t, "up", func(t *testing.T) { mustLab(t, "up") })
	part(t, "anycast", anycastStory)
}
