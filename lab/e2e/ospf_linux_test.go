//go:build cluster

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
)

// ospfLab is the lab with a router that speaks OSPF.
const ospfLab = "ospf"

// TestOSPF: what make lab proves holds with OSPF in place of BGP, nothing else
// changed; and the routes are at the router at the configured cost, those of
// anycast addresses while their pods are Ready.
func TestOSPF(t *testing.T) {
	run := func(t *testing.T, stdin string, args ...string) string {
		t.Helper()
		out, err := labNamed(ospfLab, stdin, args...)
		if err != nil {
			t.Fatalf("lab %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	run(t, "", "down")
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("KEEP_LAB") != "" {
			t.Logf("the lab is kept: bin/lab --name %s status", ospfLab)
			return
		}
		run(t, "", "down")
	})
	part(t, "up", func(t *testing.T) { run(t, "", "up", "--routing", "ospf") })
	part(t, "prove", func(t *testing.T) {
		said := run(t, "", "prove")
		t.Log(said)
		for _, n := range plan.Nodes(3) {
			for _, family := range []string{"ipv6", "ipv4"} {
				row := regexp.MustCompile("(?m)^" + n.Name() + "_" + family + " +Full *$")
				if !row.MatchString(said) {
					t.Errorf("the table has no row %s", row)
				}
			}
		}
	})
	part(t, "summaries at their cost", func(t *testing.T) {
		for _, n := range plan.Nodes(3) {
			for _, p := range n.Pods().All() {
				wantOSPF(t, run, p.String(), n, true)
			}
		}
	})
	part(t, "anycast while Ready", func(t *testing.T) {
		const anycast6, anycast4, gate = "2001:db8:53::1", "203.0.113.1", "test.fritzlab.net/open"
		node := plan.Nodes(2)[1]
		run(t, fmt.Sprintf(`
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: anycast}
spec:
  cidrs: ["2001:db8:53::/64", "203.0.113.0/24"]
  uses: [anycast]
  namespaceSelector: {}
---
apiVersion: v1
kind: Pod
metadata:
  name: anycast
  annotations: {flock.fritzlab.net/anycast: "%s,%s"}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  readinessGates: [{conditionType: %s}]
  containers: [{name: echo, image: "echo:dev", imagePullPolicy: Never}]
`, anycast6, anycast4, node.Name(), gate), "kubectl", "apply", "--filename=-")
		run(t, "", "kubectl", "wait", "--for=condition=ContainersReady", "pod/anycast", "--timeout=60s")
		// Twice: OSPF may hold back what it has just taken back, and must not lose it.
		for _, ready := range []bool{false, true, false, true} {
			run(t, "", "kubectl", "patch", "pod", "anycast", "--subresource=status", "--type=strategic",
				fmt.Sprintf(`--patch={"status":{"conditions":[{"type":%q,"status":%q}]}}`, gate, map[bool]string{true: "True", false: "False"}[ready]))
			began := time.Now()
			for _, addr := range []string{anycast6 + "/128", anycast4 + "/32"} {
				wantOSPF(t, run, addr, node, ready)
			}
			t.Logf("Ready %t: at the router after %s", ready, time.Since(began).Round(10*time.Millisecond))
		}
	})
}

// wantOSPF waits until the router has a route from a node, as an external one of
// type 1 at the node's cost and its own to the node, or has it no more.
func wantOSPF(t *testing.T, run func(*testing.T, string, ...string) string, prefix string, n plan.Node, there bool) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		route := run(t, "", "exec", plan.Tor, "--", "birdc", "show", "route", "all", "where", "net", "=", prefix)
		want := fmt.Sprintf("E1 (150/%d) [%s]", fabric.OSPFLinkCost+n.OSPFCost(), n.RouterID())
		if got := strings.Contains(route, prefix); got != there || there && !strings.Contains(route, want) {
			return fmt.Errorf("route to %s at the router: %s\nwant it: %t, with %s", prefix, route, there, want)
		}
		return nil
	})
}
