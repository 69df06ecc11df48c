package controller

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/seal"
)

func peersWith(keys string) (peers []v1alpha1.BGPPeer) {
	for i, k := range strings.Fields(keys) {
		peers = append(peers, v1alpha1.BGPPeer{Name: k, Address: fmt.Sprintf("192.0.2.%d", 101+i), RemoteAS: 64512, PasswordSecretRef: &v1alpha1.SecretKeyRef{Name: "tor", Key: k}})
	}
	return peers
}

// nodeOfRack is node1 of rack r1.
func nodeOfRack() *corev1.Node {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", Labels: map[string]string{"rack": "r1"}}}
	node.Spec.PodCIDRs = []string{"10.1.0.0/24"}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
	return node
}

// templateOfRack has peers with these passwords.
func templateOfRack(rack, keys string) *v1alpha1.NodeConfigTemplate {
	tmpl := &v1alpha1.NodeConfigTemplate{ObjectMeta: metav1.ObjectMeta{Name: rack}}
	tmpl.Spec.NodeSelector.MatchLabels = map[string]string{"rack": rack}
	tmpl.Spec.Template.BGP = &v1alpha1.BGPTemplate{LocalAS: 64601, BGPPeering: v1alpha1.BGPPeering{Peers: peersWith(keys)}}
	return tmpl
}

// TestMayHave: of a NodeConfig that its agent may write, the template says which passwords
// the node may have.
func TestMayHave(t *testing.T) {
	node, template := nodeOfRack(), templateOfRack
	for name, c := range map[string]struct {
		spec, has       string // keys in the spec, and in the status
		templated, bad  bool
		node            *corev1.Node
		templates       []*v1alpha1.NodeConfigTemplate
		wants, preserve string
	}{
		"by hand":                           {spec: "a b", wants: "a b"},
		"by hand, whatever templates say":   {spec: "a", node: node, templates: []*v1alpha1.NodeConfigTemplate{template("r1", "b")}, wants: "a"},
		"by hand and not valid":             {spec: "a b", bad: true, has: "c", wants: "c"},
		"as the template":                   {spec: "a", templated: true, node: node, templates: []*v1alpha1.NodeConfigTemplate{template("r1", "a")}, wants: "a"},
		"more than the template":            {spec: "a b c", templated: true, node: node, templates: []*v1alpha1.NodeConfigTemplate{template("r1", "a")}, wants: "a"},
		"another rack's":                    {spec: "b", templated: true, node: node, templates: []*v1alpha1.NodeConfigTemplate{template("r1", "a"), template("r2", "b")}, wants: "a"},
		"the template has changed":          {spec: "a", has: "a", templated: true, node: node, templates: []*v1alpha1.NodeConfigTemplate{template("r1", "b")}, wants: "b", preserve: "a"},
		"changed, and the node asks more":   {spec: "a c", has: "a", templated: true, node: node, templates: []*v1alpha1.NodeConfigTemplate{template("r1", "b")}, wants: "b", preserve: "a"},
		"changed, and the node has left it": {spec: "b", has: "a", templated: true, node: node, templates: []*v1alpha1.NodeConfigTemplate{template("r1", "b")}, wants: "b"},
		"no template":                       {spec: "a c", has: "a b", templated: true, node: node, wants: "a"},
		"none selects it":                   {spec: "a c", has: "a b", templated: true, node: node, templates: []*v1alpha1.NodeConfigTemplate{template("r2", "c")}, wants: "a"},
		"no Node":                           {spec: "a c", has: "a", templated: true, templates: []*v1alpha1.NodeConfigTemplate{template("r1", "c")}, wants: "a"},
		"not valid, from a template":        {spec: "a", bad: true, has: "a", templated: true, node: node, templates: []*v1alpha1.NodeConfigTemplate{template("r1", "b")}, wants: "b"},
	} {
		nc := &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}
		nc.Spec.PodCIDRs.IPv4 = []v1alpha1.CIDR{"10.1.0.0/24"}
		if c.bad {
			nc.Spec.PodCIDRs.IPv4[0] = "10.1.0.1/24"
		}
		nc.Spec.BGP = &v1alpha1.BGP{LocalAS: 64601, RouterID: "192.0.2.1", BGPPeering: v1alpha1.BGPPeering{Peers: peersWith(c.spec)}}
		if c.templated {
			nc.Labels = map[string]string{v1alpha1.TemplateLabel: "r1"}
		}
		if c.has != "" {
			nc.Status.Passwords = &v1alpha1.SealedPasswords{}
			for _, k := range strings.Fields(c.has) {
				nc.Status.Passwords.Items = append(nc.Status.Passwords.Items, v1alpha1.SealedPassword{Secret: "tor", Key: k})
			}
		}
		keys := func(refs []config.SecretRef) string {
			var all []string
			for _, r := range refs {
				all = append(all, r.Key)
			}
			slices.Sort(all)
			return strings.Join(all, " ")
		}
		refs, kept := mayHave(nc, c.node, c.templates)
		if keys(refs) != c.wants || keys(kept) != c.preserve {
			t.Errorf("%s: it may have %q and keeps %q, want %q and %q", name, keys(refs), keys(kept), c.wants, c.preserve)
		}
	}
}

// TestPasswordsFor: what is encrypted anew is what has changed, and no more.
func TestPasswordsFor(t *testing.T) {
	key, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	nc := &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}
	nc.Spec.PodCIDRs.IPv4 = []v1alpha1.CIDR{"10.1.0.0/24"}
	nc.Spec.BGP = &v1alpha1.BGP{LocalAS: 64601, RouterID: "192.0.2.1", BGPPeering: v1alpha1.BGPPeering{Peers: peersWith("a b")}}
	secrets := map[string]string{"a": "one", "b": "two"}
	version := "u/1"
	look := func(ref config.SecretRef) (routing.Password, string, string) {
		p, err := routing.ParsePassword([]byte(secrets[ref.Key]))
		if err != nil {
			return p, "", err.Error()
		}
		return p, version, ""
	}
	pass := func(what string, anew int, want string) {
		t.Helper()
		has := nc.Status.Passwords
		got, sealed, err := passwordsFor(nc, nil, nil, look)
		if err != nil || sealed != anew {
			t.Errorf("%s: %d were encrypted anew, %v; want %d", what, sealed, err, anew)
		}
		nc.Status.Passwords = got
		if anew == 0 && want != "" && has != nil && len(has.Items) == len(got.Items) && !strings.Contains(want, "<") && !reflect.DeepEqual(got, has) {
			t.Errorf("%s: it is written again", what)
		}
		var all []string
		if got != nil {
			for _, s := range got.Items {
				value := "<" + s.Message + ">"
				if s.Message == "" {
					opened, err := key.Open(seal.Use{Node: "node1", Secret: config.SecretRef{Name: s.Secret, Key: s.Key}}, s.Ciphertext)
					if value = string(opened); err != nil {
						value = "<sealed>"
					}
				}
				all = append(all, s.Key+"="+value)
			}
		}
		if strings.Join(all, " ") != want {
			t.Errorf("%s: %s, want %s", what, all, want)
		}
	}
	pass("no key of the node yet", 0, "")
	nc.Status.PasswordKey = key.Public()
	pass("first", 2, "a=one b=two")
	pass("again", 0, "a=one b=two")
	version = "u/2"
	secrets["a"] = "three"
	pass("another version of the Secret", 2, "a=three b=two")
	delete(secrets, "b")
	pass("one is gone", 0, "a=three b=<the password is empty>")
	secrets["b"] = "four"
	pass("and back", 1, "a=three b=four")
	nc.Status.PasswordKey = other.Public()
	pass("another key", 2, "a=<sealed> b=<sealed>")
	nc.Status.PasswordKey = key.Public()
	pass("the key is back", 2, "a=three b=four")
	nc.Spec.BGP.Peers = peersWith("b")
	pass("one reference less", 0, "b=four")
	bgp := nc.Spec.BGP
	nc.Spec.BGP = nil
	pass("none", 0, "")
	nc.Spec.BGP = bgp
	nc.Status.PasswordKey = "bad"
	if _, _, err := passwordsFor(nc, nil, nil, look); err == nil || !strings.Contains(err.Error(), "status.passwordKey") {
		t.Errorf("a bad key: %v", err)
	}
	text, _ := json.Marshal(nc)
	for _, p := range []string{"one", "two", "three", "four"} {
		if strings.Contains(string(text), p) {
			t.Errorf("the NodeConfig has %q", p)
		}
	}
}

// TestPasswordsInUse: a node that boots while it waits for its turn to follow its template gets
// the passwords in use again, for its new key, but none that is newer.
func TestPasswordsInUse(t *testing.T) {
	var keys [2]seal.Key
	for i := range keys {
		var err error
		if keys[i], err = seal.NewKey(); err != nil {
			t.Fatal(err)
		}
	}
	version, gone := "u/1", false
	look := func(ref config.SecretRef) (routing.Password, string, string) {
		if gone && ref.Key == "a" {
			return routing.Password{}, "", "there is no such Secret"
		}
		p, err := routing.ParsePassword([]byte("password " + ref.Key))
		if err != nil {
			t.Fatal(err)
		}
		return p, version, ""
	}
	nc := &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Name: "node1", Labels: map[string]string{v1alpha1.TemplateLabel: "r1"}}}
	nc.Spec.PodCIDRs.IPv4 = []v1alpha1.CIDR{"10.1.0.0/24"}
	nc.Spec.BGP = &v1alpha1.BGP{LocalAS: 64601, RouterID: "192.0.2.1", BGPPeering: v1alpha1.BGPPeering{Peers: peersWith("a")}}
	give := func(key seal.Key, templateKeys string) *v1alpha1.SealedPasswords {
		t.Helper()
		nc.Status.PasswordKey = key.Public()
		got, _, err := passwordsFor(nc, nodeOfRack(), []*v1alpha1.NodeConfigTemplate{templateOfRack("r1", templateKeys)}, look)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	nc.Status.Passwords = give(keys[0], "a")
	nc.Status.Passwords = give(keys[0], "b") // the template has changed
	after := func(what string, want string) {
		t.Helper()
		var got []string
		for _, s := range give(keys[1], "b").Items {
			opened, err := keys[1].Open(seal.Use{Node: "node1", Secret: config.SecretRef{Name: s.Secret, Key: s.Key}}, s.Ciphertext)
			if err != nil {
				t.Errorf("%s: %s: %v", what, s.Key, err)
			}
			got = append(got, string(opened))
		}
		slices.Sort(got)
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: the node has %q, want %s", what, got, want)
		}
	}
	after("the node has booted", "password a, password b")
	version = "u/2"
	after("a newer password", "password b")
	version, gone = "u/1", true
	after("the Secret is gone", "password b")
}
