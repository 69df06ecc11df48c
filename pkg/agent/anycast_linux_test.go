package agent

import (
	"net/netip"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/anycast"
)

func TestAddressList(t *testing.T) {
	began := time.Now()
	var all []anycast.Transition
	for i, want := range []string{
		"2001:db8::1", "2001:db8::1, 2001:db8::2", "2001:db8::1, 2001:db8::2, 2001:db8::3",
		"2001:db8::1, 2001:db8::2, 2001:db8::3 and 1 more",
	} {
		addr := netip.MustParseAddr("2001:db8::").As16()
		addr[15] = byte(i + 1)
		took := time.Duration(10-i) * time.Millisecond
		all = append(all, anycast.Transition{Path: anycast.Path{Addr: netip.AddrFrom16(addr)}, Cause: began, Applied: began.Add(took)})
		if got, took := addressList(all); got != want || took != 10*time.Millisecond {
			t.Errorf("%s in %v, want %s in 10ms", got, took, want)
		}
	}
}
