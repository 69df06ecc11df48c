package anycast

import (
	"fmt"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// Whatever somebody does to anycast routes and what they stand on, one Sync finds it and ends
// in the state before; the next finds nothing. Until then the status says what the kernel had.
func TestSyncRepairs(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		damage string // a shell's
		kind   kernel.Kind
		want   string
	}{
		"announced route": {"ip -6 route del 2001:db8::53 metric 512", kernel.Route, "2001:db8::53/128 proto 85 metric 512: missing"},
		"local route":     {"ip route del 192.0.2.53 metric 1024", kernel.Route, "192.0.2.53/32 proto 85 metric 1024: missing"},
		"all routes":      {"for m in 512 1024; do ip -6 route del 2001:db8::53 metric $m; ip route del 192.0.2.53 metric $m; done", kernel.Route, "2001:db8::53/128 proto 85 metric 512: missing"},
		"all nexthops":    {"ip nexthop flush", kernel.Nexthop, "nexthop group of 2001:db8::53: missing"},
		"groups":          {"ip nexthop flush groups", kernel.Nexthop, "nexthop group of 192.0.2.53: missing"},
		"a member":        {"ip nexthop del $(ip nexthop | awk '/dev pod0/ {print $1, $2; exit}')", kernel.Nexthop, ": other members"},
		"a gateway":       {"set -- $(ip -6 nexthop | awk '/dev pod0/ {print $2; exit}'); ip -6 nexthop replace id $1 via fe80::99 dev pod0", kernel.Nexthop, "nexthop group of 2001:db8::53: other members"},
		"another link":    {"set -- $(ip -6 nexthop | awk '/dev pod0/ {print $2; exit}'); ip -6 nexthop replace id $1 dev pod1", kernel.Nexthop, "nexthop group of 2001:db8::53: other members"},
		"weights":         {"set -- $(ip nexthop | sed -n 's/^id \\([0-9]*\\) group \\([0-9]*\\),[0-9]*\\/\\([0-9]*\\),.*/\\1 \\2 \\3/p' | head -n 1); ip nexthop replace id $1 group $2,7/$3,200 type resilient", kernel.Nexthop, ": other members"},
		"one member":      {"set -- $(ip nexthop | sed -n 's/^id \\([0-9]*\\) group \\([0-9]*\\),.*/\\1 \\2/p' | head -n 1); ip nexthop replace id $1 group $2 type resilient", kernel.Nexthop, ": other members"},
		"stray metric":    {"ip -6 route add 2001:db8::53 nhid $(ip -6 route show 2001:db8::53 metric 512 | sed 's/.*nhid \\([0-9]*\\).*/\\1/;q') proto 85 metric 768", kernel.Route, "2001:db8::53/128 proto 85 metric 768: stray"},
		"stray nexthop":   {fmt.Sprintf("ip nexthop add id %d dev pod0 proto 85", kernel.LastNexthop), kernel.Nexthop, fmt.Sprintf("nexthop %d: stray", kernel.LastNexthop)},
		"hash policy":     {"echo 0 > /proc/sys/net/ipv6/fib_multipath_hash_policy", kernel.Sysctl, "net.ipv6.fib_multipath_hash_policy: not 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 2)
			transitions := make(reported, 100)
			c, _ := run(t, Config{Kernel: n.fib(t), OnTransitions: transitions.add})
			for _, pod := range []string{"a", "b"} {
				attached := n.attached(pod, 0)
				attached.Grants = append(attached.Grants, Grant{Addr: dns4})
				c.Send(attached)
				c.Send(readiness(pod, true, "c"+pod+"/0"))
			}
			want := strings.Fields("192.0.2.53+1024+pod0+pod1 192.0.2.53+512+pod0+pod1 2001:db8::53+1024+pod0+pod1 2001:db8::53+512+pod0+pod1")
			for i := range want {
				want[i] = strings.ReplaceAll(want[i], "+", " ")
			}
			settle(t, c)
			wantRoutes(t, n, want...)
			if repairs, err := c.Sync(t.Context()); len(repairs) > 0 || err != nil {
				t.Fatalf("nothing was done to it: %v, %v", repairs, err)
			}
			before := len(transitions)
			n.Exec("sh", "-ec", tc.damage)
			repairs, err := c.Sync(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, r := range repairs {
				found = found || r.Kind == tc.kind && strings.Contains(r.String(), tc.want)
			}
			if !found {
				t.Errorf("repairs %v, want a %s of %q", repairs, tc.kind, tc.want)
			}
			wantRoutes(t, n, want...)
			if repairs, err := c.Sync(t.Context()); len(repairs) > 0 || err != nil {
				t.Errorf("the second time: %v, %v", repairs, err)
			}
			if len(transitions) != before {
				t.Error("a repair is reported as a transition of a pod")
			}
		})
	}
}

// What the kernel refuses is in the status and in Sync's error, until it is gone.
func TestSyncSaysWhatCannotBeRepaired(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1)
	c, _ := run(t, Config{Kernel: n.fib(t)})
	c.Send(n.attached("a", 0))
	c.Send(readiness("a", true, "c1/0"))
	settle(t, c)
	n.IP("-6", "route", "del", dns.String(), "metric", "512")
	n.IP("-6", "route", "add", "blackhole", dns.String(), "metric", "512", "proto", "static")
	if _, err := c.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "2001:db8::53") {
		t.Errorf("error %v, want one with the route", err)
	}
	if s := status(t, c); s.Fault == "" || s.Paths[0].Announced {
		t.Errorf("status %+v, want what the kernel has", s)
	}
	n.IP("-6", "route", "del", "blackhole", dns.String(), "metric", "512", "proto", "static")
	if _, err := c.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	wantRoutes(t, n, "2001:db8::53 1024 pod0", "2001:db8::53 512 pod0")
	if s := status(t, c); s.Fault != "" || !s.Paths[0].Announced {
		t.Errorf("status %+v", s)
	}
}
