package agent_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/routing/departure/stop"
)

// flockctl drain has the node withdraw its anycast addresses, also over a restart of the
// agent, until it is undone. What ends BIRD finds the agent's last decision.
func TestDeparture(t *testing.T) {
	t.Parallel()
	n := newNode(t, routedNodeConfig)
	api := n.serveAPI()
	api.nodes.register()
	api.put("a", 3, routedNodeConfig)
	n.start()
	api.says(n, "RoutingConfigured", metav1.ConditionFalse, "BIRD is not running") // the file is there for it
	n.startBIRD()
	n.startRouter()
	api.says(n, "SessionsUp", metav1.ConditionTrue, "")
	api.says(n, "Announcing", metav1.ConditionTrue, "")
	departing := func(want bool) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			conf, err := os.ReadFile(filepath.Join(n.state, "bird", "bird.conf"))
			if is := bytes.Contains(conf, []byte("bgp_community.add((65535,0))")); err != nil || is != want {
				return fmt.Errorf("%v: BIRD's configuration is that of a departing node: %t, want %t", err, is, want)
			}
			return nil
		})
	}
	departing(false)

	api.put("a", 3, strings.Replace(routedNodeConfig, `"name":"node1"`, `"name":"node1","annotations":{"flock.fritzlab.net/drain":"now"}`, 1))
	api.says(n, "Announcing", metav1.ConditionFalse, "flockctl drain node1 --undo")
	departing(true)
	n.kill()
	n.start()
	departing(true)
	if strings.Count(n.agentLog(), "BIRD has loaded a new configuration") > 2 {
		t.Errorf("the start of the agent has changed BIRD's configuration:\n%s", n.agentLog())
	}
	api.put("a", 3, routedNodeConfig)
	api.says(n, "Announcing", metav1.ConditionTrue, "")
	departing(false)

	// The Node is cordoned: the end of the pod is the node's departure.
	api.nodes.mu.Lock()
	cordoned := api.nodes.node.DeepCopy()
	cordoned.Spec.Unschedulable = true
	api.nodes.change(cordoned)
	api.nodes.mu.Unlock()
	decided := func(want stop.Decision) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			if got, err := stop.Read(filepath.Join(n.state, "bird")); err != nil || got != want {
				return fmt.Errorf("%+v, %v; want %+v", got, err, want)
			}
			return nil
		})
	}
	decided(stop.Decision{Leave: true, Reason: "Node node1 is cordoned"})
	departing(false)
	n.agent.Process.Signal(os.Interrupt)
	n.agent.Wait()
	decided(stop.Decision{Leave: true, Final: true, Reason: "Node node1 is cordoned"})
}
