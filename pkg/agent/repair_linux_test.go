package agent_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What another program deletes comes back without a restart, and is counted; what
// cannot be repaired is in the condition, in STATUS and in /readyz until it can.
func TestKernelIsKept(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	n.start()
	p := n.sandbox("a")
	addrs := p.mustAdd()
	api.says(n, "KernelInSync", metav1.ConditionTrue, "")
	back := func(what string, present func() bool) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			if !present() {
				return fmt.Errorf("%s is not back", what)
			}
			return nil
		})
	}
	summary := func() bool {
		return strings.Contains(n.host.IP("-6", "route"), "unreachable 2001:db8:1::/64 dev lo proto 85 metric 512")
	}
	n.host.IP("-6", "route", "flush", "proto", "85")
	back("the summary", summary)
	back("the pod's route", func() bool { return len(n.routes()) == len(addrs) })
	for _, addr := range addrs {
		n.reaches(n.router, p, addr)
	}
	if _, metrics := n.get("/metrics"); strings.Contains(metrics, `flock_kernel_repairs_total{kind="route"} 0`) || !strings.Contains(metrics, `flock_kernel_repairs_total{kind="route"}`) {
		t.Errorf("no repair of a route was counted:\n%s", metrics)
	}

	// A route of another program that wins.
	n.host.IP("-6", "route", "add", "blackhole", "2001:db8:1::/64", "metric", "100")
	api.says(n, "KernelInSync", metav1.ConditionFalse, "ip route del blackhole 2001:db8:1::/64")
	if code, body := n.get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "2001:db8:1::/64") {
		t.Errorf("readyz: %d %s", code, body)
	}
	n.host.IP("-6", "route", "del", "blackhole", "2001:db8:1::/64", "metric", "100")
	api.says(n, "KernelInSync", metav1.ConditionTrue, "")
	if code, body := n.get("/readyz"); code != http.StatusOK {
		t.Errorf("readyz: %d %s", code, body)
	}

	// One that is in the place of the node's own.
	n.host.IP("-4", "route", "replace", "unreachable", "10.1.0.0/24", "metric", "512", "proto", "static")
	n.host.IP("-6", "route", "del", "unreachable", "2001:db8:1::/64", "metric", "512") // is a reason to look
	api.says(n, "KernelInSync", metav1.ConditionFalse, "OutOfSync ")
	api.says(n, "KernelInSync", metav1.ConditionFalse, "10.1.0.0/24")
	api.says(n, "Ready", metav1.ConditionFalse, "KernelOutOfSync ")
	api.says(n, "Ready", metav1.ConditionFalse, "10.1.0.0/24")
	if _, err := n.status(); err == nil || !strings.Contains(err.Error(), "10.1.0.0/24") {
		t.Errorf("STATUS: %v", err)
	}
	n.host.IP("-4", "route", "del", "unreachable", "10.1.0.0/24", "metric", "512", "proto", "static")
	api.says(n, "KernelInSync", metav1.ConditionTrue, "")
	api.says(n, "Ready", metav1.ConditionTrue, "")
	back("the summary", func() bool {
		return strings.Contains(n.host.IP("-4", "route"), "unreachable 10.1.0.0/24 proto 85 metric 512")
	})
}
