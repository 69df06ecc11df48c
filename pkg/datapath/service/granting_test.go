package service

import (
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/pkg/config"
)

func TestGranting(t *testing.T) {
	t.Parallel()
	pool := func(name, cidr string, service bool) config.Pool {
		return config.Pool{Name: name, CIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}, Service: service, Static: !service}
	}
	both := func(pool string) map[netip.Addr]string { return map[netip.Addr]string{v6: pool, v4: pool} }
	others := object()
	others.Spec.LoadBalancerClass = ptr("example.net/other")
	for _, tc := range []struct {
		name   string
		svc    *corev1.Service
		pools  []config.Pool
		before map[netip.Addr]string
		want   map[netip.Addr]string
	}{
		{"of a pool", object(), pools(), nil, both("lb")},
		{"of two by name", object(), append(pools(), pool("a", "203.0.113.0/24", true)), nil, map[netip.Addr]string{v6: "lb", v4: "a"}},
		{"deleted", object(), nil, both("lb"), both("lb")},
		{"narrowed", object(), []config.Pool{pool("lb", "203.0.113.128/25", true)}, both("lb"), both("lb")},
		{"another in its place", object(), []config.Pool{pool("new", "203.0.113.0/24", true)}, both("lb"), map[netip.Addr]string{v6: "lb", v4: "new"}},
		{"deleted inside of one for pods", object(), []config.Pool{pool("pods", "203.0.112.0/20", false)}, both("lb"), both("lb")},
		{"carved out for pods", object(), append(pools(), pool("pods", "203.0.113.0/28", false)), both("lb"), both("lb")},
		{"of no pool ever", object(), nil, nil, map[netip.Addr]string{}},
		{"another class", others, pools(), both("lb"), map[netip.Addr]string{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Granting([]*corev1.Service{tc.svc}, tc.pools, tc.before); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
