//go:build apiserver

package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/kube"
)

// overlappingCIDRs: of pod CIDRs that several nodes have, those nodes learn, and no others.
func overlappingCIDRs(t *testing.T, s *server) {
	config := func(name, labels, cidr string) {
		t.Helper()
		s.apply(t, fmt.Sprintf(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfig","metadata":{"name":%q,"labels":{%s}},"spec":{"podCIDRs":{"ipv4":[%q]}}}`, name, labels, cidr))
	}
	becomes := func(name, want string) {
		t.Helper()
		got := ""
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
			got = s.Kubectl("", "get", "nodeconfig", name, "--output=jsonpath={range .status.podCIDROverlaps[*]}{.cidr}={.nodeConfig}:{.otherCIDR} {end}")
			if got = strings.TrimSpace(got); got == want {
				return
			}
		}
		t.Errorf("NodeConfig %s has %q, want %q", name, got, want)
	}
	config("node1", "", "10.201.0.0/24")
	config("node2", "", "10.202.0.0/24")
	stop := s.run(t)
	config("node3", "", "10.201.0.0/16")
	becomes("node1", "10.201.0.0/24=node3:10.201.0.0/16")
	becomes("node3", "10.201.0.0/16=node1:10.201.0.0/24")

	// What an agent says of its own node counts for that one alone. Its report leaves what
	// flock-controller has found.
	agent, err := kube.NewClient(s.Agent("node3"))
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.PatchStatus(t.Context(), "node3", v1alpha1.NodeConfigStatus{RetiredCIDRs: []string{"10.202.0.0/16"}}); err != nil {
		t.Fatal(err)
	}
	becomes("node3", "10.201.0.0/16=node1:10.201.0.0/24 10.202.0.0/16=node2:10.202.0.0/24")
	becomes("node2", "")

	// Another instance goes on; without one, all stays.
	stop()
	config("node3", "", "10.203.0.0/24")
	becomes("node1", "10.201.0.0/24=node3:10.201.0.0/16")
	s.run(t)
	becomes("node1", "")
	becomes("node3", "10.202.0.0/16=node2:10.202.0.0/24")

	// A NodeConfig from a template, which its agent writes, has for sure what the Node has.
	s.Kubectl(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"node4"},"spec":{"podCIDR":"10.201.0.0/24","podCIDRs":["10.201.0.0/24"]}}`, "create", "--filename=-")
	config("node4", `"flock.fritzlab.net/template":"all"`, "10.202.0.0/24")
	becomes("node4", "10.201.0.0/24=node1:10.201.0.0/24 10.202.0.0/24=node2:10.202.0.0/24")
	becomes("node1", "10.201.0.0/24=node4:10.201.0.0/24")
	becomes("node2", "")
}
