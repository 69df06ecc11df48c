package plan

import "testing"

func TestAddressPlan(t *testing.T) {
	n1, n12 := Nodes(12)[0], Nodes(12)[11]
	for _, c := range []struct{ what, got, want string }{
		{"node1 IPv6", n1.LAN().IPv6.String(), "2001:db8:0:1::11/64"},
		{"node1 IPv4", n1.LAN().IPv4.String(), "192.0.2.11/24"},
		{"node1 pods IPv6", n1.Pods().IPv6.String(), "2001:db8:100:1::/64"},
		{"node1 pods IPv4", n1.Pods().IPv4.String(), "10.244.1.0/24"},
		{"node12 pods of another plugin, IPv6", n12.OtherPods().IPv6.String(), "2001:db8:101:12::/64"},
		{"node12 pods of another plugin, IPv4", n12.OtherPods().IPv4.String(), "10.245.12.0/24"},
		{"node12 IPv6", n12.LAN().IPv6.String(), "2001:db8:0:1::22/64"},
		{"node12 IPv4", n12.LAN().IPv4.String(), "192.0.2.22/24"},
		{"node12 pods IPv6", n12.Pods().IPv6.String(), "2001:db8:100:12::/64"},
		{"API server's Service", First(Service6).String(), "2001:db8:0:5::1"},
		{"name server's Service", DNS(Service4).String(), "10.96.0.10"},
		{"node12's zone", n12.Zone(), "zone3"},
		{"tor", TorLAN.IPv6.String(), "2001:db8:0:1::1/64"},
		{"outside", OutsideHost.IPv4.String(), "198.51.100.2/24"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.what, c.got, c.want)
		}
	}
}
