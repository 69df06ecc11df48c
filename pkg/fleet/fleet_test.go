package fleet

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

func node7() Node {
	return Node{
		Name: "node7", UID: "n7",
		Labels:      map[string]string{"rack": "r1", "example.com/as": "4200000007"},
		PodCIDRs:    []v1alpha1.CIDR{"10.244.7.0/24", "2001:db8:100:7::/64"},
		InternalIPs: []netip.Addr{netip.MustParseAddr("2001:db8::17"), netip.MustParseAddr("192.0.2.17")},
	}
}

// template is the NodeConfigTemplate of a manifest's spec, generation 3.
func template(t *testing.T, name, spec string) *v1alpha1.NodeConfigTemplate {
	t.Helper()
	nct := &v1alpha1.NodeConfigTemplate{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name + "-1"), Generation: 3}}
	if err := yaml.UnmarshalStrict([]byte(spec), &nct.Spec); err != nil {
		t.Fatal(err)
	}
	return nct
}

const everyNode = `
nodeSelector: {}
template:
  podCIDRs: {exclude: ["10.244.0.0/28"], quarantineSeconds: 5}
  defaults: {ipv4: true}
  mtu: 9000
  bgp:
    localASLabel: example.com/as
    multipath: 2
    peers: [{name: tor, address: "2001:db8::1", remoteAS: 64512}]
  ospf:
    cost: 5
    interfaces: [{name: eth0}]
`

func TestEverythingIsTaken(t *testing.T) {
	v := Decide(node7(), nil, []*v1alpha1.NodeConfigTemplate{template(t, "all", everyNode)})
	if v.Action != Create || v.Reason != FromTemplate || v.Message != "NodeConfigTemplate all, generation 3" {
		t.Fatalf("%+v", v)
	}
	got, err := yaml.Marshal(v.Object)
	if err != nil {
		t.Fatal(err)
	}
	const want = `metadata:
  annotations:
    flock.fritzlab.net/template-generation: "3"
    flock.fritzlab.net/template-uid: all-1
  labels:
    flock.fritzlab.net/template: all
  name: node7
  ownerReferences:
  - apiVersion: v1
    kind: Node
    name: node7
    uid: n7
spec:
  bgp:
    localAS: 4200000007
    multipath: 2
    peers:
    - address: 2001:db8::1
      name: tor
      remoteAS: 64512
    routerID: 192.0.2.17
  defaults:
    ipv4: true
  mtu: 9000
  ospf:
    cost: 5
    interfaces:
    - name: eth0
    routerID: 192.0.2.17
  podCIDRs:
    exclude:
    - 10.244.0.0/28
    ipv4:
    - 10.244.7.0/24
    ipv6:
    - 2001:db8:100:7::/64
    quarantineSeconds: 5
status: {}
`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A field that a NodeConfig gets and a template does not would silently be missing in
// a fleet. What is the node's alone is named here.
func TestTemplatesHaveAllFields(t *testing.T) {
	for _, c := range []struct {
		config, template any
		alone, more      []string // fields of the one, of the other
	}{
		{v1alpha1.NodeConfigSpec{}, v1alpha1.NodeTemplate{}, nil, nil},
		{v1alpha1.PodCIDRs{}, v1alpha1.PodCIDRSettings{}, []string{"ipv4", "ipv6"}, nil},
		{v1alpha1.BGP{}, v1alpha1.BGPTemplate{}, []string{"routerID"}, []string{"localASLabel"}},
		{v1alpha1.OSPF{}, v1alpha1.OSPFRouting{}, []string{"routerID"}, nil},
	} {
		have := slices.Concat(fields(reflect.TypeOf(c.template)), c.alone)
		want := slices.Concat(fields(reflect.TypeOf(c.config)), c.more)
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("%T with %v has %v\n%T with %v has %v", c.template, c.alone, have, c.config, c.more, want)
		}
	}
}

func fields(t reflect.Type) (names []string) {
	for i := range t.NumField() {
		name, option, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if option == "inline" {
			names = append(names, fields(t.Field(i).Type)...)
		} else {
			names = append(names, name)
		}
	}
	return names
}

func TestWhichTemplate(t *testing.T) {
	with := func(name, selector string, priority int) *v1alpha1.NodeConfigTemplate {
		return template(t, name, fmt.Sprintf("{nodeSelector: %s, priority: %d, template: {}}", selector, priority))
	}
	all, rack1, rack2 := with("all", "{}", 0), with("rack1", "{matchLabels: {rack: r1}}", 10), with("rack2", "{matchLabels: {rack: r2}}", 20)
	unreadable := "{matchLabels: {'no key': r2}}"
	for _, tc := range []struct {
		name      string
		templates []*v1alpha1.NodeConfigTemplate
		want      string // the template
		reason    Reason
		message   string
	}{
		{"the highest priority that matches", []*v1alpha1.NodeConfigTemplate{all, rack1, rack2}, "rack1", FromTemplate, "rack1, generation 3"},
		{"the only one", []*v1alpha1.NodeConfigTemplate{all}, "all", FromTemplate, ""},
		{"the first name among equals", []*v1alpha1.NodeConfigTemplate{with("b", "{}", 7), with("a", "{}", 7), with("0", "{}", 6)}, "a", FromTemplate, ""},
		{"negative", []*v1alpha1.NodeConfigTemplate{with("a", "{}", -1), all}, "all", FromTemplate, ""},
		{"expressions", []*v1alpha1.NodeConfigTemplate{with("gpu", "{matchExpressions: [{key: gpu, operator: Exists}]}", 9), with("cpu", "{matchExpressions: [{key: gpu, operator: DoesNotExist}]}", 8)}, "cpu", FromTemplate, ""},
		{"none", nil, "", NoTemplate, "there is no NodeConfigTemplate: create one that selects node node7"},
		{"no match", []*v1alpha1.NodeConfigTemplate{rack2}, "", NoTemplate, "none of the 1 NodeConfigTemplates selects node node7"},
		{"unreadable above", []*v1alpha1.NodeConfigTemplate{all, with("bad", unreadable, 1)}, "", NotApplicable, "NodeConfigTemplate bad: spec.nodeSelector is not a label selector: "},
		{"unreadable below", []*v1alpha1.NodeConfigTemplate{all, with("bad", unreadable, -1)}, "all", FromTemplate, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 2 {
				v := Decide(node7(), nil, tc.templates)
				if v.Reason != tc.reason || !strings.Contains(v.Message, tc.message) || v.Object != nil != (tc.want != "") {
					t.Fatalf("%+v", v)
				}
				if v.Object != nil && v.Object.Labels[v1alpha1.TemplateLabel] != tc.want {
					t.Errorf("from %s", v.Object.Labels[v1alpha1.TemplateLabel])
				}
				slices.Reverse(tc.templates)
			}
		})
	}
}

func TestWhatIsMissing(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Node, *v1alpha1.NodeConfigTemplate)
		want   []string
	}{
		{"pod CIDRs", func(n *Node, _ *v1alpha1.NodeConfigTemplate) { n.PodCIDRs = nil }, []string{"node node7 has no spec.podCIDRs yet", "--allocate-node-cidrs", "NodeConfig node7 by hand"}},
		{"pod CIDRs that flock cannot use", func(n *Node, _ *v1alpha1.NodeConfigTemplate) { n.PodCIDRs = []v1alpha1.CIDR{"10.0.0.0/31"} }, []string{"Node.spec.podCIDRs [10.0.0.0/31]", "spec.podCIDRs.ipv4", "between /8 and /30"}},
		{"pod CIDRs that are none", func(n *Node, _ *v1alpha1.NodeConfigTemplate) { n.PodCIDRs = []v1alpha1.CIDR{"x"} }, []string{"spec.podCIDRs.ipv6[0]", "not a CIDR"}},
		{"pod CIDR around the router", func(n *Node, _ *v1alpha1.NodeConfigTemplate) { n.PodCIDRs = []v1alpha1.CIDR{"2001:db8::/64"} }, []string{"contains 2001:db8::1, the address of BGP peer tor"}},
		{"the AS label", func(n *Node, _ *v1alpha1.NodeConfigTemplate) { delete(n.Labels, "example.com/as") }, []string{"node node7 has no label example.com/as", "spec.template.bgp.localASLabel", "kubectl label node node7 example.com/as=<AS>"}},
		{"AS in words", func(n *Node, _ *v1alpha1.NodeConfigTemplate) { n.Labels["example.com/as"] = "65000.7" }, []string{`label example.com/as="65000.7"`, "want a number between 1 and 4294967294"}},
		{"AS reserved", func(n *Node, _ *v1alpha1.NodeConfigTemplate) { n.Labels["example.com/as"] = "23456" }, []string{`label example.com/as="23456"`, "reserved"}},
		{"AS twice", func(_ *Node, t *v1alpha1.NodeConfigTemplate) { t.Spec.Template.BGP.LocalAS = 64600 }, []string{"spec.template.bgp: set either localAS or localASLabel"}},
		{"AS nowhere", func(_ *Node, t *v1alpha1.NodeConfigTemplate) { t.Spec.Template.BGP.LocalASLabel = "" }, []string{"spec.template.bgp: set either localAS or localASLabel"}},
		{"InternalIP", func(n *Node, _ *v1alpha1.NodeConfigTemplate) { n.InternalIPs = nil }, []string{"spec.bgp.routerID: node node7 has no InternalIP in status.addresses yet", "--node-ip"}},
		{"InternalIP for OSPF", func(n *Node, t *v1alpha1.NodeConfigTemplate) { n.InternalIPs, t.Spec.Template.BGP = nil, nil }, []string{"spec.ospf.routerID: node node7 has no InternalIP"}},
		{"what the API server lets pass", func(_ *Node, t *v1alpha1.NodeConfigTemplate) { t.Spec.Template.MTU = 1 }, []string{"nodeconfig node7: spec.mtu: Invalid value: 1"}},
		{"name too long", func(_ *Node, t *v1alpha1.NodeConfigTemplate) { t.Name = strings.Repeat("a", 64) }, []string{"its name is longer than the 63 characters"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, nct := node7(), template(t, "all", everyNode)
			inForce := Decide(n, nil, []*v1alpha1.NodeConfigTemplate{nct}).Object
			tc.change(&n, nct)
			for _, current := range []*v1alpha1.NodeConfig{nil, inForce} {
				v := Decide(n, current, []*v1alpha1.NodeConfigTemplate{nct})
				if v.Action != Leave || v.Object != nil || v.Reason != NotApplicable {
					t.Fatalf("%+v: want what is there to stay", v)
				}
				for _, want := range append(tc.want, "NodeConfigTemplate "+nct.Name+": ") {
					if !strings.Contains(v.Message, want) {
						t.Errorf("%q\nwant %q in it", v.Message, want)
					}
				}
			}
		})
	}
}

func TestRouterID(t *testing.T) {
	const hashed = "155.227.94.110" // sha256("node7"), for good: an ID that changes ends all sessions
	for _, tc := range []struct {
		ips  []string
		want string
	}{
		{[]string{"2001:db8::17", "192.0.2.17", "192.0.2.18"}, "192.0.2.17"},
		{[]string{"2001:db8::17"}, hashed},
		{[]string{"0.0.0.0", "::ffff:192.0.2.17"}, hashed},
	} {
		n := node7()
		n.InternalIPs = nil
		for _, ip := range tc.ips {
			n.InternalIPs = append(n.InternalIPs, netip.MustParseAddr(ip))
		}
		if got, err := routerID(n); err != nil || got != tc.want {
			t.Errorf("%v: %s, %v; want %s", tc.ips, got, err, tc.want)
		}
	}
}

// Who owns the existing NodeConfig, and what of it is kept.
func TestTheNodeConfigThatThereIs(t *testing.T) {
	all := []*v1alpha1.NodeConfigTemplate{template(t, "all", everyNode)}
	made := Decide(node7(), nil, all).Object
	made.ResourceVersion = "41"
	made.Annotations["note"], made.Labels["team"] = "n", "t"
	made.OwnerReferences = append(made.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "c", UID: "c"})
	for _, tc := range []struct {
		name   string
		change func(*v1alpha1.NodeConfig)
		want   Action
		reason Reason
	}{
		{"as it should be", func(*v1alpha1.NodeConfig) {}, Leave, FromTemplate},
		{"as the API server returns it", func(nc *v1alpha1.NodeConfig) { nc.Spec.PodCIDRs.Exclude = slices.Clone(nc.Spec.PodCIDRs.Exclude) }, Leave, FromTemplate},
		{"without the label", func(nc *v1alpha1.NodeConfig) { delete(nc.Labels, v1alpha1.TemplateLabel) }, Leave, ByHand},
		{"without the label, changed", func(nc *v1alpha1.NodeConfig) {
			delete(nc.Labels, v1alpha1.TemplateLabel)
			nc.Spec.MTU = 1500
		}, Leave, ByHand},
		{"of another template", func(nc *v1alpha1.NodeConfig) { nc.Labels[v1alpha1.TemplateLabel] = "rack1" }, Update, FromTemplate},
		{"label without a value", func(nc *v1alpha1.NodeConfig) { nc.Labels[v1alpha1.TemplateLabel] = "" }, Update, FromTemplate},
		{"edited", func(nc *v1alpha1.NodeConfig) { nc.Spec.MTU = 1500 }, Update, FromTemplate},
		{"of an older generation", func(nc *v1alpha1.NodeConfig) { nc.Annotations[v1alpha1.TemplateGenerationAnnotation] = "2" }, Update, FromTemplate},
		{"of a template that was created again", func(nc *v1alpha1.NodeConfig) { nc.Annotations[v1alpha1.TemplateUIDAnnotation] = "all-0" }, Update, FromTemplate},
		{"by an agent that did not note the template's UID", func(nc *v1alpha1.NodeConfig) { delete(nc.Annotations, v1alpha1.TemplateUIDAnnotation) }, Update, FromTemplate},
		{"of a Node that was created again", func(nc *v1alpha1.NodeConfig) { nc.OwnerReferences[0].UID = "n6" }, Update, FromTemplate},
		{"without an owner", func(nc *v1alpha1.NodeConfig) { nc.OwnerReferences = nc.OwnerReferences[1:] }, Update, FromTemplate},
	} {
		t.Run(tc.name, func(t *testing.T) {
			current := made.DeepCopy()
			tc.change(current)
			v := Decide(node7(), current, all)
			if v.Action != tc.want || v.Reason != tc.reason {
				t.Fatalf("%+v", v)
			}
			if v.Action != Update {
				return
			}
			if !maps.Equal(v.Object.Labels, made.Labels) || !maps.Equal(v.Object.Annotations, made.Annotations) || v.Object.ResourceVersion != "41" || !sameOwners(v.Object, made) || !reflect.DeepEqual(v.Object.Spec, made.Spec) {
				t.Errorf("would become\n%+v\nwant\n%+v", v.Object, made)
			}
		})
	}
}

func sameOwners(a, b *v1alpha1.NodeConfig) bool {
	return len(a.OwnerReferences) == len(b.OwnerReferences) && !slices.ContainsFunc(a.OwnerReferences, func(o metav1.OwnerReference) bool {
		return !slices.Contains(b.OwnerReferences, o)
	})
}

func TestNodeOf(t *testing.T) {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node7", UID: "n7", Labels: node7().Labels},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.244.7.0/24", "2001:db8:100:7::/64"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "192.0.2.9"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::17"},
			{Type: corev1.NodeExternalIP, Address: "198.51.100.9"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.17"},
			{Type: corev1.NodeInternalIP, Address: "?"},
		}},
	}
	if got := NodeOf(n); !reflect.DeepEqual(got, node7()) {
		t.Errorf("%+v", got)
	}
}
