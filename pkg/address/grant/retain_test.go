package grant_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/config"
)

// delayed has a routing that can be recognised.
func delayed(p config.Pool, d time.Duration) config.Pool {
	p.Routing.AnnounceDelay = d
	return p
}

func TestRetained(t *testing.T) {
	dns := delayed(pool("dns", "", "anycast", "2001:db8:53::/64"), 1)
	narrowed := delayed(pool("dns", "", "anycast", "2001:db8:53:0:1::/80"), 2)
	wide := delayed(pool("wide", "", "anycast", "2001:db8::/32"), 3)
	carved := delayed(pool("carved", "", "anycast", "2001:db8:53::53/128"), 4)
	of := func(pool string, addrs ...string) (out []address.Granted) {
		for _, a := range addrs {
			out = append(out, address.Granted{Addr: addr(a), Pool: pool})
		}
		return out
	}
	for _, tt := range []struct {
		name        string
		granted     []address.Granted
		pools, gone []config.Pool
		want        string
	}{
		{"nothing in use", nil, nil, []config.Pool{dns}, ""},
		{"as it was", of("dns", "2001:db8:53::53"), []config.Pool{dns, wide}, nil, ""},
		{"deleted", of("dns", "2001:db8:53::54", "2001:db8:53::53", "2001:db8:53::53"), nil, []config.Pool{dns}, "dns [2001:db8:53::53/128 2001:db8:53::54/128] 1"},
		{"deleted, in use from elsewhere", of("wide", "2001:db8:1::1"), []config.Pool{wide}, []config.Pool{dns}, ""},
		{"deleted, and a wider pool has other attributes", of("dns", "2001:db8:53::53"), []config.Pool{wide}, []config.Pool{dns}, "dns [2001:db8:53::53/128] 1"},
		{"deleted, and granted by the wider pool since", append(of("dns", "2001:db8:53::53"), of("wide", "2001:db8:53::53")...), []config.Pool{wide}, []config.Pool{dns}, ""},
		{"narrowed", of("dns", "2001:db8:53::53", "2001:db8:53:0:1::53"), []config.Pool{narrowed}, []config.Pool{dns}, "dns [2001:db8:53::53/128] 2"},
		{"a part was carved out", of("dns", "2001:db8:53::53"), []config.Pool{dns, carved}, nil, ""},
		{"never seen", of("dns", "2001:db8:53::53"), nil, nil, ""},
		{"of an unknown pool", of("", "2001:db8:53::53"), nil, []config.Pool{dns}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range grant.Retained(tt.granted, tt.pools, tt.gone) {
				if p.Static || p.Anycast || p.Namespaces != nil {
					t.Errorf("%s grants something", p.Name)
				}
				got = append(got, fmt.Sprint(p.Name, " ", p.CIDRs, " ", int(p.Routing.AnnounceDelay)))
			}
			if text := strings.Join(got, ", "); text != tt.want {
				t.Errorf("got %q, want %q", text, tt.want)
			}
		})
	}
}

func TestPoolOf(t *testing.T) {
	pools := []config.Pool{
		pool("b", "", "static,anycast", "2001:db8::/32"), pool("c", "", "static", "2001:db8:1::/48"), pool("a", "", "anycast,static", "2001:db8::/32"),
	}
	for _, tt := range []struct {
		addr    string
		anycast bool
		want    string
	}{{"2001:db8:1::1", false, "c"}, {"2001:db8:1::1", true, "a"}, {"2001:db8:2::1", false, "a"}, {"2001:db9::1", false, ""}} {
		if got := grant.PoolOf(addr(tt.addr), tt.anycast, pools); got != tt.want {
			t.Errorf("%s, anycast %t: %q, want %q", tt.addr, tt.anycast, got, tt.want)
		}
	}
}
