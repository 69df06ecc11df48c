package xtables

import (
	"net/netip"
	"reflect"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
)

func TestChains(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	chains := func(ipv6 bool, table string) (found map[string][]Entry) {
		t.Helper()
		ns.Run(func() {
			var err error
			if found, err = Chains(ipv6, table); err != nil {
				t.Fatal(err)
			}
		})
		return found
	}
	if got := chains(false, "nat"); got != nil {
		t.Errorf("without a table: %v", got)
	}
	ns.Exec("sh", "-ec", `
		iptables-legacy -t nat -N A
		iptables-legacy -t nat -N B
		iptables-legacy -t nat -A PREROUTING -j A
		iptables-legacy -t nat -A A -m comment --comment x -p tcp -m tcp -d 203.0.113.7 --dport 80 -j B
		iptables-legacy -t nat -A A ! -d 203.0.113.7 -p udp --dport 80:81 -j B
		iptables-legacy -t nat -A B -p sctp --dport 90 -j RETURN
		iptables-legacy -t nat -A A -s 203.0.113.8 -j B
		iptables-legacy -t nat -A A -i lo -j B
		iptables-legacy -t nat -A A -m addrtype --src-type LOCAL -j B
		iptables-legacy -t nat -A A -j B
		iptables-legacy -t nat -A B -p udp -m udp -j DNAT --to-destination 10.244.1.1:53`)
	want := map[string][]Entry{
		"A": {{Dst: netip.MustParsePrefix("203.0.113.7/32"), Protocol: 6, DstPort: 80, Jump: "B"}, {Protocol: 17, Jump: "B"}, // of several ports none is named
			{Jump: "B"}, {Jump: "B"}, {Jump: "B"}, {Always: true, Jump: "B"}},
		"B": {{Protocol: 132, DstPort: 90}, {Protocol: 17, Target: "DNAT"}},
	}
	got := chains(false, "nat")
	for _, entries := range got {
		for i := range entries {
			entries[i].Info, entries[i].Revision = nil, 0
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("chains %+v, want %+v", got, want)
	}
	if got := chains(true, "nat"); got != nil {
		t.Errorf("of the other family: %v", got)
	}
}
