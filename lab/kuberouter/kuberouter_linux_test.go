package kuberouter

import (
	"maps"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/lab/plan"
)

// TestAnnotations: kube-router peers with the lab's router as flock does, and has other pods.
func TestAnnotations(t *testing.T) {
	t.Parallel()
	got := annotations(plan.Nodes(2)[1], plan.Dual)
	want := map[string]string{
		"node.asn": "64602", "pod-cidr": "10.245.2.0/24", "pod-cidrs": "2001:db8:101:2::/64,10.245.2.0/24",
		"peer.ips": "2001:db8:0:1::1,192.0.2.1", "peer.localips": "2001:db8:0:1::12,192.0.2.12", "peer.asns": "64512,64512",
	}
	if !maps.Equal(got, want) {
		t.Errorf("annotations %v, want %v", got, want)
	}
}

func TestManifest(t *testing.T) {
	t.Parallel()
	got, err := render(plan.IPv4Only)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"image: " + ref, "ip link set kube-bridge address " + bridgeMAC, "--enable-ipv6=false", "--service-cluster-ip-range=10.96.0.0/16\n", "/etc/cni/net.d/" + Conflist} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing:\n%s", want, got)
		}
	}
}
