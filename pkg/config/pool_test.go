package config

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

func addressPool(change func(*v1alpha1.AddressPoolSpec)) *v1alpha1.AddressPool {
	ap := &v1alpha1.AddressPool{
		ObjectMeta: metav1.ObjectMeta{Name: "dns"},
		Spec:       v1alpha1.AddressPoolSpec{CIDRs: []v1alpha1.CIDR{"2001:db8:53::/64"}, Uses: []v1alpha1.PoolUse{"anycast"}},
	}
	change(&ap.Spec)
	return ap
}

func TestParsePool(t *testing.T) {
	plain := Pool{Name: "dns", CIDRs: prefixes("2001:db8:53::/64"), Namespaces: labels.Everything(), Anycast: true, Quarantine: time.Minute, Services: PoolServices{AutoAssign: true, Sharing: v1alpha1.SharingNamespace}}
	for _, tc := range []struct {
		name   string
		change func(*v1alpha1.AddressPoolSpec)
		want   func(*Pool)
	}{
		{"the least", func(*v1alpha1.AddressPoolSpec) {}, func(*Pool) {}},
		{"both families and uses", func(s *v1alpha1.AddressPoolSpec) {
			s.CIDRs = append(s.CIDRs, "203.0.113.53/32")
			s.Uses = append(s.Uses, "static")
		}, func(p *Pool) { p.CIDRs, p.Static = prefixes("2001:db8:53::/64", "203.0.113.53/32"), true }},
		{"a quarantine", func(s *v1alpha1.AddressPoolSpec) { s.QuarantineSeconds = ptr(int32(5)) }, func(p *Pool) { p.Quarantine = 5 * time.Second }},
		{"no quarantine", func(s *v1alpha1.AddressPoolSpec) { s.QuarantineSeconds = ptr(int32(0)) }, func(p *Pool) { p.Quarantine = 0 }},
		{"for Services", func(s *v1alpha1.AddressPoolSpec) { s.Uses = []v1alpha1.PoolUse{"service"} }, func(p *Pool) {
			p.Anycast, p.Service = false, true
		}},
		{"for Services, with all settings", func(s *v1alpha1.AddressPoolSpec) {
			s.Uses = append(s.Uses, "service", "static")
			s.Services = &v1alpha1.PoolServices{AutoAssign: ptr(false), Sharing: v1alpha1.SharingPool, ExternalIPs: true}
			s.Routing.Aggregate = true
		}, func(p *Pool) {
			p.Static, p.Service, p.Routing.Aggregate = true, true, true
			p.Services = PoolServices{Sharing: v1alpha1.SharingPool, ExternalIPs: true}
		}},
		{"routing", func(s *v1alpha1.AddressPoolSpec) {
			s.Routing = v1alpha1.PoolRouting{
				BGPExport: v1alpha1.BGPExport{
					Communities:      []v1alpha1.Community{"64512:53", "0:65535", "no-export", "graceful-shutdown"},
					LargeCommunities: []v1alpha1.LargeCommunity{"4200000000:0:4294967295"},
					LocalPreference:  ptr(int64(4294967295)), MED: ptr(int64(0)), Prepend: 2,
				},
				AnnounceDelay: &metav1.Duration{Duration: time.Hour},
			}
		}, func(p *Pool) {
			p.Routing = PoolRouting{
				Export: Export{
					Communities:      []Community{{64512, 53}, {0, 65535}, {65535, 65281}, {65535, 0}},
					LargeCommunities: []LargeCommunity{{4200000000, 0, 4294967295}},
					LocalPreference:  ptr(uint32(4294967295)), MED: ptr(uint32(0)), Prepend: 2,
				},
				AnnounceDelay: time.Hour,
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := plain
			tc.want(&want)
			got, err := ParsePool(addressPool(tc.change))
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("\n got %+v, %v\nwant %+v", got, err, want)
			}
		})
	}

	p, err := ParsePool(addressPool(func(s *v1alpha1.AddressPoolSpec) {
		s.NamespaceSelector = metav1.LabelSelector{MatchLabels: map[string]string{"team": "dns"}}
	}))
	if err != nil || !p.Namespaces.Matches(labels.Set{"team": "dns", "x": "y"}) || p.Namespaces.Matches(labels.Set{"team": "shop"}) || p.Namespaces.Matches(labels.Set(nil)) {
		t.Errorf("selector %v, %v", p.Namespaces, err)
	}
	if c, ok := p.Covering(netip.MustParseAddr("2001:db8:53::7")); !ok || c != p.CIDRs[0] {
		t.Errorf("covering: %v, %v", c, ok)
	}
	if c, ok := p.Covering(netip.MustParseAddr("2001:db8:54::7")); ok {
		t.Errorf("%s covers an address outside of it", c)
	}
}

func TestParsePoolRefuses(t *testing.T) {
	type spec = v1alpha1.AddressPoolSpec
	cidrs := func(cs ...v1alpha1.CIDR) func(*spec) { return func(s *spec) { s.CIDRs = cs } }
	for _, tc := range []struct {
		name   string
		change func(*spec)
		want   []string
	}{
		{"no CIDR", cidrs(), []string{"spec.cidrs: Required value: name at least one CIDR"}},
		{"malformed", cidrs("2001:db8::/64", "x"), []string{`spec.cidrs[1]: Invalid value: "x": not a CIDR`}},
		{"host bits", cidrs("2001:db8::1/64"), []string{`spec.cidrs[0]: Invalid value: "2001:db8::1/64": has bits set behind the prefix length: want 2001:db8::/64`}},
		{"a default route", cidrs("::/0"), []string{`spec.cidrs: Invalid value: "::/0": the prefix length must be between /1 and /128`}},
		{"multicast", cidrs("ff3e::/64", "224.1.0.0/24"), []string{`"ff3e::/64": must be of global unicast`, `"224.1.0.0/24": must be of global unicast`}},
		{"overlap", cidrs("2001:db8::/32", "2001:db8::7/128"), []string{`spec.cidrs: Invalid value: "2001:db8::7/128": overlaps 2001:db8::/32`}},
		{"no use", func(s *spec) { s.Uses = nil }, []string{"spec.uses: Required value: name at least one of static, anycast and service"}},
		{"another use", func(s *spec) { s.Uses = []v1alpha1.PoolUse{"unicast"} }, []string{`spec.uses[0]: Unsupported value: "unicast": supported values: "static", "anycast", "service"`}},
		{"services without the use", func(s *spec) { s.Services = &v1alpha1.PoolServices{} }, []string{`spec.services: Invalid value: "{}": is for pools with the use service`}},
		{"sharing", func(s *spec) {
			s.Uses, s.Services = []v1alpha1.PoolUse{"service"}, &v1alpha1.PoolServices{Sharing: "all"}
		}, []string{`spec.services.sharing: Unsupported value: "all": supported values: "none", "namespace", "pool"`}},
		{"aggregate without the use", func(s *spec) { s.Routing.Aggregate = true }, []string{"spec.routing.aggregate: Invalid value: true: is for pools with the use service"}},
		{"selector", func(s *spec) {
			s.NamespaceSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}
		}, []string{`: not a label selector: "Like" is not a valid label selector operator`}},
		{"communities", func(s *spec) {
			s.Routing.Communities = []v1alpha1.Community{"64512:65536", "64512", "1:2:3", "+1:2", "no_export", "", "1:2; }"}
		}, []string{
			`spec.routing.communities[0]: Invalid value: "64512:65536": not a community`, "communities[1]", "communities[2]", "communities[3]", "communities[4]", "communities[5]", "communities[6]",
		}},
		{"large communities", func(s *spec) {
			s.Routing.LargeCommunities = []v1alpha1.LargeCommunity{"1:2", "4294967296:1:1", "1:2:-3", "1:2:3:4"}
		}, []string{`spec.routing.largeCommunities[0]: Invalid value: "1:2": not a large community`, "largeCommunities[1]", "largeCommunities[2]", "largeCommunities[3]"}},
		{"metrics", func(s *spec) { s.Routing.LocalPreference, s.Routing.MED = ptr(int64(-1)), ptr(int64(4294967296)) }, []string{
			"spec.routing.localPreference: Invalid value: -1: must be between 0 and 4294967295", "spec.routing.med: Invalid value: 4294967296",
		}},
		{"quarantine", func(s *spec) { s.QuarantineSeconds = ptr(int32(86401)) }, []string{"spec.quarantineSeconds: Invalid value: 86401: must be between 0 and 86400 seconds"}},
		{"announce delay", func(s *spec) { s.Routing.AnnounceDelay = &metav1.Duration{Duration: time.Hour + 1} }, []string{`spec.routing.announceDelay: Invalid value: "1h0m0.000000001s": must be between 0s and 1h`}},
		{"negative announce delay", func(s *spec) { s.Routing.AnnounceDelay = &metav1.Duration{Duration: -1} }, []string{`spec.routing.announceDelay`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := ParsePool(addressPool(tc.change))
			wantErrors(t, err, "addresspool dns: ", tc.want...)
			if !reflect.DeepEqual(p, Pool{}) {
				t.Errorf("an error, and half a pool: %+v", p)
			}
		})
	}
}
