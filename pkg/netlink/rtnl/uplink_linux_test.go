package rtnl

import (
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
)

// A link is an uplink by any default route of either family, one of several paths and a spare one
// included, and by no other route.
func TestIsUplink(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	c := dial(t, ns)
	ns.Exec("sh", "-ec", `
		for l in best spare six path1 path2 path3 path4 inside half; do ip link add $l type bridge; ip link set $l up; done
		ip address add 198.18.1.1/24 dev best; ip route add default via 198.18.1.2 metric 10
		ip address add 198.18.2.1/24 dev spare; ip route add default via 198.18.2.2 metric 100
		ip -6 route add default dev six metric 10
		ip route add default metric 50 nexthop dev path1 nexthop dev path2
		ip -6 address add 2001:db8:3::1/64 dev path3 nodad; ip -6 address add 2001:db8:4::1/64 dev path4 nodad
		ip -6 route add default metric 50 nexthop via 2001:db8:3::2 dev path3 nexthop via 2001:db8:4::2 dev path4
		ip address add 198.18.3.1/24 dev inside; ip route add 10.0.0.0/8 dev inside
		ip route add 128.0.0.0/1 dev half`)
	for name, want := range map[string]bool{
		"best": true, "spare": true, "six": true, "path1": true, "path2": true, "path3": true, "path4": true,
		"inside": false, "half": false, "lo": false,
	} {
		l, err := c.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.IsUplink(l.Index); got != want || err != nil {
			t.Errorf("%s: %t, %v; want %t", name, got, err, want)
		}
	}
}
