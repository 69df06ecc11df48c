//go:build apiserver

package controller

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/routing/seal"
)

// agentOf is what the agent of a node does for its passwords.
type agentOf struct {
	t      *testing.T
	s      *server
	node   string
	client *kube.Client
	key    seal.Key
}

// agent makes a node's key and publishes it, with an agent's rights.
func (s *server) agent(t *testing.T, node string) *agentOf {
	t.Helper()
	c, err := kube.NewClient(s.Agent(node))
	if err != nil {
		t.Fatal(err)
	}
	a := &agentOf{t: t, s: s, node: node, client: c}
	a.reboot()
	return a
}

// reboot has the node make another key.
func (a *agentOf) reboot() {
	a.t.Helper()
	var err error
	if a.key, err = seal.NewKey(); err != nil {
		a.t.Fatal(err)
	}
	a.report()
}

func (a *agentOf) report() {
	a.t.Helper()
	if err := a.client.PatchStatus(a.t.Context(), a.node, v1alpha1.NodeConfigStatus{PasswordKey: a.key.Public(), Conditions: []metav1.Condition{}}); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agentOf) get() *v1alpha1.NodeConfig {
	a.t.Helper()
	nc := &v1alpha1.NodeConfig{}
	if err := a.client.Flock().Get().Resource("nodeconfigs").Name(a.node).Do(a.t.Context()).Into(nc); err != nil {
		a.t.Fatal(err)
	}
	return nc
}

// reads is what the node can make of its NodeConfig: each password, or in < > why there is
// none.
func (a *agentOf) reads() string {
	a.t.Helper()
	p := a.get().Status.Passwords
	if p == nil {
		return ""
	}
	var all []string
	for _, s := range p.Items {
		what := "<" + s.Message + ">"
		if s.Message == "" {
			value, err := a.key.Open(seal.Use{Node: a.node, Secret: config.SecretRef{Name: s.Secret, Key: s.Key}}, s.Ciphertext)
			if what = string(value); err != nil {
				what = "<sealed>"
			}
		}
		all = append(all, s.Secret+"."+s.Key+"="+what)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (a *agentOf) becomes(what, want string) (took time.Duration) {
	a.t.Helper()
	began := time.Now()
	for deadline := began.Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if a.reads() == want {
			return time.Since(began)
		}
	}
	a.t.Fatalf("%s: node %s reads %q, want %q", what, a.node, a.reads(), want)
	return 0
}

func (s *server) secret(t *testing.T, data string) {
	t.Helper()
	s.apply(t, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"tor","namespace":"flock-system"},"stringData":`+data+`}`)
}

// withPasswords is a NodeConfig whose peers have the keys of Secret tor as passwords.
func withPasswords(node, cidr string, keys ...string) string {
	var peers []string
	for i, k := range keys {
		peers = append(peers, fmt.Sprintf(`{"name":"p%d","address":"192.0.2.%d","remoteAS":64512,"passwordSecretRef":{"name":"tor","key":%q}}`, i, i+101, k))
	}
	bgp := ""
	if len(peers) > 0 {
		bgp = `,"bgp":{"localAS":64601,"routerID":"192.0.2.1","peers":[` + strings.Join(peers, ",") + `]}`
	}
	return fmt.Sprintf(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfig","metadata":{"name":%q},"spec":{"podCIDRs":{"ipv4":[%q]}%s}}`, node, cidr, bgp)
}

// sealedPasswords: a node gets the passwords that its configuration refers to, and nothing
// else of any Secret.
func sealedPasswords(t *testing.T, s *server) {
	t.Cleanup(func() {
		s.Kubectl("", "delete", "secret", "tor", "--namespace=flock-system", "--ignore-not-found")
		s.Kubectl("", "delete", "nodeconfigtemplates", "--all")
	})
	forbidden := func(what string, err error, want string) {
		t.Helper()
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it forbidden: %q", what, err, want)
		}
	}
	s.apply(t, withPasswords("node1", "10.201.0.0/24", "a", "b"))
	s.apply(t, withPasswords("node2", "10.202.0.0/24", "a"))
	node1, node2 := s.agent(t, "node1"), s.agent(t, "node2")
	stop := s.run(t)
	node1.becomes("no Secret", "tor.a=<there is no such Secret> tor.b=<there is no such Secret>")
	s.secret(t, `{"a":"one"}`)
	node1.becomes("one key", "tor.a=one tor.b=<the Secret has no such key>")
	node2.becomes("one key", "tor.a=one")
	node1.report() // leaves them in place
	node1.becomes("after a report", "tor.a=one tor.b=<the Secret has no such key>")

	// What an agent may not.
	core := s.Core(s.Agent("node1"))
	forbidden("reads a Secret", core.Get().Namespace("flock-system").Resource("secrets").Name("tor").Do(t.Context()).Error(), "secrets")
	forbidden("lists Secrets", core.Get().Namespace("flock-system").Resource("secrets").Do(t.Context()).Error(), "secrets")
	patch := func(node, patch string) error {
		return node1.client.Flock().Patch(types.MergePatchType).Resource("nodeconfigs").Name(node).SubResource("status").Body([]byte(patch)).Do(t.Context()).Error()
	}
	forbidden("another node's key", patch("node2", `{"status":{"passwordKey":"`+node1.key.Public()+`"}}`), `the agent on node "node1" may write its own NodeConfig and its status only, not that of "node2"`)
	for _, p := range []string{`null`, `{"items":[]}`, `{"items":[{"secret":"tor","key":"other","message":"mine"}]}`} {
		forbidden("its own passwords", patch("node1", `{"status":{"passwords":`+p+`}}`), "an agent may not write status.passwords")
	}
	for _, p := range []string{`{"template":"x","generation":1,"time":"2100-01-01T00:00:00Z"}`} {
		forbidden("its own turn", patch("node1", `{"status":{"templateTurn":`+p+`}}`), "an agent may not write status.templateTurn")
	}
	of1, _ := json.Marshal(node1.get().Status.Passwords.Items[0])
	other := v1alpha1.SealedPassword{}
	if err := json.Unmarshal(of1, &other); err != nil {
		t.Fatal(err)
	}
	if _, err := node2.key.Open(seal.Use{Node: "node1", Secret: config.SecretRef{Name: "tor", Key: "a"}}, other.Ciphertext); err == nil {
		t.Error("node2 opens what is sealed for node1")
	}

	// Changes.
	var took []time.Duration
	for i := range 20 {
		s.patchSecret(t, map[string][]byte{"a": fmt.Appendf(nil, "password-%d", i)})
		took = append(took, node2.becomes("changed", fmt.Sprintf("tor.a=password-%d", i)))
	}
	slices.Sort(took)
	t.Logf("a changed password is in the NodeConfig after %s (median), %s at most", took[10].Round(time.Millisecond), took[19].Round(time.Millisecond))
	if took[19] > time.Second {
		t.Errorf("a changed password took %s", took[19])
	}
	for bad, why := range map[string]string{"": "empty", "a\n": "line break", strings.Repeat("a", 81): "81 bytes"} {
		s.patchSecret(t, map[string][]byte{"a": []byte(bad)})
		node2.awaits(t, "a bad password", func(now string) bool { return strings.Contains(now, why) })
	}
	s.secret(t, `{"a":"one","b":"two"}`)
	node1.becomes("both", "tor.a=one tor.b=two")
	node1.reboot()
	if got := node1.reads(); got == "tor.a=one tor.b=two" {
		t.Log("the controller was faster than the look")
	}
	node1.becomes("another key", "tor.a=one tor.b=two")
	s.apply(t, withPasswords("node1", "10.201.0.0/24", "b"))
	node1.becomes("one reference less", "tor.b=two")

	// Another controller finds nothing to do, nor does anybody's label on the Secret.
	node2.becomes("quiet", "tor.a=one")
	before := node1.get().ResourceVersion
	stop()
	stop = s.run(t)
	s.apply(t, withPasswords("node2", "10.202.0.0/24"))
	node2.becomes("no reference", "") // it works
	if after := node1.get().ResourceVersion; after != before {
		t.Errorf("another controller has written NodeConfig node1: version %s, was %s", after, before)
	}

	s.Kubectl("", "delete", "secret", "tor", "--namespace=flock-system")
	node1.becomes("deleted", "tor.b=<there is no such Secret>")
	stop()
	s.secret(t, `{"a":"one","b":"three","other":"not-for-nodes"}`)
	s.run(t)
	node1.becomes("changed while no controller worked", "tor.b=three")
	templatedPasswords(t, s)
}

func (a *agentOf) awaits(t *testing.T, what string, is func(string) bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if is(a.reads()) {
			return
		}
	}
	t.Fatalf("%s: node %s reads %q", what, a.node, a.reads())
}

func (s *server) patchSecret(t *testing.T, data map[string][]byte) {
	t.Helper()
	patch, err := json.Marshal(corev1.Secret{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.core.Secrets("flock-system").Patch(t.Context(), "tor", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// templatedPasswords: of a NodeConfig that its agent may write, the template says which
// passwords the node may have.
func templatedPasswords(t *testing.T, s *server) {
	template := func(key string) string {
		return fmt.Sprintf(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfigTemplate","metadata":{"name":"all"},"spec":{"nodeSelector":{"matchLabels":{"rack":"r1"}},"template":{"bgp":{"localAS":64601,"peers":[{"name":"p0","address":"192.0.2.101","remoteAS":64512,"passwordSecretRef":{"name":"tor","key":%q}}]}}}}`, key)
	}
	s.apply(t, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"node3","labels":{"rack":"r1"}},"spec":{"podCIDR":"10.203.0.0/24","podCIDRs":["10.203.0.0/24"]}}`)
	s.Kubectl(`{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.13"}]}}`, "patch", "node", "node3", "--subresource=status", "--type=merge", "--patch-file=/dev/stdin")
	s.apply(t, template("a"))
	agent, err := kube.NewClient(s.Agent("node3"))
	if err != nil {
		t.Fatal(err)
	}
	// The agent writes what it wants into its own NodeConfig.
	greedy := &v1alpha1.NodeConfig{}
	if err := json.Unmarshal([]byte(withPasswords("node3", "10.203.0.0/24", "a", "b", "other")), greedy); err != nil {
		t.Fatal(err)
	}
	greedy.Labels = map[string]string{v1alpha1.TemplateLabel: "all"}
	if err := agent.CreateNodeConfig(t.Context(), greedy); err != nil {
		t.Fatal(err)
	}
	node3 := s.agent(t, "node3")
	node3.becomes("more than its template has", "tor.a=one")

	// Until the agent has followed the template, it has both; what it has left is not followed.
	s.apply(t, template("b"))
	node3.becomes("the template changes", "tor.a=one tor.b=three")
	s.patchSecret(t, map[string][]byte{"a": []byte("four"), "b": []byte("five")})
	node3.becomes("passwords change", "tor.a=one tor.b=five")

	// Without a template the node keeps what it has, and gets no more.
	s.Kubectl("", "delete", "nodeconfigtemplate", "all")
	node3.becomes("no template", "tor.a=four tor.b=five")
	node3.reboot()
	node3.becomes("no template, another key", "tor.a=four tor.b=five")
	s.Kubectl("", "delete", "node", "node3")
	s.patchSecret(t, map[string][]byte{"a": []byte("six")})
	node3.becomes("no Node", "tor.a=six tor.b=five")
}

// passwordsOfMany: a password that many nodes share.
func passwordsOfMany(t *testing.T, s *server) {
	const nodes = 300
	t.Cleanup(func() { s.Kubectl("", "delete", "secret", "tor", "--namespace=flock-system", "--ignore-not-found") })
	s.secret(t, `{"a":"one"}`)
	var all strings.Builder
	for i := range nodes {
		fmt.Fprintln(&all, withPasswords(fmt.Sprintf("many%d", i), fmt.Sprintf("10.%d.%d.0/24", 100+i/256, i%256), "a"))
	}
	s.apply(t, all.String())
	key, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for i := range nodes {
		if err := s.flock.PatchStatus(t.Context(), fmt.Sprintf("many%d", i), v1alpha1.NodeConfigStatus{PasswordKey: key.Public(), Conditions: []metav1.Condition{}}); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	s.run(t)
	have := func(password string) (n int) {
		list := &v1alpha1.NodeConfigList{}
		if err := s.flock.Flock().Get().Resource("nodeconfigs").Do(t.Context()).Into(list); err != nil {
			t.Fatal(err)
		}
		for _, nc := range list.Items {
			if p := nc.Status.Passwords; p != nil && len(p.Items) == 1 {
				value, _ := key.Open(seal.Use{Node: nc.Name, Secret: config.SecretRef{Name: "tor", Key: "a"}}, p.Items[0].Ciphertext)
				if string(value) == password {
					n++
				}
			}
		}
		return n
	}
	all300 := func(password string) time.Duration {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); have(password) < nodes; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d nodes have the password", have(password), nodes)
			}
		}
		return time.Since(began).Round(time.Millisecond)
	}
	first := all300("one")
	began = time.Now()
	s.patchSecret(t, map[string][]byte{"a": []byte("two")})
	t.Logf("%d nodes: %s after the start of a controller, %s after a change of their password", nodes, first, all300("two"))
}
