//go:build cluster && alerts

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"flock.fritzlab.net/flock/lab/plan"
)

// The alerts of deploy/chart/monitoring that nothing here causes need what a lab cannot do for
// minutes without harm, or at all: an agent without a NodeConfig, a boot, a kernel that
// refuses, an API server that is slow, another release. promtool has them all
// (lab/deploy/alerts_test.go).
func init() {
	faster, everything = 10, true
	causes = append(causes, podsRouteDeleted, podsRefused, anycastNotReady, podSpoofs, configurationFlaps, poolUsedUp, podCIDRsOverlap, agentMissing, controllersAway)
}

// TestAlerts is the part of alerts alone, with more of them.
func TestAlerts(t *testing.T) {
	mustLab(t, "down") // what an earlier run may have left
	t.Cleanup(func() { mustLab(t, "down") })
	part(t, "up", func(t *testing.T) { mustLab(t, "up") })
	part(t, "prove", prove)
	part(t, "alerts", alertsFire)
}

// controllersAway: nobody has the Lease.
func controllersAway(*testing.T) cause {
	scale := func(t *testing.T, n int) {
		mustKubectl(t, "--namespace=flock-system", "scale", "deployment", "flock-controller", fmt.Sprintf("--replicas=%d", n))
	}
	return cause{
		alerts: []string{"FlockNoController"}, last: true,
		begin: func(t *testing.T) { scale(t, 0) },
		end:   func(t *testing.T) { scale(t, 2) },
	}
}

// agentMissing is a Node that no kubelet is for: flock's pod there never starts.
func agentMissing(*testing.T) cause {
	return cause{
		alerts: []string{"FlockAgentMissing"}, node: "missing",
		begin: func(t *testing.T) {
			apply(t, `{apiVersion: v1, kind: Node, metadata: {name: missing, labels: {flock.fritzlab.net/agent: ""}}}`)
		},
		end: func(t *testing.T) { mustKubectl(t, "delete", "node", "missing") },
	}
}

// poolUsedUp is a pool of two addresses, and two Services that have them.
func poolUsedUp(*testing.T) cause {
	services := ""
	for _, name := range []string{"first", "second"} {
		services += fmt.Sprintf(`
---
apiVersion: v1
kind: Service
metadata: {name: alerts-%s, namespace: default}
spec:
  type: LoadBalancer
  loadBalancerClass: flock.fritzlab.net/bgp
  ipFamilies: [IPv6]
  ipFamilyPolicy: SingleStack
  ports: [{port: 80}]
`, name)
	}
	return cause{
		alerts: []string{"FlockPoolNearlyUsedUp"},
		begin: func(t *testing.T) {
			apply(t, `
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: alerts-small}
spec:
  cidrs: ["2001:db8:a1e7::/127"]
  uses: [service]
  namespaceSelector: {}
`+services)
		},
		end: func(t *testing.T) {
			mustKubectl(t, "delete", "--namespace=default", "service", "alerts-first", "alerts-second")
			mustKubectl(t, "delete", "addresspool", "alerts-small")
		},
	}
}

// podCIDRsOverlap are the NodeConfigs of two nodes that are not there.
func podCIDRsOverlap(*testing.T) cause {
	return cause{
		alerts: []string{"FlockPodCIDRsOverlap"},
		begin: func(t *testing.T) {
			for _, name := range []string{"alerts-first", "alerts-second"} {
				apply(t, fmt.Sprintf(`
apiVersion: flock.fritzlab.net/v1alpha1
kind: NodeConfig
metadata: {name: %s}
spec: {podCIDRs: {ipv6: ["2001:db8:a1e8::/64"]}}
`, name))
			}
		},
		end: func(t *testing.T) { mustKubectl(t, "delete", "nodeconfig", "alerts-first", "alerts-second") },
	}
}

func podsRouteDeleted(t *testing.T) cause {
	address := podsAddress(t, 1)
	return cause{
		alerts: []string{"FlockKernelRepairs"}, node: "node2",
		begin: func(*testing.T) {},
		again: func(*testing.T) {
			// Not there is right too: the agent waits between repairs of a fight.
			_, _ = lab("exec", "node2", "--", "ip", "-6", "route", "del", address, "proto", "85")
		},
		end: func(*testing.T) {},
	}
}

// podsRefused ask for what they may not have. There are many: the kubelet waits between
// its tries.
func podsRefused(t *testing.T) cause {
	c := newPodClient(t)
	c.namespaces(t, "refused")
	return cause{
		alerts: []string{"FlockADDFails"}, node: "node2",
		begin: func(t *testing.T) {
			for i := range 8 {
				c.create(t, "refused", fmt.Sprint("refused-", i), "node2", map[string]string{"flock.fritzlab.net/ipv4": "maybe"})
			}
		},
		end: func(t *testing.T) { mustKubectl(t, "--namespace=refused", "delete", "pods", "--all", "--wait=false") },
	}
}

// anycastNotReady is a pod at an anycast address that is Ready once, and then no more.
func anycastNotReady(*testing.T) cause {
	return cause{
		alerts: []string{"FlockAnycastAddressesWithdrawn"}, node: "node1",
		begin: func(t *testing.T) {
			apply(t, `
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: alerts}
spec:
  cidrs: ["2001:db8:55::/64"]
  uses: [anycast]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: demo}}
---
apiVersion: v1
kind: Pod
metadata:
  name: once
  namespace: demo
  annotations: {flock.fritzlab.net/anycast: "2001:db8:55::1"}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  readinessGates: [{conditionType: test.fritzlab.net/once}]
  containers: [{name: echo, image: "echo:dev", imagePullPolicy: Never}]
`)
			for _, ready := range []string{"True", "False"} {
				mustKubectl(t, "--namespace=demo", "patch", "pod", "once", "--subresource=status", "--type=strategic",
					`--patch={"status":{"conditions":[{"type":"test.fritzlab.net/once","status":"`+ready+`"}]}}`)
				mustKubectl(t, "--namespace=demo", "wait", "--for=condition=Ready="+ready, "pod", "once", "--timeout=60s")
			}
		},
		end: func(t *testing.T) {
			mustKubectl(t, "--namespace=demo", "delete", "pod", "once")
			mustKubectl(t, "delete", "addresspool", "alerts")
		},
	}
}

func podSpoofs(t *testing.T) cause {
	c := newPodClient(t)
	c.namespaces(t, "liars")
	c.create(t, "liars", "liar", "node2", nil)
	liar := c.ready(t, "liars", "liar", 1)[0]
	netns := c.netns(t, liar)
	to := listenUDP(t, plan.OutsideHost.IPv6.Addr())
	return cause{
		alerts: []string{"FlockPodSpoofs"}, node: "node2",
		begin: func(*testing.T) {},
		again: func(t *testing.T) { sendUDP(t, netns, netip.MustParseAddr("2001:db8:53::53"), to, "spoofed") },
		end:   func(t *testing.T) { c.remove(t, "liars", "liar") },
	}
}

// configurationFlaps is a NodeConfig that somebody changes back and forth.
func configurationFlaps(t *testing.T) cause {
	keepNodeConfig(t, "node2")
	n := 0
	return cause{
		alerts: []string{"FlockBIRDReloads"}, node: "node2",
		begin: func(*testing.T) {},
		again: func(t *testing.T) {
			n++
			mustKubectl(t, "patch", "nodeconfig", "node2", "--type=json", fmt.Sprintf(`--patch=[{"op": "add", "path": "/spec/bgp/peers/0/export", "value": {"med": %d}}]`, 1+n%2))
		},
		end: func(*testing.T) {},
	}
}
