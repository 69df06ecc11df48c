package controller

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/labels"

	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/service"
)

// The metrics that are declared for the controller are those that it has, of the type that
// is declared.
func TestMetrics(t *testing.T) {
	m := newMetrics()
	m.leading.Store(true)
	m.agents([]string{"node1"})
	m.decided(map[service.Key]service.Decision{{Name: "a"}: {Reason: service.Assigned}})
	web := config.Pool{Name: "web", CIDRs: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/28"), netip.MustParsePrefix("203.0.114.0/28"), netip.MustParsePrefix("2001:db8::/64")}, Namespaces: labels.Everything(), Service: true}
	_, used := usage([]config.Pool{web}, []user{{netip.MustParseAddr("203.0.113.1"), v1alpha1.UseService, "shop/a"}, {netip.MustParseAddr("203.0.113.1"), v1alpha1.UseService, "shop/b"}})
	m.pools([]config.Pool{web}, used)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	has := map[string]bool{}
	for _, f := range families {
		has[f.GetName()+" "+strings.ToLower(f.GetType().String())] = true
		for _, one := range f.GetMetric() {
			if strings.Contains(f.GetName(), "_pool_") {
				for _, l := range one.GetLabel() {
					got.WriteString(l.GetValue() + " ")
				}
				got.WriteString(strings.TrimPrefix(f.GetName(), "flock_controller_pool_") + "\n")
			}
		}
	}
	for _, d := range metric.All() {
		if d.Controller() && !has[d.Name+" "+string(d.Type)] {
			t.Errorf("there is no %s %s", d.Type, d.Name)
		}
		delete(has, d.Name+" "+string(d.Type))
	}
	for name := range has {
		t.Errorf("%s is not declared", name)
	}
	if want := "IPv4 web capacity_addresses\nIPv6 web capacity_addresses\nIPv4 web service used_addresses\n"; got.String() != want {
		t.Errorf("pools:\n%s\nwant\n%s", got.String(), want)
	}
	// One that stands by knows nothing of Services and pools.
	m.leading.Store(false)
	if families, err = registry.Gather(); err != nil || len(families) != 6 {
		t.Errorf("while it stands by it has %d metrics, %v", len(families), err)
	}
}

// Each address is one, however many have it, and counts for the pool that granted it.
func TestUsage(t *testing.T) {
	pool := func(name, cidr string, uses ...v1alpha1.PoolUse) config.Pool {
		p := config.Pool{Name: name, CIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}, Namespaces: labels.Everything()}
		for _, u := range uses {
			p.Static = p.Static || u == v1alpha1.UseStatic
			p.Anycast = p.Anycast || u == v1alpha1.UseAnycast
			p.Service = p.Service || u == v1alpha1.UseService
		}
		return p
	}
	var users []user
	for i := range 20 {
		users = append(users, user{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), v1alpha1.UseStatic, "shop/pod"})
	}
	for _, by := range []string{"a", "b", "c", "d", "e", "f"} {
		users = append(users, user{netip.MustParseAddr("10.0.1.1"), v1alpha1.UseAnycast, by})
	}
	users = append(users, user{netip.MustParseAddr("10.0.2.1"), v1alpha1.UseService, "shop/web"}, user{netip.MustParseAddr("192.0.2.1"), v1alpha1.UseService, "shop/web"})
	got, used := usage([]config.Pool{pool("wide", "10.0.0.0/8", "static", "service"), pool("any", "10.0.1.0/24", "anycast"), pool("a-static", "10.0.2.0/24", "static"), pool("b-service", "10.0.2.0/24", "service")}, users)
	if s := got["wide"]; s.Static != 20 || s.Anycast != 0 || s.Service != 0 || len(s.Users) != 16 || s.Users[15].Address != "10.0.0.15" {
		t.Errorf("wide: %+v", s)
	}
	if s := got["any"]; s.Anycast != 1 || len(s.Users) != 1 || len(s.Users[0].By) != 4 || s.Users[0].More != 2 {
		t.Errorf("any: %+v", s)
	}
	if s := got["b-service"]; s.Service != 1 || s.Static != 0 || s.Users[0].By[0] != "shop/web" || len(got["a-static"].Users) != 0 {
		t.Errorf("of two pools with one prefix: %+v, %+v", s, got["a-static"])
	}
	if n := used[poolFamilyUse{"wide", "IPv4", "static"}]; n != 20 || len(used) != 3 {
		t.Errorf("used %v", used)
	}
}
