package fleet

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// FuzzDecide: whatever the templates, the node and the NodeConfig that there is, the
// decision is a NodeConfig that parses, or it says what is missing; it is the same
// whatever the order of the templates; and once carried out it has nothing to add.
func FuzzDecide(f *testing.F) {
	f.Add("node7", "2001:db8:100:7::/64", "192.0.2.17", "example.com/as", "4200000007", "2001:db8::1", []byte{2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1})
	f.Add("node7", "10.244.7.0/24", "2001:db8::17", "rack", "r1", "fe80::1", []byte{3, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
	f.Add("n%s", "", "", "", "", "", []byte{1, 255, 254, 253, 252, 251, 250})
	f.Add("x", "10.0.0.1/24", "0.0.0.0", "no key", "-1", "10.0.0.2", []byte{4, 1, 0, 0, 2, 9, 2, 9, 2, 1, 1, 1, 3, 3, 3, 3, 0, 0, 1, 1, 7, 8, 5})
	f.Fuzz(func(t *testing.T, name, cidr, ip, key, value, router string, choices []byte) {
		next := func() int {
			if len(choices) == 0 {
				return 0
			}
			c := choices[0]
			choices = choices[1:]
			return int(c)
		}
		yes := func() bool { return next()%2 == 1 }
		node := Node{Name: name, UID: types.UID(name), Labels: map[string]string{key: value, "rack": "r1"}}
		for range next() % 3 {
			node.PodCIDRs = append(node.PodCIDRs, v1alpha1.CIDR([]string{cidr, "10.244.7.0/24", "2001:db8:100:7::/64"}[next()%3]))
		}
		for range next() % 3 {
			if a, err := netip.ParseAddr([]string{ip, "192.0.2.17", "2001:db8::17"}[next()%3]); err == nil {
				node.InternalIPs = append(node.InternalIPs, a)
			}
		}
		var templates []*v1alpha1.NodeConfigTemplate
		for i := range next() % 4 {
			templates = append(templates, fuzzedTemplate(fmt.Sprint("t", i, strings.Repeat("-", next())), key, value, router, next))
		}
		var current *v1alpha1.NodeConfig
		if yes() {
			current = &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: "5"}}
			if yes() {
				current.Labels = map[string]string{v1alpha1.TemplateLabel: "t0"}
			}
		}

		nodeWas, currentWas := fmt.Sprint(node), current.DeepCopy()
		v := Decide(node, current, templates)
		if fmt.Sprint(node) != nodeWas || !reflect.DeepEqual(current, currentWas) {
			t.Fatal("an argument was changed")
		}
		slices.Reverse(templates)
		if again := Decide(node, current, templates); !reflect.DeepEqual(again, v) {
			t.Fatalf("in another order of templates %+v\nwas %+v", again, v)
		}
		switch v.Reason {
		case ByHand:
			if current == nil || Templated(current) || v.Action != Leave {
				t.Errorf("%+v", v)
			}
		case NoTemplate, NotApplicable:
			if v.Action != Leave || v.Object != nil || !strings.Contains(v.Message, "NodeConfigTemplate") || !strings.Contains(v.Message, ": ") {
				t.Errorf("%+v: want the template, the field and the remedy, and nothing done", v)
			}
		case FromTemplate:
			if v.Action == Leave {
				return
			}
			if _, err := config.ParseNode(v.Object); err != nil || v.Object.Name != name || !Templated(v.Object) || (v.Action == Create) != (current == nil) {
				t.Errorf("%+v: %v", v, err)
			}
			if then := Decide(node, v.Object, templates); then.Action != Leave || then.Reason != FromTemplate || then.Message != v.Message {
				t.Errorf("carried out, it is followed by %+v", then)
			}
		}
	})
}

func fuzzedTemplate(name, key, value, router string, next func() int) *v1alpha1.NodeConfigTemplate {
	yes := func() bool { return next()%2 == 1 }
	t := &v1alpha1.NodeConfigTemplate{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: int64(next())}}
	t.Spec.Priority = int32(next()%3) - 1
	if yes() {
		t.Spec.NodeSelector.MatchLabels = map[string]string{key: value}
	}
	if yes() {
		t.Spec.NodeSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{
			Key: []string{key, "rack"}[next()%2], Values: [][]string{nil, {value}, {"r1"}}[next()%3],
			Operator: []metav1.LabelSelectorOperator{"In", "NotIn", "Exists", "DoesNotExist", "?"}[next()%5],
		}}
	}
	from := &t.Spec.Template
	from.MTU = []int32{0, 1280, 9000, 1}[next()%4]
	if yes() {
		from.PodCIDRs.Exclude = []v1alpha1.CIDR{"10.244.7.0/30"}
	}
	if yes() {
		from.BGP = &v1alpha1.BGPTemplate{
			LocalAS:      []v1alpha1.ASNumber{0, 0, 64601, 23456, -1}[next()%5],
			LocalASLabel: []string{"", key, "rack"}[next()%3],
			BGPPeering:   v1alpha1.BGPPeering{Peers: []v1alpha1.BGPPeer{{Name: "tor", Address: router, RemoteAS: 64512, Port: int32(next())}}},
		}
		if yes() {
			med := int64(next())
			from.BGP.Peers[0].Export = &v1alpha1.BGPExport{MED: &med, LocalPreference: &med}
		}
	}
	if yes() {
		from.OSPF = &v1alpha1.OSPFRouting{Interfaces: []v1alpha1.OSPFInterface{{Name: "eth0"}}[:next()%2]}
	}
	return t
}
