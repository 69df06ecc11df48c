package flockctl

import (
	"strings"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
)

// On a node, flockctl names what is in flock's way there, without an API server.
func TestCheckLocal(t *testing.T) {
	ns := nettest.New(t)
	ns.IP("link", "set", "lo", "up")
	check := func() (out string, err error) {
		ns.Run(func() { out, err = execute(nil, "check --local") })
		return out, err
	}
	if out, err := check(); err != nil || out != "1 node(s) checked, nothing is wrong\n" {
		t.Errorf("%v\n%s", err, out)
	}
	ns.IP("-6", "route", "add", "unreachable", "2001:db8:100:1::/64", "proto", "85", "metric", "512")
	ns.IP("-6", "route", "add", "blackhole", "2001:db8:100:1::/64", "proto", "bird", "metric", "32")
	out, err := check()
	if err == nil || !strings.Contains(err.Error(), "1 problem(s)") || !strings.Contains(out, "blackhole 2001:db8:100:1::/64") || !strings.Contains(out, "ip route del blackhole 2001:db8:100:1::/64") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := execute(nil, "check node1 --local"); err == nil {
		t.Error("a node and --local: no error")
	}
}
