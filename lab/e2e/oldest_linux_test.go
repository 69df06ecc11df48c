//go:build cluster && oldest

package e2e

import (
	"strings"
	"testing"

	"flock.fritzlab.net/flock/lab/components"
)

// TestOldest is a part of the story with the oldest Kubernetes that flock supports, whose
// kubelet has no Pods API.
func TestOldest(t *testing.T) {
	upFlags, podsAPI = []string{"--kubernetes", string(components.Oldest)}, false
	mustLab(t, "down") // what an earlier run may have left
	t.Cleanup(func() { mustLab(t, "down") })
	part(t, "up", func(t *testing.T) { mustLab(t, "up") })
	part(t, "flock says what the kubelet lacks", lacksPodsAPI)
	part(t, "prove", prove)
	part(t, "up again changes nothing", upAgain)
	part(t, "refuses bad NodeConfigs", refuseBadNodeConfigs)
	part(t, "an agent speaks for its own node only", ownNodeOnly)
	part(t, "flockctl shows the actual state", flockctlShows)
	part(t, "addresses", addresses)
	part(t, "anycast", func(t *testing.T) {
		anycastPool(t)
		part(t, "announced while Ready, by any of two pods", announcedWhileReady)
	})
	part(t, "addresses of Services", serviceStory)
	part(t, "network policies", networkPolicies)
	part(t, "a session's password is followed", sessionPassword)
	part(t, "no packet is lost while flock is replaced or killed", replaceFlock)
	part(t, "a node that comes back takes no pod before the router knows the way", comesBack)
	part(t, "a pod says that the agent is not running", agentNotRunning)
}

// TestOldestAPIServer is TestAPIServer with the oldest API server.
func TestOldestAPIServer(t *testing.T) { withAPIServer(t, components.Oldest) }

func lacksPodsAPI(t *testing.T) {
	if version := mustKubectl(t, "version"); strings.Count(version, components.OldestKubernetes) != 2 {
		t.Errorf("kubectl version: %s\nwant both the client and the server to be %s", version, components.OldestKubernetes)
	}
	said := mustLab(t, "flockctl", "check")
	t.Log(said)
	for _, node := range []string{"node1", "node2", "node3"} {
		if message := mustKubectl(t, "get", "nodeconfig", node, `--output=jsonpath={.status.conditions[?(@.type=="Supported")].status} {.status.conditions[?(@.type=="Supported")].message}`); !strings.HasPrefix(message, "True ") || !strings.Contains(message, "Pods API") {
			t.Errorf("%s: the condition Supported is %q, want it True with a message about the Pods API", node, message)
		}
	}
}
