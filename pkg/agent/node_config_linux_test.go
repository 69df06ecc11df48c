package agent_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What is refused must stay to be seen, though the last good one is in force.
func TestRefusedNodeConfigIsReported(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	n.start()
	api.accepted(n, 3, metav1.ConditionTrue, "")

	api.put("a", 4, strings.Replace(nodeConfig, "10.1.0.0/24", "10.1.0.7/24", 1))
	api.accepted(n, 4, metav1.ConditionFalse, "spec.podCIDRs.ipv4[0]")
	p := n.sandbox("a")
	if addrs := p.mustAdd(); len(addrs) != 2 {
		t.Errorf("the pod has %v, want what generation 3 gives", addrs)
	}
	api.accepted(n, 4, metav1.ConditionFalse, "spec.podCIDRs.ipv4[0]")

	api.put("a", 5, nodeConfig)
	api.accepted(n, 5, metav1.ConditionTrue, "")
}

// A NodeConfig that was deleted and made again looks like the old one, but has no
// status.
func TestNodeConfigMadeAgainGetsItsStatus(t *testing.T) {
	t.Parallel()
	n := newNode(t, "")
	api := n.serveAPI()
	api.put("a", 1, nodeConfig)
	n.start()
	api.accepted(n, 1, metav1.ConditionTrue, "")
	for _, uid := range []types.UID{"b", "c", "d"} { // at the latest the last finds an agent with nothing else to write
		api.put(uid, 1, nodeConfig)
		api.accepted(n, 1, metav1.ConditionTrue, "")
	}
}

// The copy of another node's NodeConfig, as after a change of --node-name, gives
// this one that node's addresses.
func TestKeptNodeConfigOfAnotherNode(t *testing.T) {
	t.Parallel()
	n := newNode(t, strings.Replace(nodeConfig, "node1", "node2", 1))
	n.start()
	if addrs, err := n.sandbox("a").add(); err == nil || !strings.Contains(err.Error(), "NodeConfig node1") {
		t.Errorf("ADD: %v, %v; want an error that waits for NodeConfig node1", addrs, err)
	}
}
