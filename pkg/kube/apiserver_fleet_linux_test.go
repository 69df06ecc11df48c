//go:build apiserver

package kube

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/fleet"
)

// refusedConfigs: what pkg/config refuses, the API server refuses too, and in a
// template as well, where the field can be in one.
func refusedConfigs(t *testing.T, s *server) {
	files, err := filepath.Glob("../config/testdata/refused/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no NodeConfig in testdata/refused", err)
	}
	c, err := NewClient(s.Admin())
	if err != nil {
		t.Fatal(err)
	}
	refused := func(name, resource string, manifest []byte, want string) {
		t.Helper()
		object, err := yaml.YAMLToJSON(manifest)
		if err != nil {
			t.Fatal(err)
		}
		err = c.flock.Post().Resource(resource).Param("dryRun", "All").SetHeader("Content-Type", "application/json").Body(object).Do(t.Context()).Error()
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s as one of %s: %v; want it invalid: %q\n%s", name, resource, err, want, manifest)
		}
	}
	templates := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(b), "\n")
		want := strings.TrimPrefix(first, "# ")
		refused(filepath.Base(file), nodeConfigs, b, want)
		if manifest, bad := asTemplate(t, b); bad {
			refused(filepath.Base(file), "nodeconfigtemplates", manifest, strings.Replace(want, "spec.", "spec.template.", 1))
			templates++
		}
	}
	t.Logf("%d NodeConfigs and %d NodeConfigTemplates", len(files), templates)
}

// asTemplate is the manifest without what a template does not have, and whether it
// still has what is refused.
func asTemplate(t *testing.T, manifest []byte) ([]byte, bool) {
	t.Helper()
	nc, generic := &v1alpha1.NodeConfig{}, map[string]any{}
	if err := yaml.Unmarshal(manifest, nc); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(manifest, &generic); err != nil {
		t.Fatal(err)
	}
	spec := generic["spec"].(map[string]any)
	cidrs := spec["podCIDRs"].(map[string]any)
	delete(cidrs, "ipv6")
	delete(cidrs, "ipv4")
	for _, daemon := range []string{"bgp", "ospf"} {
		if d, ok := spec[daemon].(map[string]any); ok {
			delete(d, "routerID")
		}
	}
	if nc.Spec.BGP != nil {
		nc.Spec.BGP.RouterID = "192.0.2.11"
	}
	if nc.Spec.OSPF != nil {
		nc.Spec.OSPF.RouterID = "192.0.2.11"
	}
	bad := true // whatever the nodes' pod CIDRs
	six, four := []v1alpha1.CIDR{"2001:db8:ffff::/64"}, []v1alpha1.CIDR{"10.255.0.0/24"}
	for _, cidrs := range []v1alpha1.PodCIDRs{{IPv6: six}, {IPv4: four}, {IPv6: six, IPv4: four}} {
		nc.Spec.PodCIDRs.IPv6, nc.Spec.PodCIDRs.IPv4 = cidrs.IPv6, cidrs.IPv4
		_, err := config.ParseNode(nc)
		bad = bad && err != nil
	}
	out, err := yaml.Marshal(map[string]any{
		"apiVersion": generic["apiVersion"], "kind": "NodeConfigTemplate", "metadata": map[string]any{"name": "t"},
		"spec": map[string]any{"nodeSelector": map[string]any{}, "template": spec},
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, bad
}

const rackTemplate = `
apiVersion: flock.fritzlab.net/v1alpha1
kind: NodeConfigTemplate
metadata: {name: rack1}
spec:
  nodeSelector: {matchLabels: {rack: r1}}
  priority: 10
  template:
    defaults: {ipv4: true}
    bgp:
      localAS: 64601
      peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512, export: {med: 7}}]
`

func badTemplates(t *testing.T, s *server) {
	for _, c := range []struct{ from, to, want string }{
		{"localAS: 64601", "multipath: 2", "set either localAS"},
		{"localAS: 64601", "localAS: 64601\n      localASLabel: as", "set either localAS"},
		{"localAS: 64601", "localAS: 65535", "between 1 and 4294967294"},
		{"localAS: 64601", "localASLabel: 'a b'", "spec.template.bgp.localASLabel"},
		{"export: {med: 7}", "export: {localPreference: 7}", "RFC 4271 section 5.1.5"},
		{"localAS: 64601", "localAS: 64601\n      routerID: 192.0.2.1", `unknown field "spec.template.bgp.routerID"`},
		{"defaults: {ipv4: true}", "podCIDRs: {ipv4: [10.0.0.0/24]}", `unknown field "spec.template.podCIDRs.ipv4"`},
		{"{matchLabels: {rack: r1}}", "{matchExpressions: [{key: rack, operator: Is}]}", "an operator must be In or NotIn"},
		{"nodeSelector: {matchLabels: {rack: r1}}", "priority: 10", "spec.nodeSelector"},
		{"name: rack1", "name: " + strings.Repeat("r", 64), "at most 63 characters"},
	} {
		manifest := strings.Replace(rackTemplate, c.from, c.to, 1)
		if c.to == "priority: 10" {
			manifest = strings.Replace(rackTemplate, "nodeSelector: {matchLabels: {rack: r1}}\n  ", "", 1)
		}
		if manifest == rackTemplate {
			t.Fatalf("%q is not in the manifest", c.from)
		}
		if out, err := s.TryKubectl(manifest, "create", "--dry-run=server", "--filename=-"); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v %s, want %q", c.to, err, out, c.want)
		}
	}
	page, err := os.ReadFile("../../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := strings.Split(string(page), "```yaml\n")[1:]
	if len(examples) == 0 {
		t.Error("no examples in docs/fleet.md")
	}
	for _, e := range examples {
		e, _, _ = strings.Cut(e, "```")
		s.Kubectl(e, "create", "--dry-run=server", "--filename=-")
	}
	// Preference towards a peer that is internal by the AS of a label cannot be judged.
	unknown := strings.NewReplacer("localAS: 64601", "localASLabel: as", "export: {med: 7}", "export: {localPreference: 7}").Replace(rackTemplate)
	for _, good := range []string{rackTemplate, unknown, strings.Replace(rackTemplate, "localAS: 64601", "localASLabel: topology.example.com/as", 1)} {
		if out, err := s.TryKubectl(good, "create", "--dry-run=server", "--filename=-"); err != nil {
			t.Errorf("%s\n%s", out, good)
		}
	}
}

// fleetOf follows what an agent follows for the templates.
type fleetOf struct {
	client    *Client
	node      *Cache[*corev1.Node]
	config    *Cache[*v1alpha1.NodeConfig]
	templates *Cache[*v1alpha1.NodeConfigTemplate]
	name      string
}

func (s *server) fleetOf(t *testing.T, node string) *fleetOf {
	t.Helper()
	c, err := NewClient(s.Agent(node))
	if err != nil {
		t.Fatal(err)
	}
	nothing := func() {}
	f := &fleetOf{c, c.Node(node, nothing), c.NodeConfig(node, nothing), c.NodeConfigTemplates(nothing), node}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{}, 3)
	for _, run := range []func(context.Context){f.node.Run, f.config.Run, f.templates.Run} {
		go func() { run(ctx); ended <- struct{}{} }()
	}
	t.Cleanup(func() {
		cancel()
		for range 3 {
			<-ended
		}
	})
	return f
}

// sees waits until the agent's copy of its NodeConfig is as the condition says.
func (f *fleetOf) sees(t *testing.T, as func(*v1alpha1.NodeConfig) bool) *v1alpha1.NodeConfig {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if c, ok := f.config.Get(f.name); ok && as(c) {
			return c
		}
	}
	t.Fatal("the agent does not see the change of its NodeConfig")
	return nil
}

// becomes waits for a decision.
func (f *fleetOf) becomes(t *testing.T, action fleet.Action, reason fleet.Reason, message string) fleet.Decision {
	t.Helper()
	var last string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if !f.node.Synced() || !f.config.Synced() || !f.templates.Synced() {
			continue
		}
		n, ok := f.node.Get(f.name)
		if !ok {
			continue
		}
		current, _ := f.config.Get(f.name)
		v := fleet.Decide(fleet.NodeOf(n), current, f.templates.List())
		if v.Action == action && v.Reason == reason && strings.Contains(v.Message, message) {
			return v
		}
		last = fmt.Sprintf("%+v", v)
	}
	t.Fatalf("the decision is %s, want %d %s %q", last, action, reason, message)
	return fleet.Decision{}
}

// templates: a NodeConfig is made from a template by an agent, with its rights and no
// more, and what the API server makes of it needs no further change.
func templates(t *testing.T, s *server) {
	for _, node := range []string{"node1", "node2"} {
		s.Kubectl(fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q,"labels":{"rack":"r1"}}}`, node), "create", "--filename=-")
	}
	s.Kubectl(`{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.11"}]}}`, "patch", "node", "node1", "--subresource=status", "--type=merge", "--patch-file=/dev/stdin")
	f := s.fleetOf(t, "node1")
	f.becomes(t, fleet.Leave, fleet.NoTemplate, "there is no NodeConfigTemplate")
	s.Kubectl(rackTemplate, "create", "--filename=-")
	f.becomes(t, fleet.Leave, fleet.NotApplicable, "node node1 has no spec.podCIDRs yet")
	s.Kubectl("", "patch", "node", "node1", "--type=merge", `--patch={"spec":{"podCIDR":"2001:db8:101::/64","podCIDRs":["2001:db8:101::/64","10.201.0.0/24"]}}`)
	v := f.becomes(t, fleet.Create, fleet.FromTemplate, "NodeConfigTemplate rack1, generation 1")
	if n, _ := f.node.Get("node1"); len(n.ManagedFields) > 0 || len(n.Status.Conditions) > 0 || n.Spec.PodCIDR != "" {
		t.Errorf("of the Node more is kept than is needed: %+v", n)
	}

	forbidden := func(what string, err error, want string) {
		t.Helper()
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it forbidden: %q", what, err, want)
		}
	}
	byHand := v.Object.DeepCopy()
	byHand.Labels = nil
	forbidden("an agent makes one that looks written by hand", f.client.CreateNodeConfig(t.Context(), byHand), "would be, one that was written by hand")
	of2 := v.Object.DeepCopy()
	of2.Name = "node2"
	forbidden("an agent makes another node's", f.client.CreateNodeConfig(t.Context(), of2), `the agent on node "node1" may write its own NodeConfig`)
	if err := f.client.CreateNodeConfig(t.Context(), v.Object); err != nil {
		t.Fatal(err)
	}
	if err := f.client.CreateNodeConfig(t.Context(), v.Object); !apierrors.IsAlreadyExists(err) {
		t.Errorf("made twice: %v", err)
	}
	// The API server's defaults included.
	f.becomes(t, fleet.Leave, fleet.FromTemplate, "generation 1")
	if got := s.Kubectl("", "get", "nodeconfig", "node1", "--output=jsonpath={.metadata.labels} {.spec}"); !strings.Contains(got, `"flock.fritzlab.net/template":"rack1"`) || !strings.Contains(got, `"routerID":"192.0.2.11"`) {
		t.Errorf("it is %s", got)
	}
	if got := strings.Fields(s.Kubectl("", "get", "nodeconfig", "node1", "--no-headers")); !slices.Contains(got, "rack1") {
		t.Errorf("kubectl get nodeconfig does not show the template: %q", got)
	}

	// A template that changes.
	s.Kubectl(strings.Replace(rackTemplate, "med: 7", "med: 8", 1), "apply", "--server-side", "--force-conflicts", "--filename=-")
	v = f.becomes(t, fleet.Update, fleet.FromTemplate, "generation 2")
	s.Kubectl("", "annotate", "nodeconfig", "node1", "note=by-a-person") // meanwhile
	if err := f.client.UpdateNodeConfig(t.Context(), v.Object); !apierrors.IsConflict(err) {
		t.Errorf("over an edit that the agent has not seen: %v, want a conflict", err)
	}
	for err := error(nil); ; {
		v = f.becomes(t, fleet.Update, fleet.FromTemplate, "generation 2")
		if err = f.client.UpdateNodeConfig(t.Context(), v.Object); err == nil {
			break
		} else if !apierrors.IsConflict(err) {
			t.Fatal(err)
		}
	}
	f.becomes(t, fleet.Leave, fleet.FromTemplate, "generation 2")
	made, _ := f.config.Get("node1")
	if made.Annotations["note"] != "by-a-person" || *made.Spec.BGP.Peers[0].Export.MED != 8 {
		t.Errorf("it is %+v", made)
	}

	// An edit that the agent would revert is refused. After a takeover the agent does not
	// write the object.
	if out, err := s.TryKubectl("", "patch", "nodeconfig", "node1", "--type=merge", `--patch={"spec":{"mtu":1400}}`); err == nil || !strings.Contains(out, "kubectl label nodeconfig node1 flock.fritzlab.net/template-") {
		t.Errorf("an edit beside the template: %v %s", err, out)
	}
	theirs := made.DeepCopy()
	s.Kubectl("", "label", "nodeconfig", "node1", "flock.fritzlab.net/template-")
	s.Kubectl("", "patch", "nodeconfig", "node1", "--type=merge", `--patch={"spec":{"mtu":1400}}`)
	f.becomes(t, fleet.Leave, fleet.ByHand, "")
	// The agent has seen the edit too: a write over an older version would be a conflict.
	now := f.sees(t, func(c *v1alpha1.NodeConfig) bool { return c.Spec.MTU == 1400 })
	theirs.ResourceVersion = now.ResourceVersion
	forbidden("an agent takes back what is a person's", f.client.UpdateNodeConfig(t.Context(), theirs), "written by hand")
	now = now.DeepCopy()
	now.Spec.MTU = 0
	forbidden("an agent changes what is a person's", f.client.UpdateNodeConfig(t.Context(), now), "written by hand")
	s.Kubectl("", "label", "nodeconfig", "node1", "flock.fritzlab.net/template=rack1") // given back
	v = f.becomes(t, fleet.Update, fleet.FromTemplate, "generation 2")
	forged := v.Object.DeepCopy()
	delete(forged.Labels, v1alpha1.TemplateLabel)
	forbidden("an agent forges a person's", f.client.UpdateNodeConfig(t.Context(), forged), "may not take it away")
	if err := f.client.PatchStatus(t.Context(), "node1", v1alpha1.NodeConfigStatus{Conditions: []metav1.Condition{}}); err != nil {
		t.Errorf("the status of its own: %v", err)
	}

	// Without a template, what is in force stays.
	s.Kubectl("", "delete", "nodeconfigtemplate", "rack1")
	f.becomes(t, fleet.Leave, fleet.NoTemplate, "there is no NodeConfigTemplate")
	s.Kubectl("", "delete", "nodeconfigs", "--all")
	s.Kubectl("", "delete", "nodes", "--all")
}
