package agent_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/routing/birdc"
)

// While BIRD waits for a router that is away, withdrawals do not reach the others: a
// roll-out does not go on to the next node.
func TestRollOutWaitsForRecovery(t *testing.T) {
	t.Parallel()
	config := strings.Replace(routedNodeConfig, `"peers":[`, `"peers":[{"name":"away","address":"2001:db8:ffff::9","remoteAS":64512},`, 1)
	n := newNode(t, config)
	api := n.serveAPI()
	api.put("a", 3, config)
	n.start()
	api.says(n, "RoutingConfigured", metav1.ConditionFalse, "NotLoaded ")
	api.says(n, "RoutingConfigured", metav1.ConditionFalse, "BIRD is not running")
	n.startBIRD()
	n.startRouter()
	readyz := func(want int, text string) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			if code, body := n.readyz(); code != want || !strings.Contains(body, text) {
				return fmt.Errorf("readyz: %d %s; want %d %s", code, body, want, text)
			}
			return nil
		})
	}
	readyz(http.StatusOK, "")

	conn, err := birdc.Dial(t.Context(), filepath.Join(n.state, "bird", "bird.ctl"))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.GracefulRestart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := conn.Ended(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.startBIRD()
	readyz(http.StatusServiceUnavailable, "BIRD has started again and announces and withdraws nothing until it has the routes of away")
	readyz(http.StatusOK, "")
}
