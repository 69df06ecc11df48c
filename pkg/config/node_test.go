package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

func ptr[T any](v T) *T { return &v }

func prefixes(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// wantErrors checks that err is about the object and holds the texts, one error each.
func wantErrors(t *testing.T, err error, object string, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", texts)
	}
	if !strings.HasPrefix(err.Error(), object) {
		t.Errorf("error %v is not about %s", err, object)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error:\n got %v\nwant %s", err, text)
		}
	}
	if got := len(valueErrors.FindAllString(err.Error(), -1)); got != len(texts) {
		t.Errorf("%d errors, want %d: %v", got, len(texts), err)
	}
}

var valueErrors = regexp.MustCompile(`(Invalid|Required|Unsupported|Duplicate) value: `)

func nodeConfig(change func(*v1alpha1.NodeConfigSpec)) *v1alpha1.NodeConfig {
	nc := &v1alpha1.NodeConfig{
		ObjectMeta: metav1.ObjectMeta{Name: "node1"},
		Spec: v1alpha1.NodeConfigSpec{
			PodCIDRs: v1alpha1.PodCIDRs{IPv6: []v1alpha1.CIDR{"2001:db8:1::/64"}, IPv4: []v1alpha1.CIDR{"10.1.0.0/24"}},
		},
	}
	change(&nc.Spec)
	return nc
}

func TestParseNode(t *testing.T) {
	plain := Node{
		IPv6: prefixes("2001:db8:1::/64"), IPv4: prefixes("10.1.0.0/24"),
		Services:   ServiceAddresses{LoadBalancer: true, ExternalIP: true},
		Quarantine: time.Minute, MaxAddresses: 8, Defaults: Defaults{IPv6: true}, StartupSessions: v1alpha1.StartupAny,
	}
	for _, tc := range []struct {
		name   string
		change func(*v1alpha1.NodeConfigSpec)
		want   func(*Node)
	}{
		{"defaults", func(*v1alpha1.NodeConfigSpec) {}, func(*Node) {}},
		{"everything set", func(s *v1alpha1.NodeConfigSpec) {
			s.PodCIDRs.IPv6 = []v1alpha1.CIDR{"fd00::/48", "2001:db8:1::/120"}
			s.PodCIDRs.Exclude = []v1alpha1.CIDR{"10.1.0.0/30", "fd00::7/128"}
			s.PodCIDRs.QuarantineSeconds = ptr(int32(0))
			s.Defaults = v1alpha1.Defaults{IPv6: ptr(false), IPv4: ptr(true), IPAlgo: []v1alpha1.IPAlgo{"app"}}
			s.MTU = 1280
			s.Startup.Sessions = v1alpha1.StartupAll
			s.Services.Announce = []v1alpha1.ServiceAddress{"ClusterIP", "LoadBalancer"}
			s.PodCIDRs.Static = &v1alpha1.StaticGrant{MaxAddressesPerNamespace: 5}
			s.MaxAddressesPerPod = 1024
		}, func(n *Node) {
			*n = Node{
				IPv6: prefixes("fd00::/48", "2001:db8:1::/120"), IPv4: n.IPv4, Exclude: prefixes("10.1.0.0/30", "fd00::7/128"),
				Static:   &StaticGrant{Namespaces: labels.Everything(), MaxPerNamespace: 5},
				Defaults: Defaults{IPv4: true, IPAlgo: []v1alpha1.IPAlgo{"app"}}, MTU: 1280, StartupSessions: v1alpha1.StartupAll,
				Services:     ServiceAddresses{LoadBalancer: true, ClusterIP: true},
				MaxAddresses: 1024,
			}
		}},
		{"no Services", func(s *v1alpha1.NodeConfigSpec) { s.Services.Announce = []v1alpha1.ServiceAddress{} }, func(n *Node) { n.Services = ServiceAddresses{} }},
		{"IPv4 beside IPv6", func(s *v1alpha1.NodeConfigSpec) { s.Defaults.IPv4 = ptr(true) }, func(n *Node) { n.Defaults.IPv4 = true }},
		{"IPv4 alone", func(s *v1alpha1.NodeConfigSpec) { s.PodCIDRs.IPv6 = nil }, func(n *Node) { n.IPv6, n.Defaults = nil, Defaults{IPv4: true} }},
		{"the longest quarantine", func(s *v1alpha1.NodeConfigSpec) { s.PodCIDRs.QuarantineSeconds = ptr(int32(86400)) }, func(n *Node) { n.Quarantine = 24 * time.Hour }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := plain
			tc.want(&want)
			got, err := ParseNode(nodeConfig(tc.change))
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("\n got %+v, %v\nwant %+v", got, err, want)
			}
		})
	}
	if got := fmt.Sprint(plain.Summaries()); got != "[2001:db8:1::/64 10.1.0.0/24]" {
		t.Errorf("summaries %s", got)
	}
}

func TestParseNodeRefuses(t *testing.T) {
	type spec = v1alpha1.NodeConfigSpec
	cidrs := func(v6, v4 []v1alpha1.CIDR) func(*spec) {
		return func(s *spec) { s.PodCIDRs = v1alpha1.PodCIDRs{IPv6: v6, IPv4: v4} }
	}
	for _, tc := range []struct {
		name   string
		change func(*spec)
		want   []string
	}{
		{"no CIDR", cidrs(nil, nil), []string{"spec.podCIDRs: Required value: name at least one CIDR under ipv6 or ipv4"}},
		{"malformed", cidrs([]v1alpha1.CIDR{"2001:db8::/64", "2001:db8:/64"}, []v1alpha1.CIDR{"10.0.0.0"}), []string{
			`spec.podCIDRs.ipv6[1]: Invalid value: "2001:db8:/64": not a CIDR: want an address, a slash and a prefix length`,
			`spec.podCIDRs.ipv4[0]: Invalid value: "10.0.0.0": not a CIDR`,
		}},
		{"injected", cidrs([]v1alpha1.CIDR{"2001:db8::/64; }"}, nil), []string{`spec.podCIDRs.ipv6[0]: Invalid value: "2001:db8::/64; }": not a CIDR`}},
		{"mapped", cidrs([]v1alpha1.CIDR{"::ffff:10.0.0.0/120"}, nil), []string{`spec.podCIDRs.ipv6[0]: Invalid value: "::ffff:10.0.0.0/120": not a CIDR`}},
		{"host bits", cidrs(nil, []v1alpha1.CIDR{"10.0.0.1/24"}), []string{`spec.podCIDRs.ipv4[0]: Invalid value: "10.0.0.1/24": has bits set behind the prefix length: want 10.0.0.0/24`}},
		{"the other family", cidrs([]v1alpha1.CIDR{"10.0.0.0/24"}, []v1alpha1.CIDR{"2001:db8::/64"}), []string{
			`spec.podCIDRs.ipv6: Invalid value: "10.0.0.0/24": is of the other family`,
			`spec.podCIDRs.ipv4: Invalid value: "2001:db8::/64": is of the other family`,
		}},
		{"too long and too short", cidrs([]v1alpha1.CIDR{"2001:db8::/47", "2001:db9::/121"}, []v1alpha1.CIDR{"10.0.0.0/7", "12.0.0.0/31"}), []string{
			`spec.podCIDRs.ipv6: Invalid value: "2001:db8::/47": the prefix length must be between /48 and /120`, `"2001:db9::/121"`,
			`spec.podCIDRs.ipv4: Invalid value: "10.0.0.0/7": the prefix length must be between /8 and /30`, `"12.0.0.0/31"`,
		}},
		{"link-local and multicast", cidrs([]v1alpha1.CIDR{"fe80::/64", "ff02::/64"}, []v1alpha1.CIDR{"169.254.0.0/16", "127.0.0.0/8"}), []string{
			`"fe80::/64": must be of global unicast`, `"ff02::/64"`, `"169.254.0.0/16": must be of global unicast`, `"127.0.0.0/8"`,
		}},
		{"overlap", cidrs([]v1alpha1.CIDR{"2001:db8::/48", "2001:db8:0:1::/64"}, []v1alpha1.CIDR{"10.0.0.0/24", "10.0.0.0/24"}), []string{
			`spec.podCIDRs.ipv6: Invalid value: "2001:db8:0:1::/64": overlaps 2001:db8::/48`, `spec.podCIDRs.ipv4: Invalid value: "10.0.0.0/24": overlaps 10.0.0.0/24`,
		}},
		{"exclude", func(s *spec) { s.PodCIDRs.Exclude = []v1alpha1.CIDR{"10.0.0.7"} }, []string{`spec.podCIDRs.exclude[0]: Invalid value: "10.0.0.7": not a CIDR`}},
		{"quarantine", func(s *spec) { s.PodCIDRs.QuarantineSeconds = ptr(int32(86401)) }, []string{"spec.podCIDRs.quarantineSeconds: Invalid value: 86401: must be between 0 and 86400 seconds"}},
		{"negative quarantine", func(s *spec) { s.PodCIDRs.QuarantineSeconds = ptr(int32(-1)) }, []string{"spec.podCIDRs.quarantineSeconds: Invalid value: -1"}},
		{"both families off", func(s *spec) { s.Defaults.IPv6 = ptr(false) }, []string{"spec.defaults: Invalid value: \"ipv6: false, ipv4: false\": leave at least one family on"}},
		{"a family without a CIDR", func(s *spec) { s.PodCIDRs.IPv6, s.Defaults.IPv6 = nil, ptr(true) }, []string{"spec.defaults.ipv6: Invalid value: true: without a CIDR in spec.podCIDRs.ipv6 no pod without annotations could start"}},
		{"MTU", func(s *spec) { s.MTU = 1279 }, []string{"spec.mtu: Invalid value: 1279: must be 0 (take the uplink's) or between 1280 and 65535"}},
		{"MTU too large", func(s *spec) { s.MTU = 65536 }, []string{"spec.mtu: Invalid value: 65536"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := ParseNode(nodeConfig(tc.change))
			wantErrors(t, err, "nodeconfig node1: ", tc.want...)
			if !reflect.DeepEqual(n, Node{}) {
				t.Errorf("an error, and half a node: %+v", n)
			}
		})
	}
}

// A pod CIDR around the router would take the node's way to it.
func TestRouterInsideAPodCIDR(t *testing.T) {
	nc := &v1alpha1.NodeConfig{}
	nc.Name = "node1"
	nc.Spec.PodCIDRs.IPv4 = []v1alpha1.CIDR{"10.244.1.0/24", "192.0.2.0/28"}
	nc.Spec.BGP = &v1alpha1.BGP{LocalAS: 64601, RouterID: "192.0.2.11"}
	nc.Spec.BGP.Peers = []v1alpha1.BGPPeer{{Name: "tor", Address: "192.0.2.1", RemoteAS: 64512}}
	_, err := ParseNode(nc)
	if want := "contains 192.0.2.1, the address of BGP peer tor"; err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "10.244.1.0/24") {
		t.Errorf("%v, want only 192.0.2.0/28 refused: %s", err, want)
	}
}
