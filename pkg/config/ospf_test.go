package config

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

func TestOSPF(t *testing.T) {
	for text, want := range map[string]OSPF{
		`{routerID: 192.0.2.11, interfaces: [{name: eth0}]}`: {
			RouterID: netip.MustParseAddr("192.0.2.11"), Area: netip.IPv4Unspecified(), IPv6: true, IPv4: true,
			Interfaces: []OSPFInterface{{Name: "eth0", Cost: 65535, Hello: 10 * time.Second, Dead: 40 * time.Second}},
			Cost:       20, External1: true,
			Import: Import{Policy: v1alpha1.ImportNone, MaxPrefixes: 10000, MaxPrefixesAction: v1alpha1.MaxPrefixesBlock},
		},
		`{routerID: 192.0.2.11, area: 0.0.0.7, families: [ipv4], cost: 1, metricType: 2,
 sourceAddresses: {ipv4: 203.0.113.1}, import: {policy: default},
 interfaces: [{name: bond0.100, cost: 7, networkType: point-to-point, priority: 255, helloSeconds: 1, deadSeconds: 2, bfd: {},
 authentication: {passwordSecretRef: {name: ospf, key: k}, keyID: 255, algorithm: hmac-sha-512, ipv4Algorithm: md5, families: [ipv4]}}]}`: {
			RouterID: netip.MustParseAddr("192.0.2.11"), Area: netip.MustParseAddr("0.0.0.7"), IPv4: true,
			Interfaces: []OSPFInterface{{
				Name: "bond0.100", Cost: 7, PointToPoint: true, Priority: 255, Hello: time.Second, Dead: 2 * time.Second,
				BFD:            &BFD{Receive: 100 * time.Millisecond, Transmit: 100 * time.Millisecond, Multiplier: 3},
				Authentication: &OSPFAuthentication{Password: SecretRef{"ospf", "k"}, KeyID: 255, IPv4: v1alpha1.OSPFMD5},
			}},
			Cost: 1, Sources: Sources{IPv4: netip.MustParseAddr("203.0.113.1")},
			Import: Import{Policy: v1alpha1.ImportDefault, MaxPrefixes: 10000, MaxPrefixesAction: v1alpha1.MaxPrefixesBlock},
		},
	} {
		var nc v1alpha1.NodeConfig
		if err := yaml.UnmarshalStrict([]byte("spec:\n  podCIDRs: {ipv6: ['2001:db8:100:1::/64']}\n  ospf: "+text), &nc); err != nil {
			t.Fatal(err)
		}
		n, err := ParseNode(&nc)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*n.OSPF, want) {
			t.Errorf("have %+v\nwant %+v", *n.OSPF, want)
		}
	}
}
