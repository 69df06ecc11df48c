package wiring

import (
	"errors"
	"strings"
	"testing"
)

// Whatever is taken from a pod's wiring, Check says what it is, and Attach puts
// it back.
func TestCheckFindsAndAttachMends(t *testing.T) {
	t.Parallel()
	const v6, v4, ll = "2001:db8:100::5", "10.244.0.5", "fe80::a06b:99ff:feed:2270"
	inPod := func(args ...string) func(p testPod, n *testNode) {
		return func(p testPod, _ *testNode) { p.IP(args...) }
	}
	// HOSTIF stands for the link's name.
	onNode := func(args ...string) func(p testPod, n *testNode) {
		return func(p testPod, n *testNode) {
			var a []string
			for _, arg := range args {
				a = append(a, strings.ReplaceAll(arg, "HOSTIF", p.HostIf))
			}
			n.ns.IP(a...)
		}
	}
	for name, tc := range map[string]struct {
		sabotage func(p testPod, n *testNode)
		want     []string
	}{
		"pod's IPv6 address":   {inPod("addr", "del", v6, "dev", "eth0"), []string{"pod's eth0: address 2001:db8:100::5/128: missing"}},
		"pod's IPv4 address":   {inPod("addr", "del", v4, "dev", "eth0"), []string{"pod's eth0: address 10.244.0.5/32: missing"}},
		"pod's link-local":     {inPod("addr", "del", ll+"/128", "dev", "eth0"), []string{"pod's eth0: address " + ll + " peer fe80::1: missing"}},
		"pod's IPv6 default":   {inPod("-6", "route", "del", "default"), []string{"pod's eth0: route ::/0 via fe80::1 src 2001:db8:100::5: missing"}},
		"pod's IPv4 default":   {inPod("-4", "route", "del", "default"), []string{"pod's eth0: route 0.0.0.0/0 via 169.254.1.1 src 10.244.0.5: missing"}},
		"pod's IPv6 neighbour": {inPod("neigh", "del", "fe80::1", "dev", "eth0"), []string{"pod's eth0: neighbour fe80::1 at 02:66:6c:6f:63:6b: missing"}},
		"pod's IPv4 neighbour": {inPod("neigh", "replace", "169.254.1.1", "lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent"), []string{"pod's eth0: neighbour 169.254.1.1 at 02:66:6c:6f:63:6b: missing"}},
		"pod's mtu":            {inPod("link", "set", "eth0", "mtu", "1400"), []string{"pod's eth0: mtu: 1400, want 1500"}},
		"pod's mac":            {inPod("link", "set", "eth0", "address", "02:00:00:00:00:01"), []string{"pod's eth0: mac: 02:00:00:00:00:01, want a2:6b:99:ed:22:70"}},
		"pod's link down":      {inPod("link", "set", "eth0", "down"), []string{"pod's eth0: link: down", "pod's eth0: route ::/0 via", "pod's eth0: neighbour 169.254.1.1"}},
		"pod's addrgenmode":    {inPod("link", "set", "eth0", "addrgenmode", "eui64"), []string{"pod's eth0: automatic link-local address: on"}},
		"pod's loopback":       {inPod("link", "set", "lo", "down"), []string{"loopback: down"}},
		"pod's mtu below IPv6": {inPod("link", "set", "eth0", "mtu", "1000"), []string{"pod's eth0: mtu: 1000", "pod's eth0: address " + v6 + "/128: missing"}},

		"host's mtu":            {onNode("link", "set", "HOSTIF", "mtu", "1400"), []string{"HOSTIF: mtu: 1400, want 1500"}},
		"host's mac":            {onNode("link", "set", "HOSTIF", "address", "02:00:00:00:00:01"), []string{"HOSTIF: mac: 02:00:00:00:00:01, want 02:66:6c:6f:63:6b"}},
		"host's link down":      {onNode("link", "set", "HOSTIF", "down"), []string{"HOSTIF: link: down", "HOSTIF: route 10.244.0.5/32: missing", "HOSTIF: neighbour " + v6}},
		"host's pod name":       {onNode("link", "set", "HOSTIF", "alias", "other c0ffee"), []string{`HOSTIF: alias: "other c0ffee", want "test/c0ffee c0ffee"`}},
		"host's IPv6 route":     {onNode("route", "del", v6, "dev", "HOSTIF"), []string{"HOSTIF: route 2001:db8:100::5/128: missing"}},
		"host's IPv4 route":     {onNode("route", "del", v4, "dev", "HOSTIF"), []string{"HOSTIF: route 10.244.0.5/32: missing"}},
		"host's extra route":    {onNode("route", "add", "10.244.0.6", "dev", "HOSTIF", "proto", "85", "metric", "1024"), []string{"HOSTIF: route 10.244.0.6/32: not the pod's"}},
		"host's IPv6 neighbour": {onNode("neigh", "del", v6, "dev", "HOSTIF"), []string{"HOSTIF: neighbour 2001:db8:100::5 at a2:6b:99:ed:22:70: missing"}},
		"host's LL neighbour":   {onNode("neigh", "del", ll, "dev", "HOSTIF"), []string{"HOSTIF: neighbour " + ll + " at a2:6b:99:ed:22:70: missing"}},
		"host's IPv4 neighbour": {onNode("neigh", "change", v4, "dev", "HOSTIF", "nud", "stale"), []string{"HOSTIF: neighbour 10.244.0.5 at a2:6b:99:ed:22:70: missing"}},
		"host's gateway":        {onNode("addr", "del", "fe80::1/128", "dev", "HOSTIF"), []string{"HOSTIF: address fe80::1 peer " + ll + ": missing"}},
		"host's rp_filter": {func(p testPod, n *testNode) { n.ns.Sysctl("ipv4/conf/"+p.HostIf+"/rp_filter", "1") },
			[]string{"HOSTIF: IPv4 forwarding and rp_filter: true and 1, want true and 0"}},
		"host's forwarding": {func(p testPod, n *testNode) { n.ns.Sysctl("ipv4/conf/"+p.HostIf+"/forwarding", "0") },
			[]string{"HOSTIF: IPv4 forwarding and rp_filter: false and 0, want true and 0"}},
		"host's IPv6 off": {func(p testPod, n *testNode) { n.ns.Sysctl("ipv6/conf/"+p.HostIf+"/disable_ipv6", "1") },
			[]string{"HOSTIF: IPv6: disabled by sysctl", "HOSTIF: address fe80::1 peer " + ll + ": missing"}},
		"host obeys pods": {func(p testPod, n *testNode) { n.ns.Sysctl("ipv6/conf/"+p.HostIf+"/accept_ra", "2") },
			[]string{"HOSTIF: router advertisements: accepted from the pod"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			node.apply(t)
			p, other := node.podWith(t, "c0ffee", v6, v4), node.pod(t)
			node.attach(t, p)
			node.attach(t, other)
			if err := node.Check(p.File(), p.Attachment); err != nil {
				t.Fatalf("check of a whole pod: %v", err)
			}

			tc.sabotage(p, node)
			err := node.Check(p.File(), p.Attachment)
			for _, want := range tc.want {
				want = strings.ReplaceAll(want, "HOSTIF", p.HostIf)
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("check says:\n%v\nwant:\n%s", err, want)
				}
			}

			node.attach(t, p)
			if err := node.Check(p.File(), p.Attachment); err != nil {
				t.Errorf("check after the repair: %v", err)
			}
			p.Exec("ping", "-c1", "-W5", other.v6())
			p.Exec("ping", "-c1", "-W5", other.v4())
		})
	}
}

func TestCheckOfWhatIsNotThere(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p, other := node.pod(t), node.pod(t)
	if err := node.Check(p.File(), p.Attachment); err == nil || !strings.Contains(err.Error(), p.HostIf) {
		t.Errorf("no link: error %v, want one that names %s", err, p.HostIf)
	}
	node.attach(t, other)
	stolen := p
	stolen.HostIf = other.HostIf
	var collision *CollisionError
	if err := node.Check(stolen.File(), stolen.Attachment); !errors.As(err, &collision) || collision.Owner != other.ContainerID {
		t.Errorf("another's link: error %v, want a collision with %s", err, other.ContainerID)
	}
	if err := node.Check(p.File(), other.Attachment); err == nil || !strings.Contains(err.Error(), "not in network namespace") {
		t.Errorf("another sandbox: error %v, want one about the namespace", err)
	}
	if err := node.Check(p.File(), Attachment{}); err == nil {
		t.Error("check of the zero attachment finds nothing")
	}
}
