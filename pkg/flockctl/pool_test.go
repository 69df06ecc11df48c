package flockctl

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Addresses are counted, not pods or nodes that have them.
func TestAddressesAreCountedOnce(t *testing.T) {
	t.Parallel()
	pool := func(name, cidr string, uses ...v1alpha1.PoolUse) v1alpha1.AddressPool {
		return v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.AddressPoolSpec{CIDRs: []v1alpha1.CIDR{v1alpha1.CIDR(cidr)}, Uses: uses, NamespaceSelector: metav1.LabelSelector{}}}
	}
	// A node with addresses of pools, some of them retained, and pods at anycast addresses.
	node := func(name string, uses map[string][2]int32, anycast ...string) v1alpha1.NodeConfig {
		nc := v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for pool, n := range uses {
			nc.Status.Pools = append(nc.Status.Pools, v1alpha1.PoolStatus{Name: pool, Addresses: n[0], Retained: n[1]})
		}
		for i, a := range anycast {
			nc.Status.Anycast = append(nc.Status.Anycast, v1alpha1.AnycastStatus{Address: a, Pod: fmt.Sprintf("dns/%s-%d", name, i), Announced: true})
		}
		return nc
	}
	type use = map[string][2]int32
	dns, carved := pool("dns", "2001:db8::/64", "anycast", "static"), pool("carved", "2001:db8::50/124", "anycast")
	for _, c := range []struct {
		name  string
		pools []v1alpha1.AddressPool
		nodes []v1alpha1.NodeConfig
		want  string
	}{
		{"nobody", []v1alpha1.AddressPool{dns}, nil, "dns 0"},
		{"two nodes with one address", []v1alpha1.AddressPool{dns}, []v1alpha1.NodeConfig{node("a", use{"dns": {1, 0}}, "2001:db8::53"), node("b", use{"dns": {1, 0}}, "2001:db8::53")}, "dns 1"},
		{"two pods of one node with one address", []v1alpha1.AddressPool{dns}, []v1alpha1.NodeConfig{node("a", use{"dns": {1, 0}}, "2001:db8::53", "2001:db8::53")}, "dns 1"},
		{"an address of its own each", []v1alpha1.AddressPool{dns}, []v1alpha1.NodeConfig{node("a", use{"dns": {1, 0}}, "2001:db8::53"), node("b", use{"dns": {1, 0}}, "2001:db8::54")}, "dns 2"},
		{"static addresses beside one that is shared", []v1alpha1.AddressPool{dns}, []v1alpha1.NodeConfig{node("a", use{"dns": {3, 0}}, "2001:db8::53"), node("b", use{"dns": {2, 0}}, "2001:db8::53"), node("c", use{"dns": {4, 0}})}, "dns 8"},
		{"of two pools", []v1alpha1.AddressPool{dns, carved}, []v1alpha1.NodeConfig{
			node("a", use{"dns": {1, 0}, "carved": {1, 0}}, "2001:db8::53", "2001:db8::1"), node("b", use{"dns": {1, 0}, "carved": {1, 0}}, "2001:db8::53", "2001:db8::1")}, "carved 1 dns 1"},
		{"of a deleted pool", []v1alpha1.AddressPool{dns}, []v1alpha1.NodeConfig{
			node("a", use{"old": {1, 1}}, "2001:db8:1::1"), node("b", use{"old": {1, 1}}, "2001:db8:1::1")}, "dns 0 old 1"},
		{"of a deleted pool whose addresses another one covers", []v1alpha1.AddressPool{dns}, []v1alpha1.NodeConfig{
			node("a", use{"old": {1, 1}}, "2001:db8::53"), node("b", use{"old": {1, 1}}, "2001:db8::53")}, "dns 0 old 1"},
	} {
		got := ""
		for _, p := range poolsOf(c.pools, c.nodes) {
			got += fmt.Sprintf(" %s %d", p.Name, p.Addresses)
		}
		if got != " "+c.want {
			t.Errorf("%s:%s, want %s", c.name, got, c.want)
		}
	}
}

// The status of the cluster counts an address of two Services once; it is announced if it is for
// one of them.
func TestAddressesOfServicesAreCountedOnce(t *testing.T) {
	t.Parallel()
	var services v1alpha1.NodeConfig
	services.Status.Services = []v1alpha1.ServiceStatus{
		{Service: "shop/a", Address: "192.0.2.1", Announced: true},
		{Service: "shop/b", Address: "192.0.2.1"},
		{Service: "shop/b", Address: "192.0.2.2"},
	}
	if got := overallOf([]node{{name: "a", config: &services}}, nil, nil).Services; got != (ratio{1, 2}) {
		t.Errorf("%v addresses of Services announced, want 1 of 2", got)
	}
}
