package service_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/service"
)

var addr = netip.MustParseAddr

var began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// object makes namespace/name a Service of flock's class with the port 80/TCP, IPv6 alone.
// Its UID is its name, and those that are made later are younger.
func object(key string, change ...func(*corev1.Service)) *corev1.Service {
	namespace, name, _ := strings.Cut(key, "/")
	class, policy := v1alpha1.LoadBalancerClass, corev1.IPFamilyPolicySingleStack
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(key), CreationTimestamp: metav1.NewTime(began), Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class,
			IPFamilies: []corev1.IPFamily{corev1.IPv6Protocol}, IPFamilyPolicy: &policy,
			Ports:                 []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
			Selector:              map[string]string{"app": name},
		},
	}
	for _, f := range change {
		f(svc)
	}
	return svc
}

func families(policy corev1.IPFamilyPolicy, of ...corev1.IPFamily) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = &policy, of }
}

var (
	four    = families(corev1.IPFamilyPolicySingleStack, corev1.IPv4Protocol)
	prefer  = families(corev1.IPFamilyPolicyPreferDualStack, corev1.IPv6Protocol, corev1.IPv4Protocol)
	require = families(corev1.IPFamilyPolicyRequireDualStack, corev1.IPv4Protocol, corev1.IPv6Protocol)
)

func annotated(key, value string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations["flock.fritzlab.net/"+key] = value }
}

func ports(list ...int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Ports = nil
		for _, p := range list {
			protocol := corev1.ProtocolTCP
			if p < 0 {
				p, protocol = -p, corev1.ProtocolUDP
			}
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: p, Protocol: protocol})
		}
	}
}

// age makes it younger than others by so many seconds.
func age(seconds int) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.CreationTimestamp = metav1.NewTime(began.Add(time.Duration(seconds) * time.Second))
	}
}

func local(selector string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.ExternalTrafficPolicy, s.Spec.Selector = corev1.ServiceExternalTrafficPolicyLocal, map[string]string{"app": selector}
	}
}

// has is a status without ports, as other controllers write it.
func has(addrs ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		for _, a := range addrs {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
	}
}

// hasPorts is a status of flock-controller's.
func hasPorts(a string, list ...service.Port) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, service.Ingress([]service.Holding{{Addr: addr(a), Ports: list}})...)
	}
}

func tcp(n uint16) service.Port { return service.Port{Number: n, Protocol: corev1.ProtocolTCP} }

func pool(name, selector string, cidrs ...string) config.Pool {
	s, err := labels.Parse(selector)
	if err != nil {
		panic(err)
	}
	p := config.Pool{Name: name, Namespaces: s, Service: true, Services: config.PoolServices{AutoAssign: true, Sharing: v1alpha1.SharingNamespace}}
	for _, c := range cidrs {
		p.CIDRs = append(p.CIDRs, netip.MustParsePrefix(c))
	}
	return p
}

func with(p config.Pool, change func(*config.Pool)) config.Pool {
	change(&p)
	return p
}

// claimed is an AddressClaim of Services, given as namespace/name port port.
func claimed(shares ...string) service.Claim {
	var c service.Claim
	for _, share := range shares {
		fields := strings.Fields(share)
		namespace, name, _ := strings.Cut(fields[0], "/")
		s := service.Share{Key: service.Key{Namespace: namespace, Name: name}, UID: types.UID(fields[0])}
		for _, f := range fields[1:] {
			p, err := service.ParsePort(f)
			if err != nil {
				panic(err)
			}
			s.Ports = append(s.Ports, p)
		}
		c.Services = append(c.Services, s)
	}
	return c
}

type world struct {
	services []*corev1.Service
	pools    []config.Pool
	claims   map[string]service.Claim
	taken    map[string]string
	ranges   []service.Range
}

func (w world) world() service.World {
	out := service.World{
		Pools: w.pools, Ranges: w.ranges,
		Namespaces: map[string]labels.Set{"shop": {"team": "shop"}, "dns": {"team": "dns"}, "evil": {"team": "evil"}},
		Claims:     map[netip.Addr]service.Claim{}, Taken: map[netip.Addr]string{},
	}
	for _, s := range w.services {
		out.Services = append(out.Services, service.Parse(s))
	}
	for a, c := range w.claims {
		out.Claims[addr(a)] = c
	}
	for a, what := range w.taken {
		out.Taken[addr(a)] = what
	}
	return out
}

// text is a decision in short.
func text(d service.Decision) string {
	var addrs []string
	for _, h := range d.Holdings {
		addrs = append(addrs, h.Addr.String())
	}
	if d.Complete && d.Reason == service.Assigned {
		return strings.Join(addrs, " ")
	}
	return strings.TrimSpace(strings.Join(addrs, " ") + " " + d.Reason + ": " + d.Message)
}

func TestAssign(t *testing.T) {
	web := pool("web", "", "2001:db8:80::/64", "203.0.113.0/29")
	six := pool("six", "", "2001:db8:6::/64")
	shop, dns := pool("shop", "team=shop", "2001:db8:5::/64"), pool("dns", "team=dns", "2001:db8:53::/64", "198.51.100.53/32")
	anyone := with(web, func(p *config.Pool) { p.Services.Sharing = v1alpha1.SharingPool })
	for _, tc := range []struct {
		name string
		in   world
		want map[string]string // of each Service in short; * ends what is not compared
	}{
		{"the lowest of the first pool by name", world{services: []*corev1.Service{object("shop/a")}, pools: []config.Pool{web, six}}, map[string]string{"shop/a": "2001:db8:6::1"}},
		{"each its own", world{services: []*corev1.Service{object("shop/b"), object("shop/a"), object("shop/old", age(-1))}, pools: []config.Pool{web}},
			map[string]string{"shop/old": "2001:db8:80::1", "shop/a": "2001:db8:80::2", "shop/b": "2001:db8:80::3"}},
		{"IPv4", world{services: []*corev1.Service{object("shop/a", four)}, pools: []config.Pool{web}}, map[string]string{"shop/a": "203.0.113.1"}},
		{"a single address is one", world{services: []*corev1.Service{object("dns/a", four)}, pools: []config.Pool{dns}}, map[string]string{"dns/a": "198.51.100.53"}},
		{"no pool at all", world{services: []*corev1.Service{object("shop/a")}}, map[string]string{"shop/a": `NoPool: there is no AddressPool with use "service": ask the cluster's operator for one that admits namespace shop`}},
		{"a pool of another use", world{services: []*corev1.Service{object("shop/a")}, pools: []config.Pool{with(web, func(p *config.Pool) { p.Service, p.Static = false, true })}}, map[string]string{"shop/a": `NoPool: there is no AddressPool with use "service"*`}},
		{"pools that admit others", world{services: []*corev1.Service{object("evil/a")}, pools: []config.Pool{shop, dns}},
			map[string]string{"evil/a": "NoPool: no AddressPool grants an IPv6 address to namespace evil: AddressPool dns admits only namespaces with labels team=dns; AddressPool shop admits only namespaces with labels team=shop"}},
		{"a namespace that is not known yet", world{services: []*corev1.Service{object("new/a"), object("new/b", has("2001:db8:80::7"))}, pools: []config.Pool{web}},
			map[string]string{"new/a": "Waiting: the labels of namespace new are not known yet", "new/b": "2001:db8:80::7"}},
		{"a pool that is full", world{services: []*corev1.Service{object("dns/a", four, has("198.51.100.53")), object("dns/b", four)}, pools: []config.Pool{dns}},
			map[string]string{"dns/a": "198.51.100.53", "dns/b": "PoolExhausted: there is no free IPv4 address in AddressPool dns: *"}},
		{"neither network nor broadcast", world{services: []*corev1.Service{
			object("shop/1", four), object("shop/2", four), object("shop/3", four), object("shop/4", four), object("shop/5", four), object("shop/6", four), object("shop/7", four), object("shop/z", four, annotated("addresses", "203.0.113.0"), age(1)),
		}, pools: []config.Pool{web}}, map[string]string{"shop/6": "203.0.113.6", "shop/7": "PoolExhausted*", "shop/z": "203.0.113.0"}},
		{"both of a /31", world{services: []*corev1.Service{object("shop/1", four), object("shop/2", four)}, pools: []config.Pool{pool("p", "", "192.0.2.0/31")}}, map[string]string{"shop/1": "192.0.2.0", "shop/2": "192.0.2.1"}},
		{"the second CIDR", world{services: []*corev1.Service{object("shop/1", four), object("shop/2", four)}, pools: []config.Pool{pool("p", "", "192.0.2.1/32", "198.51.100.0/24")}}, map[string]string{"shop/1": "192.0.2.1", "shop/2": "198.51.100.1"}},

		{"PreferDualStack", world{services: []*corev1.Service{object("shop/a", prefer)}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::1 203.0.113.1"}},
		{"PreferDualStack, one there", world{services: []*corev1.Service{object("shop/a", prefer)}, pools: []config.Pool{six}},
			map[string]string{"shop/a": "2001:db8:6::1 PartlyAssigned: 2001:db8:6::1 of AddressPool six; no address of the other family, which ipFamilyPolicy prefers: no AddressPool grants an IPv4 address to namespace shop: AddressPool six has no IPv4 CIDR"}},
		{"PreferDualStack, the second becomes possible", world{services: []*corev1.Service{object("shop/a", prefer, hasPorts("2001:db8:6::7", tcp(80)))}, pools: []config.Pool{six, web}}, map[string]string{"shop/a": "2001:db8:6::7 203.0.113.1"}},
		{"PreferDualStack, none there", world{services: []*corev1.Service{object("shop/a", prefer)}, pools: []config.Pool{dns}}, map[string]string{"shop/a": "NoPool: *"}},
		{"RequireDualStack", world{services: []*corev1.Service{object("shop/a", require)}, pools: []config.Pool{web}}, map[string]string{"shop/a": "203.0.113.1 2001:db8:80::1"}},
		{"RequireDualStack, one there", world{services: []*corev1.Service{object("shop/a", require)}, pools: []config.Pool{six}},
			map[string]string{"shop/a": "NoPool: no AddressPool grants an IPv4 address to namespace shop: AddressPool six has no IPv4 CIDR; ipFamilyPolicy RequireDualStack needs both families: set PreferDualStack to take what there is"}},
		{"RequireDualStack keeps what it has", world{services: []*corev1.Service{object("shop/a", require, has("2001:db8:6::7"))}, pools: []config.Pool{six}}, map[string]string{"shop/a": "2001:db8:6::7 NoPool: 2001:db8:6::7 of AddressPool six, but: no AddressPool grants an IPv4*"}},
		{"from dual stack to one", world{services: []*corev1.Service{object("shop/a", four, has("2001:db8:80::7", "203.0.113.2"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "203.0.113.2"}},
		{"no more than one of a family", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::7", "2001:db8:80::8"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::7"}},

		{"chosen", world{services: []*corev1.Service{object("shop/a", prefer, annotated("addresses", "203.0.113.5, 2001:db8:80::5"))}, pools: []config.Pool{web, six}}, map[string]string{"shop/a": "2001:db8:80::5 203.0.113.5"}},
		{"chosen of one family", world{services: []*corev1.Service{object("shop/a", prefer, annotated("addresses", "203.0.113.5"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::1 203.0.113.5"}},
		{"chosen by loadBalancerIP", world{services: []*corev1.Service{object("shop/a", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "2001:db8:80::9" })}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::9"}},
		{"the annotation before loadBalancerIP", world{services: []*corev1.Service{object("shop/a", annotated("addresses", "2001:db8:80::5"), func(s *corev1.Service) { s.Spec.LoadBalancerIP = "2001:db8:80::9" })}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::5"}},
		{"chosen before others choose", world{services: []*corev1.Service{object("shop/a"), object("shop/b", annotated("addresses", "2001:db8:80::1"), age(5))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::2", "shop/b": "2001:db8:80::1"}},
		{"chosen, of no pool", world{services: []*corev1.Service{object("shop/a", annotated("addresses", "2001:db8:99::5"))}, pools: []config.Pool{web}},
			map[string]string{"shop/a": "NotAdmitted: annotation flock.fritzlab.net/addresses: no AddressPool covers 2001:db8:99::5: choose an address of a pool with use service that admits namespace shop, or ask the cluster's operator for one"}},
		{"chosen, of another's pool", world{services: []*corev1.Service{object("evil/a", annotated("addresses", "2001:db8:53::5"))}, pools: []config.Pool{web, dns}},
			map[string]string{"evil/a": "NotAdmitted: annotation flock.fritzlab.net/addresses: 2001:db8:53::5 is granted to namespace evil by no AddressPool: AddressPool dns admits only namespaces with labels team=dns: *"}},
		{"chosen by loadBalancerIP, of another's pool", world{services: []*corev1.Service{object("evil/a", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "2001:db8:53::5" })}, pools: []config.Pool{web, dns}}, map[string]string{"evil/a": "NotAdmitted: spec.loadBalancerIP: *"}},
		{"chosen, of a pool without the use", world{services: []*corev1.Service{object("shop/a", annotated("addresses", "2001:db8:5::5"))}, pools: []config.Pool{with(shop, func(p *config.Pool) { p.Service, p.Anycast = false, true })}},
			map[string]string{"shop/a": `NotAdmitted: annotation flock.fritzlab.net/addresses: 2001:db8:5::5 is granted to namespace shop by no AddressPool: AddressPool shop does not allow use "service"*`}},
		{"carved out of a wider pool", world{services: []*corev1.Service{object("shop/a", annotated("addresses", "2001:db8:80::53"))}, pools: []config.Pool{web, pool("carved", "team=dns", "2001:db8:80::/112")}}, map[string]string{"shop/a": "NotAdmitted: *"}},
		{"none of what is carved out", world{services: []*corev1.Service{object("shop/a")}, pools: []config.Pool{web, pool("carved", "team=dns", "2001:db8:80::/112")}}, map[string]string{"shop/a": "2001:db8:80::1:0"}},
		{"held by another", world{services: []*corev1.Service{object("shop/b", has("2001:db8:80::5")), object("shop/a", annotated("addresses", "2001:db8:80::5"))}, pools: []config.Pool{web}},
			map[string]string{"shop/a": "AddressInUse: annotation flock.fritzlab.net/addresses: 2001:db8:80::5 is held by Service shop/b: choose another address, or share it by annotation flock.fritzlab.net/shared-with: b", "shop/b": "2001:db8:80::5"}},
		{"two choose the same", world{services: []*corev1.Service{object("shop/b", annotated("addresses", "2001:db8:80::5")), object("dns/a", annotated("addresses", "2001:db8:80::5"), age(1))}, pools: []config.Pool{web}}, map[string]string{"shop/b": "2001:db8:80::5", "dns/a": "AddressInUse: *"}},
		{"another is chosen later", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5"), annotated("addresses", "2001:db8:80::6"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::6"}},
		{"another is chosen that cannot be had", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5"), annotated("addresses", "2001:db8:80::6")), object("dns/b", has("2001:db8:80::6"))}, pools: []config.Pool{web}},
			map[string]string{"shop/a": "2001:db8:80::5"}},
		{"a wrong annotation", world{services: []*corev1.Service{object("shop/a", annotated("addresses", "2001:db8:80::5,x"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": `InvalidRequest: annotation flock.fritzlab.net/addresses="2001:db8:80::5,x": "x" is not an IP address*`}},
		{"two of a family", world{services: []*corev1.Service{object("shop/a", annotated("addresses", "2001:db8:80::5,2001:db8:80::6"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": `InvalidRequest: *2001:db8:80::6 is the second IPv6 address*`}},
		{"of a family that it has not", world{services: []*corev1.Service{object("shop/a", annotated("addresses", "203.0.113.5"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": `InvalidRequest: annotation flock.fritzlab.net/addresses: 203.0.113.5 is an IPv4 address, and spec.ipFamilies*`}},
		{"a wrong annotation takes nothing away", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5"), annotated("addresses", "x"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::5"}},

		{"by pool", world{services: []*corev1.Service{object("shop/a", annotated("pool", "web"))}, pools: []config.Pool{web, six}}, map[string]string{"shop/a": "2001:db8:80::1"}},
		{"by pool that others do not get", world{services: []*corev1.Service{object("shop/a", annotated("pool", "web")), object("shop/b")}, pools: []config.Pool{with(web, func(p *config.Pool) { p.Services.AutoAssign = false })}},
			map[string]string{"shop/a": "2001:db8:80::1", "shop/b": "NoPool: *AddressPool web is only for Services that name it by annotation flock.fritzlab.net/pool*"}},
		{"by address of a pool that others do not get", world{services: []*corev1.Service{object("shop/a", annotated("addresses", "2001:db8:80::5"))}, pools: []config.Pool{with(web, func(p *config.Pool) { p.Services.AutoAssign = false })}}, map[string]string{"shop/a": "2001:db8:80::5"}},
		{"by a pool that is not", world{services: []*corev1.Service{object("shop/a", annotated("pool", "wev"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "NoPool: annotation flock.fritzlab.net/pool: there is no valid AddressPool wev*"}},
		{"by another's pool", world{services: []*corev1.Service{object("evil/a", annotated("pool", "dns"))}, pools: []config.Pool{web, dns}}, map[string]string{"evil/a": "NoPool: *AddressPool dns admits only namespaces with labels team=dns"}},
		{"by pool, and an address of another", world{services: []*corev1.Service{object("shop/a", annotated("pool", "six"), annotated("addresses", "2001:db8:80::5"))}, pools: []config.Pool{web, six}}, map[string]string{"shop/a": "NotAdmitted: *asks for AddressPool six, and this is one of AddressPool web*"}},
		{"another pool later", world{services: []*corev1.Service{object("shop/a", has("2001:db8:6::5"), annotated("pool", "web"))}, pools: []config.Pool{web, six}}, map[string]string{"shop/a": "2001:db8:80::1"}},
		{"another pool later that has no such family", world{services: []*corev1.Service{object("shop/a", four, has("203.0.113.5"), annotated("pool", "six"))}, pools: []config.Pool{web, six}}, map[string]string{"shop/a": "203.0.113.5"}},
		{"another pool later that is not", world{services: []*corev1.Service{object("shop/a", has("2001:db8:6::5"), annotated("pool", "wev"))}, pools: []config.Pool{six}}, map[string]string{"shop/a": "2001:db8:6::5"}},

		{"a pool that was deleted", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5"))}}, map[string]string{"shop/a": "2001:db8:80::5"}},
		{"a pool that was narrowed", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5"))}, pools: []config.Pool{six}}, map[string]string{"shop/a": "2001:db8:80::5"}},
		{"a pool that admits it no longer", world{services: []*corev1.Service{object("shop/a", has("2001:db8:53::5"))}, pools: []config.Pool{dns}}, map[string]string{"shop/a": "2001:db8:53::5"}},
		{"lower ones became free", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::5"}},

		{"claimed, and the status not written", world{services: []*corev1.Service{object("shop/a"), object("shop/b", age(-1))}, pools: []config.Pool{web}, claims: map[string]service.Claim{"2001:db8:80::5": claimed("shop/a 80/TCP")}},
			map[string]string{"shop/a": "2001:db8:80::5", "shop/b": "2001:db8:80::1"}},
		{"claimed by a Service that is gone", world{services: []*corev1.Service{object("shop/a", annotated("addresses", "2001:db8:80::5"))}, pools: []config.Pool{web}, claims: map[string]service.Claim{"2001:db8:80::5": claimed("shop/gone 80/TCP")}},
			map[string]string{"shop/a": "AddressInUse: annotation flock.fritzlab.net/addresses: 2001:db8:80::5 is held by Service shop/gone, which is being released: it will be free in a moment"}},
		{"claimed by a pod", world{services: []*corev1.Service{object("shop/a", annotated("addresses", "2001:db8:80::1")), object("shop/b")}, pools: []config.Pool{web}, claims: map[string]service.Claim{"2001:db8:80::1": {Pod: "pod shop/web-0 on node node1"}}},
			map[string]string{"shop/a": "AddressInUse: annotation flock.fritzlab.net/addresses: 2001:db8:80::1 is an address of pod shop/web-0 on node node1: choose another address", "shop/b": "2001:db8:80::2"}},
		{"claimed by a pod, and in the status", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::1"))}, pools: []config.Pool{web}, claims: map[string]service.Claim{"2001:db8:80::1": {Pod: "pod shop/web-0 on node node1"}}}, map[string]string{"shop/a": "2001:db8:80::2"}},
		{"a node's", world{services: []*corev1.Service{object("shop/a"), object("shop/b", annotated("addresses", "2001:db8:80::1"))}, pools: []config.Pool{web}, taken: map[string]string{"2001:db8:80::1": "an address of node node1"}},
			map[string]string{"shop/a": "2001:db8:80::2", "shop/b": "AddressInUse: annotation flock.fritzlab.net/addresses: 2001:db8:80::1 is an address of node node1: choose another address"}},
		{"a node's, later", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::1"))}, pools: []config.Pool{web}, taken: map[string]string{"2001:db8:80::1": "an address of node node1"}}, map[string]string{"shop/a": "2001:db8:80::1"}},
		{"a pod CIDR's", world{services: []*corev1.Service{object("shop/a"), object("shop/b", annotated("addresses", "2001:db8:80::7"))}, pools: []config.Pool{web}, ranges: []service.Range{{Prefix: netip.MustParsePrefix("2001:db8:80::/100"), What: "the pod CIDR 2001:db8:80::/100 of node node1"}}},
			map[string]string{"shop/a": "2001:db8:80::1000:0", "shop/b": "AddressInUse: annotation flock.fritzlab.net/addresses: 2001:db8:80::7 is in the pod CIDR 2001:db8:80::/100 of node node1: choose another address"}},
		{"a pool within a pod CIDR", world{services: []*corev1.Service{object("shop/a")}, pools: []config.Pool{web}, ranges: []service.Range{{Prefix: netip.MustParsePrefix("2001:db8:80::/48"), What: "a pod CIDR"}}}, map[string]string{"shop/a": "PoolExhausted*"}},

		{"shared: the younger names the older", world{services: []*corev1.Service{object("shop/a"), object("shop/b", ports(443), annotated("shared-with", "a"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::1", "shop/b": "2001:db8:80::1"}},
		{"shared: the older names the younger", world{services: []*corev1.Service{object("shop/a", annotated("shared-with", "b")), object("shop/b", ports(443))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::1", "shop/b": "2001:db8:80::1"}},
		{"shared: of one that chooses", world{services: []*corev1.Service{object("shop/a", annotated("shared-with", "b")), object("shop/b", ports(443), annotated("addresses", "2001:db8:80::5"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::5", "shop/b": "2001:db8:80::5"}},
		{"shared: both choose", world{services: []*corev1.Service{object("shop/a", annotated("shared-with", "b"), annotated("addresses", "2001:db8:80::5")), object("shop/b", ports(443), annotated("addresses", "2001:db8:80::5"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::5", "shop/b": "2001:db8:80::5"}},
		{"shared: TCP and UDP", world{services: []*corev1.Service{object("shop/a", ports(53)), object("shop/b", ports(-53), annotated("shared-with", "a"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::1", "shop/b": "2001:db8:80::1"}},
		{"shared: three of a namespace", world{services: []*corev1.Service{object("shop/a"), object("shop/b", ports(443), annotated("shared-with", "a")), object("shop/c", ports(8080), annotated("shared-with", "a"))}, pools: []config.Pool{web}},
			map[string]string{"shop/a": "2001:db8:80::1", "shop/b": "2001:db8:80::1", "shop/c": "2001:db8:80::1"}},
		{"shared: in both families", world{services: []*corev1.Service{object("shop/a", prefer), object("shop/b", prefer, ports(443), annotated("shared-with", "shop/a"))}, pools: []config.Pool{web}}, map[string]string{"shop/b": "2001:db8:80::1 203.0.113.1"}},
		{"shared: of one that is not there yet", world{services: []*corev1.Service{object("shop/b", annotated("shared-with", "a"))}, pools: []config.Pool{web}}, map[string]string{"shop/b": "2001:db8:80::1"}},
		{"shared: the other comes later", world{services: []*corev1.Service{object("shop/b", has("2001:db8:80::7"), annotated("shared-with", "a")), object("shop/a", ports(443))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::7"}},
		{"shared: the same port", world{services: []*corev1.Service{object("shop/a", ports(443, 80)), object("shop/b", annotated("shared-with", "a"))}, pools: []config.Pool{web}},
			map[string]string{"shop/b": "PortInUse: annotation flock.fritzlab.net/shared-with: 2001:db8:80::1 is held by Service shop/a for port 80/TCP: change the port of one of them, or choose another address"}},
		{"shared: the other has a new port in the spec alone", world{services: []*corev1.Service{object("shop/a", ports(80), hasPorts("2001:db8:80::1", tcp(80), tcp(443))), object("shop/b", ports(443), annotated("shared-with", "a"))}, pools: []config.Pool{web}}, map[string]string{"shop/b": "PortInUse*"}},
		{"shared: with Local", world{services: []*corev1.Service{object("shop/a", local("x")), object("shop/b", ports(443), annotated("shared-with", "a"))}, pools: []config.Pool{web}}, map[string]string{"shop/b": "NotShared: *both need externalTrafficPolicy Cluster, or both need Local and the same selector"}},
		{"shared: both Local with the same pods", world{services: []*corev1.Service{object("shop/a", local("x")), object("shop/b", local("x"), ports(443), annotated("shared-with", "a"))}, pools: []config.Pool{web}}, map[string]string{"shop/b": "2001:db8:80::1"}},
		{"shared: both Local with other pods", world{services: []*corev1.Service{object("shop/a", local("x")), object("shop/b", local("y"), ports(443), annotated("shared-with", "a"))}, pools: []config.Pool{web}}, map[string]string{"shop/b": "NotShared*"}},
		{"shared: the pool does not allow it", world{services: []*corev1.Service{object("shop/a"), object("shop/b", ports(443), annotated("shared-with", "a"))}, pools: []config.Pool{with(web, func(p *config.Pool) { p.Services.Sharing = v1alpha1.SharingNone })}}, map[string]string{"shop/b": "NotShared: *does not allow sharing (spec.services.sharing: none)*"}},
		{"shared: a wrong annotation", world{services: []*corev1.Service{object("shop/a", annotated("shared-with", "x/y/z"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": `InvalidRequest: annotation flock.fritzlab.net/shared-with="x/y/z": "x/y/z" names no Service*`}},
		{"shared: it keeps what it has when it names another later", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::1")), object("shop/b", ports(443), has("2001:db8:80::2"), annotated("shared-with", "a"))}, pools: []config.Pool{web}}, map[string]string{"shop/b": "2001:db8:80::2"}},

		// What a tenant must not get.
		{"more than a namespace may have", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::9")), object("shop/b", age(1)), object("shop/c", age(2)), object("shop/d", annotated("addresses", "2001:db8:80::7"), age(3)), object("shop/e", annotated("shared-with", "a"), ports(443), age(4)), object("dns/a", age(5))}, pools: []config.Pool{with(web, func(p *config.Pool) { p.MaxPerNamespace = 2 })}},
			map[string]string{"shop/a": "2001:db8:80::9", "shop/b": "LimitReached: the Services of namespace shop have 2 addresses of AddressPool web*", "shop/d": "2001:db8:80::7", "shop/e": "2001:db8:80::9", "dns/a": "2001:db8:80::1"}},
		{"across namespaces: the pool does not allow it", world{services: []*corev1.Service{object("shop/a", annotated("shared-with", "evil/b")), object("evil/b", ports(443), annotated("shared-with", "shop/a"), age(1))}, pools: []config.Pool{web}},
			map[string]string{"shop/a": "2001:db8:80::1", "evil/b": "NotShared: *AddressPool web does not allow that Services of different namespaces share (spec.services.sharing: pool)*"}},
		{"across namespaces: both agree", world{services: []*corev1.Service{object("shop/a", annotated("shared-with", "dns/b")), object("dns/b", ports(443), annotated("shared-with", "shop/a"))}, pools: []config.Pool{anyone}}, map[string]string{"shop/a": "2001:db8:80::1", "dns/b": "2001:db8:80::1"}},
		{"across namespaces: only the guest", world{services: []*corev1.Service{object("shop/a"), object("evil/b", ports(443), annotated("shared-with", "shop/a"), age(1))}, pools: []config.Pool{anyone}},
			map[string]string{"shop/a": "2001:db8:80::1", "evil/b": "NotShared: annotation flock.fritzlab.net/shared-with: 2001:db8:80::1 is held by Service shop/a, which does not name Service evil/b in its annotation flock.fritzlab.net/shared-with: choose another address, or ask the owner of the other Service"}},
		{"across namespaces: only the guest, by address", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5")), object("evil/b", ports(443), annotated("addresses", "2001:db8:80::5"), annotated("shared-with", "shop/a"))}, pools: []config.Pool{anyone}}, map[string]string{"shop/a": "2001:db8:80::5", "evil/b": "NotShared*"}},
		{"across namespaces: by address alone", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5")), object("evil/b", ports(443), annotated("addresses", "2001:db8:80::5"))}, pools: []config.Pool{anyone}}, map[string]string{"shop/a": "2001:db8:80::5", "evil/b": "AddressInUse: *is held by Service shop/a: choose another address"}},
		{"across namespaces: only the host", world{services: []*corev1.Service{object("shop/a", annotated("shared-with", "dns/b")), object("dns/b", ports(443), age(1))}, pools: []config.Pool{anyone}}, map[string]string{"shop/a": "2001:db8:80::1", "dns/b": "2001:db8:80::2"}},
		{"across namespaces: by a friend of the host's", world{services: []*corev1.Service{
			object("shop/a", annotated("shared-with", "dns/b")), object("dns/b", ports(443), annotated("shared-with", "shop/a"), age(1)), object("evil/c", ports(8080), annotated("shared-with", "dns/b,shop/a"), age(2)),
		}, pools: []config.Pool{anyone}}, map[string]string{"dns/b": "2001:db8:80::1", "evil/c": "NotShared*"}},
		{"across namespaces: one of two agrees", world{services: []*corev1.Service{
			object("shop/a", annotated("shared-with", "dns/b")), object("dns/b", ports(443), annotated("shared-with", "shop/a,evil/c"), age(1)), object("evil/c", ports(8080), annotated("shared-with", "dns/b,shop/a"), age(2)),
		}, pools: []config.Pool{anyone}}, map[string]string{"dns/b": "2001:db8:80::1", "evil/c": "NotShared*"}},
		{"across namespaces: not admitted by the pool", world{services: []*corev1.Service{object("dns/a", annotated("shared-with", "evil/b")), object("evil/b", ports(443), annotated("shared-with", "dns/a"))}, pools: []config.Pool{with(dns, func(p *config.Pool) { p.Services.Sharing = v1alpha1.SharingPool })}}, map[string]string{"dns/a": "2001:db8:53::1", "evil/b": "NotAdmitted*"}},
		{"the victim's name in another namespace", world{services: []*corev1.Service{object("shop/a", annotated("shared-with", "b"), has("2001:db8:80::1")), object("evil/b", ports(443), annotated("shared-with", "shop/a"), age(1))}, pools: []config.Pool{anyone}}, map[string]string{"evil/b": "NotShared*"}},

		{"more than a namespace may have, in two families", world{services: []*corev1.Service{object("shop/a", prefer), object("shop/b", prefer, age(1)), object("shop/c", require, age(2)), object("shop/d", age(3)), object("shop/e", age(4))}, pools: []config.Pool{with(web, func(p *config.Pool) { p.MaxPerNamespace = 4 }), with(pool("z", "", "2001:db8:90::/64"), func(p *config.Pool) { p.MaxPerNamespace = 1 })}},
			map[string]string{"shop/a": "2001:db8:80::1 203.0.113.1", "shop/b": "2001:db8:80::2 203.0.113.2", "shop/c": "LimitReached*", "shop/d": "2001:db8:90::1", "shop/e": "LimitReached*"}},

		// Ports that change.
		{"a guest takes the host's port", world{services: []*corev1.Service{object("shop/a", hasPorts("2001:db8:80::1", tcp(80))), object("dns/b", ports(80, 443), hasPorts("2001:db8:80::1", tcp(443)), annotated("shared-with", "shop/a"))}, pools: []config.Pool{anyone},
			claims: map[string]service.Claim{"2001:db8:80::1": claimed("shop/a 80/TCP", "dns/b 443/TCP")}},
			map[string]string{"shop/a": "2001:db8:80::1", "dns/b": "NotShared*"}},
		{"an older host takes the guest's port", world{services: []*corev1.Service{object("shop/a", ports(80, 443), hasPorts("2001:db8:80::1", tcp(80))), object("shop/b", ports(443), hasPorts("2001:db8:80::1", tcp(443)), annotated("shared-with", "a"), age(9))}, pools: []config.Pool{web},
			claims: map[string]service.Claim{"2001:db8:80::1": claimed("shop/a 80/TCP", "shop/b 443/TCP")}},
			map[string]string{"shop/a": "PortInUse*", "shop/b": "2001:db8:80::1"}},
		{"both take the same new port", world{services: []*corev1.Service{object("shop/a", ports(80, 8080), hasPorts("2001:db8:80::1", tcp(80))), object("shop/b", ports(443, 8080), hasPorts("2001:db8:80::1", tcp(443)), annotated("shared-with", "a"), age(9))}, pools: []config.Pool{web},
			claims: map[string]service.Claim{"2001:db8:80::1": claimed("shop/a 80/TCP", "shop/b 443/TCP")}},
			map[string]string{"shop/a": "2001:db8:80::1", "shop/b": "PortInUse*"}},
		{"they exchange their ports", world{services: []*corev1.Service{object("shop/a", ports(443), hasPorts("2001:db8:80::1", tcp(80))), object("shop/b", ports(80), hasPorts("2001:db8:80::1", tcp(443)), annotated("shared-with", "a"), age(9))}, pools: []config.Pool{web},
			claims: map[string]service.Claim{"2001:db8:80::1": claimed("shop/a 80/TCP", "shop/b 443/TCP")}},
			map[string]string{"shop/a": "PortInUse*", "shop/b": "PortInUse*"}},
		{"another controller has given both the address", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::1")), object("dns/b", ports(443), has("2001:db8:80::1"))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::1", "dns/b": "2001:db8:80::1"}},
		{"another controller has given both the address and the port", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::1")), object("dns/b", has("2001:db8:80::1"), age(1))}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::1", "dns/b": "2001:db8:80::2"}},
		{"the claim decides between two statuses", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::1")), object("dns/b", has("2001:db8:80::1"), age(1))}, pools: []config.Pool{web}, claims: map[string]service.Claim{"2001:db8:80::1": claimed("dns/b 80/TCP")}}, map[string]string{"shop/a": "2001:db8:80::2", "dns/b": "2001:db8:80::1"}},

		{"being deleted", world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::1"), func(s *corev1.Service) { s.DeletionTimestamp = &metav1.Time{Time: began} }), object("shop/b", func(s *corev1.Service) { s.DeletionTimestamp = &metav1.Time{Time: began} })}, pools: []config.Pool{web}}, map[string]string{"shop/a": "2001:db8:80::1", "shop/b": "Waiting: *"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := service.Assign(tc.in.world())
			for key, want := range tc.want {
				namespace, name, _ := strings.Cut(key, "/")
				d := text(got[service.Key{Namespace: namespace, Name: name}])
				if !matches(want, d) {
					t.Errorf("%s:\n got %s\nwant %s", key, d, want)
				}
			}
			slices.Reverse(tc.in.services)
			slices.Reverse(tc.in.pools)
			if again := service.Assign(tc.in.world()); fmt.Sprint(again) != fmt.Sprint(got) {
				t.Errorf("in another order the decisions are\n%v\nnot\n%v", again, got)
			}
		})
	}
}

// matches compares with a pattern in which * is any text.
func matches(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	for _, part := range parts[1:] {
		i := strings.Index(s, part)
		if part == "" {
			i = len(s)
		}
		if i < 0 {
			return false
		}
		s = s[min(len(s), i+len(part)):]
	}
	return s == ""
}

// What stays although nothing grants it any more, and what is not to be had, is said.
func TestMessage(t *testing.T) {
	web := pool("web", "team=shop", "2001:db8:80::/64")
	for _, tc := range []struct {
		in   world
		want string
	}{
		{world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5"))}, pools: []config.Pool{web}}, "2001:db8:80::5 of AddressPool web"},
		{world{services: []*corev1.Service{object("shop/a", has("2001:db8:99::5"))}, pools: []config.Pool{web}}, "2001:db8:99::5 (kept, though no AddressPool with use service covers it any more)"},
		{world{services: []*corev1.Service{object("dns/a", has("2001:db8:80::5"))}, pools: []config.Pool{web}}, "2001:db8:80::5 of AddressPool web (it keeps it, though the pool does not admit namespace dns any more)"},
		{world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5"))}, pools: []config.Pool{web}, taken: map[string]string{"2001:db8:80::5": "an address of node node1"}}, "2001:db8:80::5 of AddressPool web (which is also an address of node node1: change one of them)"},
		{world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5")), object("shop/b", ports(1), has("2001:db8:80::5"), annotated("shared-with", "a"))}, pools: []config.Pool{web}}, "2001:db8:80::5 of AddressPool web shared with shop/b"},
		{world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5")), object("shop/b", ports(1), has("2001:db8:80::5"))}, pools: []config.Pool{web}}, "2001:db8:80::5 of AddressPool web shared with shop/b (to which annotation flock.fritzlab.net/shared-with does not agree: it stays until one of them gets another address, by annotation flock.fritzlab.net/addresses)"},
		{world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5")), object("dns/b", ports(1), has("2001:db8:80::5"), annotated("shared-with", "shop/a"))}, pools: []config.Pool{web}}, "2001:db8:80::5 of AddressPool web shared with dns/b (to which annotation flock.fritzlab.net/shared-with does not agree: it stays until one of them gets another address, by annotation flock.fritzlab.net/addresses)"},
		{world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5"), annotated("addresses", "2001:db8:99::1"))}, pools: []config.Pool{web}},
			"2001:db8:80::5 of AddressPool web; it keeps 2001:db8:80::5 because it cannot have what it asks for: annotation flock.fritzlab.net/addresses: no AddressPool covers 2001:db8:99::1: choose an address of a pool with use service that admits namespace shop, or ask the cluster's operator for one"},
		{world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5"), annotated("shared-with", "A!"))}, pools: []config.Pool{web}},
			`2001:db8:80::5 of AddressPool web; its request is ignored: annotation flock.fritzlab.net/shared-with="A!": "A!" names no Service: want NAME or NAMESPACE/NAME of Services, separated by commas`},
	} {
		for key, d := range service.Assign(tc.in.world()) {
			if key.Name == "a" && (d.Message != tc.want || !d.Complete) {
				t.Errorf("got  %s\nwant %s", d.Message, tc.want)
			}
		}
	}
	lost := service.Assign(world{services: []*corev1.Service{object("shop/a", has("2001:db8:80::5"))}, pools: []config.Pool{web}, claims: map[string]service.Claim{"2001:db8:80::5": {Pod: "pod shop/web-0 on node node1"}}}.world())
	if got := fmt.Sprint(lost[service.Key{Namespace: "shop", Name: "a"}].Lost); got != "[2001:db8:80::5 is claimed by pod shop/web-0 on node node1]" {
		t.Errorf("lost %s", got)
	}
}

func TestManaged(t *testing.T) {
	other := "example.com/other"
	for _, tc := range []struct {
		name            string
		change          func(*corev1.Service)
		want, classless bool
	}{
		{"of the class", func(*corev1.Service) {}, true, true},
		{"without a class", func(s *corev1.Service) { s.Spec.LoadBalancerClass = nil }, false, true},
		{"of another", func(s *corev1.Service) { s.Spec.LoadBalancerClass = &other }, false, false},
		{"of another type", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, false, false},
	} {
		svc := object("shop/a", tc.change)
		if got := service.Managed(svc, false); got != tc.want {
			t.Errorf("%s: %t", tc.name, got)
		}
		if got := service.Managed(svc, true); got != tc.classless {
			t.Errorf("%s, by setting: %t", tc.name, got)
		}
	}
}

// What is written to a status is read from it again.
func TestIngress(t *testing.T) {
	want := []service.Holding{{Addr: addr("2001:db8::1"), Ports: []service.Port{tcp(80), {Number: 443, Protocol: corev1.ProtocolUDP}}}, {Addr: addr("203.0.113.1"), Ports: []service.Port{tcp(80)}}}
	svc := &corev1.Service{}
	svc.Status.LoadBalancer.Ingress = service.Ingress(want)
	if got := service.Held(svc); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeVIP {
			t.Errorf("ipMode %v", in.IPMode)
		}
	}
	for _, bad := range []string{"", "80", "x/TCP", "0/TCP", "65536/TCP", "80/"} {
		if p, err := service.ParsePort(bad); err == nil {
			t.Errorf("%q is %v", bad, p)
		}
	}
}

// Nobody has an address of a pool in spec.externalIPs whom the pool does not let.
func TestExternalIP(t *testing.T) {
	external := func(p config.Pool) config.Pool {
		return with(p, func(p *config.Pool) { p.Services.ExternalIPs = true })
	}
	dns := external(pool("dns", "team=dns", "198.51.100.0/24"))
	for _, tc := range []struct {
		name      string
		namespace string
		pools     []config.Pool
		want, why string
		covered   bool
	}{
		{"allowed", "dns", []config.Pool{dns}, "dns", "", true},
		{"another namespace", "evil", []config.Pool{dns}, "", "no AddressPool lets namespace evil have it in spec.externalIPs: AddressPool dns admits only namespaces with labels team=dns", true},
		{"a pool for load balancers alone", "dns", []config.Pool{pool("dns", "", "198.51.100.0/24")}, "", "no AddressPool lets namespace dns have it in spec.externalIPs: AddressPool dns does not allow it (spec.services.externalIPs: true)", true},
		{"a pool of another use", "dns", []config.Pool{with(dns, func(p *config.Pool) { p.Service = false })}, "", `no AddressPool lets namespace dns have it in spec.externalIPs: AddressPool dns does not allow use "service"`, true},
		{"no pool", "dns", nil, "", "no AddressPool covers it", false},
		{"carved out", "dns", []config.Pool{dns, external(pool("carved", "team=shop", "198.51.100.0/28"))}, "", "no AddressPool lets namespace dns have it in spec.externalIPs: AddressPool carved admits only namespaces with labels team=shop", true},
		{"one of two", "dns", []config.Pool{dns, pool("a", "", "198.51.100.0/24")}, "dns", "", true},
	} {
		got, why, covered := service.ExternalIP(addr("198.51.100.7"), tc.namespace, labels.Set{"team": tc.namespace}, tc.pools)
		if got != tc.want || why != tc.why || covered != tc.covered {
			t.Errorf("%s: %q %q %t", tc.name, got, why, covered)
		}
	}
}

// An AddressClaim holds so many Services. The next one is told so, and gets nothing.
func TestMostSharers(t *testing.T) {
	t.Parallel()
	w := service.World{
		Pools: []config.Pool{{Name: "web", CIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8:80::/64")}, Namespaces: labels.Everything(), Service: true,
			Services: config.PoolServices{AutoAssign: true, Sharing: v1alpha1.SharingNamespace}}},
		Namespaces: map[string]labels.Set{"shop": {}},
	}
	const all = service.MaxSharers + 1
	for i := range all {
		w.Services = append(w.Services, service.Parse(object(fmt.Sprintf("shop/s%03d", i), ports(int32(1000+i)), age(i), annotated("addresses", "2001:db8:80::5"), annotated("shared-with", "s000"))))
	}
	decisions := service.Assign(w)
	for i, s := range w.Services {
		d := decisions[s.Key]
		if i < service.MaxSharers {
			if !d.Complete || len(d.Holdings) != 1 {
				t.Fatalf("%s: %+v", s.Key, d)
			}
		} else if want := "2001:db8:80::5 is shared by 128 Services, and an AddressClaim holds no more: choose another address"; d.Complete || len(d.Holdings) > 0 || d.Reason != service.NotShared || !strings.Contains(d.Message, want) {
			t.Errorf("%s: %+v", s.Key, d)
		}
	}
}
