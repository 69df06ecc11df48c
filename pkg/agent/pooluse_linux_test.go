package agent

import (
	"net/netip"
	"reflect"
	"testing"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/pod"
)

// An address that several pods have is one.
func TestUsedPools(t *testing.T) {
	t.Parallel()
	granted := func(pool, addr string) address.Granted {
		return address.Granted{Addr: netip.MustParseAddr(addr), Pool: pool}
	}
	record := func(name string, static []address.Granted, anycast ...address.Granted) ledger.Record {
		return ledger.Record{Pod: pod.Ref{Namespace: "dns", Name: name}, Set: address.Set{Secondary: static, Anycast: anycast}}
	}
	own := address.Granted{Addr: netip.MustParseAddr("10.1.0.7"), CIDR: netip.MustParsePrefix("10.1.0.0/24")}
	got := usedPools([]ledger.Record{
		record("a", []address.Granted{own, granted("static", "2001:db8:1::1")}, granted("any", "2001:db8::53"), granted("old", "192.0.2.53")),
		record("b", nil, granted("any", "2001:db8::53"), granted("old", "192.0.2.53")),
		record("c", nil, granted("any", "2001:db8::54")),
	}, map[string][]netip.Prefix{"old": {netip.MustParsePrefix("192.0.2.53/32")}})
	want := []v1alpha1.PoolStatus{
		{Name: "old", Addresses: 1, Pods: []string{"dns/a", "dns/b"}, Retained: 1},
		{Name: "any", Addresses: 2, Pods: []string{"dns/a", "dns/b", "dns/c"}},
		{Name: "static", Addresses: 1, Pods: []string{"dns/a"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
