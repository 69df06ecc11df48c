package xtables

import (
	"encoding/binary"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
)

func read(t *testing.T, ns *nettest.NS) (chains []Chain) {
	t.Helper()
	ns.Run(func() {
		var err error
		if chains, err = Forward(); err != nil {
			t.Fatal(err)
		}
	})
	return chains
}

// A look at a namespace without such tables leaves it without.
func TestNoTables(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	if chains := read(t, ns); len(chains) > 0 {
		t.Errorf("chains %v", chains)
	}
	ns.Run(func() {
		if b, err := os.ReadFile("/proc/thread-self/net/ip_tables_names"); err != nil || len(b) > 0 {
			t.Errorf("tables %q, %v", b, err)
		}
	})
}

func TestForward(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	ns.Exec("sh", "-ec", `
		iptables-legacy -P FORWARD DROP
		iptables-legacy -N ours
		iptables-legacy -A FORWARD -i docker+ -o eth0 -s 172.17.0.0/16 -d 10.0.0.1 -p tcp --dport 80 -j ours
		iptables-legacy -A ours ! -i eth9 ! -s 192.0.2.0/24 -j ACCEPT
		iptables-legacy -t nat -P PREROUTING ACCEPT
		ip6tables-legacy -t raw -P PREROUTING DROP
		ip6tables-legacy -t mangle -A FORWARD -d 2001:db8::/33 -j DROP
		ip6tables-legacy -t mangle -A FORWARD -o abcdefghijklmno -j LOG`)
	chains := read(t, ns)
	for i := range chains { // but for what comes from policies and names of chains
		var rules []Rule
		for _, r := range chains[i].Rules {
			if r != (Rule{}) {
				rules = append(rules, r)
			}
		}
		chains[i].Rules = rules
	}
	want := []Chain{
		{Table: "filter", Drops: true, Rules: []Rule{
			{In: "docker+", Out: "eth0", Src: netip.MustParsePrefix("172.17.0.0/16"), Dst: netip.MustParsePrefix("10.0.0.1/32")},
		}},
		{IPv6: true, Table: "mangle", Rules: []Rule{{Dst: netip.MustParsePrefix("2001:db8::/33")}, {Out: "abcdefghijklmno"}}},
	}
	if !reflect.DeepEqual(chains, want) {
		t.Errorf("chains %#v, want %#v", chains, want)
	}
	if s := chains[0].String(); !strings.HasPrefix(s, "iptables-legacy -t filter") {
		t.Errorf("%s", s)
	}
}

// What the kernel would not send is refused, and nothing is read past the end.
func FuzzParse(f *testing.F) {
	entry := make([]byte, 112+40)
	binary.NativeEndian.PutUint16(entry[88:], 112)
	binary.NativeEndian.PutUint16(entry[90:], 152)
	f.Add(entry, 0, 0)
	f.Add(entry[:150], 0, 0)
	f.Fuzz(func(t *testing.T, b []byte, first, policy int) {
		for _, l := range layouts {
			var c Chain
			if err := l.parse(b, first, policy, &c); err == nil && len(c.Rules) > len(b)/l.size {
				t.Errorf("%d rules in %d bytes", len(c.Rules), len(b))
			}
		}
	})
}
