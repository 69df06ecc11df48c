package agent_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	api.accepted(n, 4, metav1.ConditionFalse, "NotInForce ")
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

// An agent that is not to ask the runtime says that it does not, and serves pods.
func TestWithoutExitSource(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 1, nodeConfig)
	n.start()
	api.accepted(n, 1, metav1.ConditionTrue, "")
	eventually(t, n.agentLog, func() error {
		if got := api.status().ExitSource; got != "none" {
			return fmt.Errorf("exitSource is %q, want none", got)
		}
		return nil
	})
	n.sandbox("a").mustAdd()
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

// The status of a NodeConfig that is not there any more is tried once when something
// changes, and not again and again.
func TestStatusOfADeletedNodeConfig(t *testing.T) {
	t.Parallel()
	config := strings.Replace(routedNodeConfig, `"remoteAS":64512`, `"remoteAS":64512,"disabled":true`, 1)
	n := newNode(t, config)
	api := n.serveAPI()
	api.put("a", 3, config)
	n.start()
	api.says(n, "RoutingConfigured", metav1.ConditionFalse, "BIRD is not running")
	api.remove()
	eventually(t, n.agentLog, func() error {
		if !strings.Contains(n.agentLog(), "the NodeConfig was deleted") {
			return errors.New("the agent has not seen that the NodeConfig is gone")
		}
		return nil
	})
	n.startBIRD() // it runs, and then it has a session: two pieces of news
	<-api.lost
	tries := 1
	for watched := time.After(6 * time.Second); watched != nil; { // retries came after 1, 3 and 7 s
		select {
		case <-api.lost:
			tries++
		case <-watched:
			watched = nil
		}
	}
	if tries > 2 {
		t.Errorf("%d tries to write the status of a NodeConfig that was deleted\n%s", tries, n.agentLog())
	}
	api.put("b", 1, config)
	api.accepted(n, 1, metav1.ConditionTrue, "")
}

// What the node's links become later reaches pods and BIRD: addresses and MTU were
// read when the NodeConfig was applied, at a boot perhaps before the links were up.
func TestLinksThatChange(t *testing.T) {
	t.Parallel()
	config := strings.Replace(routedNodeConfig, `"spec":{`, `"spec":{"startup":{"sessions":"none"},`, 1)
	n := newNode(t, config)
	n.start()
	n.sandbox("before").mustAdd()
	conf := func() string {
		b, _ := os.ReadFile(filepath.Join(n.state, "bird", "bird.conf"))
		return string(b)
	}
	n.host.IP("link", "set", "uplink", "mtu", "1400")
	n.host.IP("addr", "add", "203.0.113.5/24", "dev", "uplink")
	eventually(t, n.agentLog, func() error {
		if !strings.Contains(conf(), "203.0.113.0/24") {
			return errors.New("BIRD's configuration does not refuse the link's new subnet")
		}
		return nil
	})
	p := n.sandbox("after")
	p.mustAdd()
	if link := p.ns.IP("link", "show", "eth0"); !strings.Contains(link, "mtu 1400 ") {
		t.Errorf("the uplink's MTU is 1400, the pod has %s", link)
	}
	n.host.IP("addr", "del", "203.0.113.5/24", "dev", "uplink")
	eventually(t, n.agentLog, func() error {
		if strings.Contains(conf(), "203.0.113.0/24") {
			return errors.New("BIRD's configuration refuses a subnet that is no link's")
		}
		return nil
	})
}
