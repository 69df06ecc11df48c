package grant_test

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/address/grant/examples"
	"flock.fritzlab.net/flock/pkg/address/ipam"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// The worked examples of docs/addresses.md, from annotations to addresses.
func TestExamples(t *testing.T) {
	setup, all, err := examples.Load("../../../docs/addresses.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("only %d examples", len(all))
	}
	in := grant.Input{
		NodeName:  "node1",
		NodeAddrs: []netip.Addr{netip.MustParseAddr("2001:db8:0:1::11"), netip.MustParseAddr("192.0.2.11")},
		Holder:    nobody,
	}
	in.Node, in.Pools = objects(t, setup)
	labels := map[string]map[string]string{"shop": {"team": "shop"}, "dns": {"team": "dns"}}
	// One allocator for all: the lab runs them side by side too.
	alloc := ipam.New(ipam.Config{Node: in.NodeName, IPv6: in.Node.IPv6, IPv4: in.Node.IPv4, Exclude: in.Node.Exclude, Quarantine: in.Node.Quarantine}, rand.Reader)
	for _, e := range all {
		t.Run(e.Name, func(t *testing.T) {
			request, warnings, err := annotation.Parse(e.Annotations, in.Node.Defaults)
			if got, want := fmt.Sprint(warnings), fmt.Sprint(e.Warnings); got != want {
				t.Errorf("warnings:\n got %s\nwant %s", got, want)
			}
			in := in
			in.Request, in.Namespace, in.NamespaceLabels = request, e.Namespace, labels[e.Namespace]
			var plan grant.Plan
			if err == nil {
				plan, err = grant.Decide(in)
			}
			if e.Refused != "" || err != nil {
				if got := fmt.Sprint(err); got != e.Refused {
					t.Errorf("refused:\n got %s\nwant %s", got, e.Refused)
				}
				return
			}
			var announced []netip.Prefix
			for i, want := range e.Eth0 {
				taken, err := plan.Take(alloc, workload(e, i), nobody, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				var got []netip.Addr
				for _, l := range taken.Held() {
					got = append(got, l.Addr)
					if !l.CIDR.IsValid() {
						announced = append(announced, netip.PrefixFrom(l.Addr, l.Addr.BitLen()))
					}
				}
				for _, a := range taken.Anycast {
					got = append(got, a.Addr)
					announced = append(announced, netip.PrefixFrom(a.Addr, a.Addr.BitLen()))
				}
				if !slices.EqualFunc(got, want, func(a netip.Addr, p netip.Prefix) bool { return p.Contains(a) }) {
					t.Errorf("eth0 of pod %d: got %v, want %v", i, got, want)
				}
			}
			if !slices.Equal(announced, e.Announced) {
				t.Errorf("announced: got %v, want %v", announced, e.Announced)
			}
		})
	}
}

// workload is what the i-th pod of an example is, from what a pod of its kind looks like.
func workload(e examples.Example, i int) embed.Workload {
	yes := true
	name, owner := fmt.Sprintf("%s-%d", e.App, i), e.App
	labels := map[string]string{}
	var owners []metav1.OwnerReference
	switch e.Kind {
	case "Pod":
		name = e.App
	case "Deployment":
		labels["pod-template-hash"] = "5d4f8c7b9"
		name, owner = fmt.Sprintf("%s-5d4f8c7b9-x%d", e.App, i), e.App+"-5d4f8c7b9"
		owners = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: owner, Controller: &yes}}
	default:
		owners = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: e.Kind, Name: owner, Controller: &yes}}
	}
	return embed.Workload{Namespace: e.Namespace, App: embed.AppOf(name, labels, owners), Image: e.Image}
}

func objects(t *testing.T, documents string) (node config.Node, pools []config.Pool) {
	t.Helper()
	for _, document := range strings.Split(documents, "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatal(err)
		}
		var err error
		switch kind.Kind {
		case "NodeConfig":
			var nc v1alpha1.NodeConfig
			if err := yaml.UnmarshalStrict([]byte(document), &nc); err != nil {
				t.Fatal(err)
			}
			node, err = config.ParseNode(&nc)
		case "AddressPool":
			var ap v1alpha1.AddressPool
			if err := yaml.UnmarshalStrict([]byte(document), &ap); err != nil {
				t.Fatal(err)
			}
			var pool config.Pool
			pool, err = config.ParsePool(&ap)
			pools = append(pools, pool)
		default:
			t.Fatalf("kind %q in the setup", kind.Kind)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return node, pools
}
