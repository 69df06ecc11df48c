//go:build cluster

package e2e

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/plan"
)

// fromTemplates: the last node's NodeConfig comes from templates for a while, as a
// whole fleet's would. Pods there keep on answering, and no session is reset.
func fromTemplates(t *testing.T) {
	began := time.Now()
	n := plan.Nodes(3)[2]
	rack := func(med int) string {
		return labTemplate("rack3", "priority: 10, nodeSelector: {matchLabels: {rack: r3}}", fmt.Sprintf("localAS: %d", n.AS()), med)
	}
	all := func(med int) string {
		return labTemplate("all", "nodeSelector: {}", "localASLabel: lab.flock.fritzlab.net/as", med)
	}
	put := func(manifest string) {
		t.Helper()
		if out, err := kubectl(manifest, "apply", "--filename=-"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	original := mustKubectl(t, "get", "nodeconfig", n.Name(), `--output=jsonpath={.metadata.annotations.kubectl\.kubernetes\.io/last-applied-configuration}`)
	t.Cleanup(func() { // as it was, but for the Node's pod CIDRs, which Kubernetes never lets go of
		mustKubectl(t, "delete", "nodeconfigtemplates", "--all")
		mustKubectl(t, "delete", "nodeconfig", n.Name(), "--ignore-not-found")
		put(original)
		mustKubectl(t, "label", "node", n.Name(), "rack-", "lab.flock.fritzlab.net/as-")
	})
	mustKubectl(t, "label", "node", n.Name(), "rack=r3", fmt.Sprintf("lab.flock.fritzlab.net/as=%d", n.AS()))
	mustKubectl(t, "patch", "node", n.Name(), "--type=merge",
		fmt.Sprintf(`--patch={"spec":{"podCIDR":"%[1]s","podCIDRs":["%[1]s","%[2]s"]}}`, n.Pods().IPv6, n.Pods().IPv4))
	put(rack(0) + "---" + all(20))

	var asked []*asking
	for _, url := range demoURLs(t, n.Name()) {
		asked = append(asked, ask(t, url))
	}
	routes := watchRoutes(t)
	was, sessions := nodeConfig(t, n), torSessions(t)

	// The same as before, by another way.
	mustKubectl(t, "delete", "nodeconfig", n.Name())
	made := isFrom(t, n, "rack3")
	if !reflect.DeepEqual(made.Spec, was.Spec) {
		t.Errorf("the template makes of it\n%v\nwritten by hand it was\n%v", made.Spec, was.Spec)
	}
	mustKubectl(t, "wait", "nodeconfig", n.Name(), "--for=condition=Templated", "--timeout=30s")
	mustKubectl(t, "wait", "nodeconfig", n.Name(), "--for=condition=Accepted", "--timeout=30s")

	// A peer's option.
	put(rack(10))
	torSees(t, n, 10)

	// The next best template, when the node leaves the rack.
	mustKubectl(t, "label", "node", n.Name(), "rack-")
	isFrom(t, n, "all")
	torSees(t, n, 20)

	// By hand, whatever the templates say.
	mustKubectl(t, "label", "nodeconfig", n.Name(), "flock.fritzlab.net/template-")
	byHand := func(med int) {
		t.Helper()
		mustKubectl(t, "patch", "nodeconfig", n.Name(), "--type=json", fmt.Sprintf(`--patch=[{"op":"replace","path":"/spec/bgp/peers/0/export/med","value":%d}]`, med))
		torSees(t, n, med)
	}
	byHand(30)
	put(all(40))
	byHand(31) // after which the agent has seen the template too
	if nc := nodeConfig(t, n); nc.Metadata.Labels["flock.fritzlab.net/template"] != "" {
		t.Errorf("the agent has taken it back: %+v", nc)
	}

	for _, other := range plan.Nodes(3)[:2] {
		if nc := nodeConfig(t, other); nc.Metadata.Labels["flock.fritzlab.net/template"] != "" {
			t.Errorf("what was written by hand for %s is now a template's", other.Name())
		}
	}
	if now := torSessions(t); !reflect.DeepEqual(now, sessions) {
		t.Errorf("the router's sessions are\n%v, were\n%v", now, sessions)
	}
	for _, a := range asked {
		a.allAnswered(t)
	}
	routes.noneLost(t)
	t.Logf("took %s", time.Since(began).Round(100*time.Millisecond))
}

// labTemplate is a template of the NodeConfigs that the lab gives its nodes, but for a
// MED towards the router's IPv6 address, if it is not 0.
func labTemplate(name, spec, as string, med int) string {
	export := ""
	if med != 0 {
		export = fmt.Sprintf(", export: {med: %d}", med)
	}
	return fmt.Sprintf(`
apiVersion: flock.fritzlab.net/v1alpha1
kind: NodeConfigTemplate
metadata: {name: %s}
spec: {%s, template: {defaults: {ipv6: true, ipv4: true}, bgp: {%s, peers: [
  {name: tor-ipv6, address: "%s", remoteAS: %[6]d%[5]s},
  {name: tor-ipv4, address: %[7]s, remoteAS: %[6]d}]}}}
`, name, spec, as, plan.TorLAN.IPv6.Addr(), export, plan.TorAS, plan.TorLAN.IPv4.Addr())
}

type aNodeConfig struct {
	Metadata struct{ Labels map[string]string }
	Spec     map[string]any
}

func nodeConfig(t *testing.T, n plan.Node) (nc aNodeConfig) {
	t.Helper()
	if err := json.Unmarshal([]byte(mustKubectl(t, "get", "nodeconfig", n.Name(), "--output=json")), &nc); err != nil {
		t.Fatal(err)
	}
	return nc
}

// isFrom waits until the node has a NodeConfig of that template.
func isFrom(t *testing.T, n plan.Node, template string) (nc aNodeConfig) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		out, err := kubectl("", "get", "nodeconfig", n.Name(), "--output=json")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if nc = (aNodeConfig{}); json.Unmarshal([]byte(out), &nc) != nil || nc.Metadata.Labels["flock.fritzlab.net/template"] != template {
			return fmt.Errorf("want it from template %s: %s", template, out)
		}
		return nil
	})
	return nc
}

// torSessions are the router's sessions with the nodes: state, since when, and how.
func torSessions(t *testing.T) map[string]string {
	t.Helper()
	sessions := map[string]string{}
	for line := range strings.Lines(mustLab(t, "exec", plan.Tor, "--", "birdc", "show", "protocols")) {
		if f := strings.Fields(line); len(f) >= 6 && f[1] == "BGP" {
			sessions[f[0]] = strings.Join(f[3:], " ")
		}
	}
	if len(sessions) != 6 {
		t.Fatalf("the router has sessions %v, want 6", sessions)
	}
	return sessions
}

// torSees waits until the router has the node's IPv6 summary with that MED.
func torSees(t *testing.T, n plan.Node, med int) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		out, err := lab("exec", plan.Tor, "--", "birdc", "show", "route", n.Pods().IPv6.String(), "protocol", n.Name()+"_ipv6", "all")
		if err != nil || !strings.Contains(out, fmt.Sprintf("BGP.med: %d\n", med)) {
			return fmt.Errorf("want MED %d: %v %s", med, err, out)
		}
		return nil
	})
}
