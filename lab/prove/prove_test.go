package prove

import (
	"net/netip"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
)

func TestSummaries(t *testing.T) {
	route := func(prefix, via string) fabric.Route {
		r := fabric.Route{Prefix: netip.MustParsePrefix(prefix)}
		if via != "" {
			r.Via = netip.MustParseAddr(via)
		}
		return r
	}
	good := []fabric.Route{
		route("2001:db8:0:1::/64", ""),
		route("2001:db8:100:1::/64", "2001:db8:0:1::11"),
		route("10.244.1.0/24", "192.0.2.11"),
	}
	for _, c := range []struct {
		name   string
		routes []fabric.Route
		want   string // in the complaint; empty if there is none
	}{
		{"as it should be", good, ""},
		{"a summary is missing", good[:2], "no route 10.244.1.0/24 via 192.0.2.11"},
		{"a summary leads elsewhere", append([]fabric.Route{route("10.244.1.0/24", "192.0.2.12")}, good[:2]...), "no route 10.244.1.0/24 via 192.0.2.11"},
		{"a pod's route", append([]fabric.Route{route("2001:db8:100:1::7/128", "2001:db8:0:1::11")}, good...), "besides: 2001:db8:100:1::7/128"},
		{"a summary twice", append([]fabric.Route{route("10.244.1.0/24", "192.0.2.12")}, good...), "besides: 10.244.1.0/24 via 192.0.2.12"},
		{"another node's", append([]fabric.Route{route("10.244.9.0/24", "192.0.2.11")}, good...), "besides: 10.244.9.0/24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := summaries(c.routes, plan.Nodes(1), plan.Dual)
			var said strings.Builder
			for _, err := range p.failed {
				said.WriteString(err.Error() + "\n")
			}
			if (c.want == "") != (said.String() == "") || !strings.Contains(said.String(), c.want) {
				t.Errorf("complaints: %q, want %q", said.String(), c.want)
			}
		})
	}
}
