package sourceguard

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	a6, a4 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")
	ll := netip.MustParseAddr("fe80::1")
	for _, b := range []Binding{
		{HostIf: "flock0badcafe"},
		{HostIf: "flock0badcafe", LinkLocal: ll, Sources: []netip.Addr{a6, a4, a6.Next(), a4.Next()}},
	} {
		if err := b.Validate(); err != nil {
			t.Errorf("%v: %v", b, err)
		}
	}
	for want, b := range map[string]Binding{
		`"eth0"`:                                    {HostIf: "eth0"},
		`""`:                                        {},
		`"flock0badcafe777"`:                        {HostIf: "flock0badcafe777"}, // would be cut, to another's name
		"2001:db8::1: want one of fe80::/10":        {HostIf: "flock0", LinkLocal: a6},
		"169.254.0.1: want one of":                  {HostIf: "flock0", LinkLocal: netip.MustParseAddr("169.254.0.1")},
		"fe80::1%eth0: want":                        {HostIf: "flock0", LinkLocal: ll.WithZone("eth0")},
		"invalid IP":                                {HostIf: "flock0", Sources: []netip.Addr{{}}},
		"address fe80::1: a link-local address":     {HostIf: "flock0", Sources: []netip.Addr{ll}},
		"address ::1: a loopback address":           {HostIf: "flock0", Sources: []netip.Addr{netip.IPv6Loopback()}},
		"address ::: not an address":                {HostIf: "flock0", Sources: []netip.Addr{netip.IPv6Unspecified()}},
		"address 0.0.0.0: not an address":           {HostIf: "flock0", Sources: []netip.Addr{netip.IPv4Unspecified()}},
		"address 224.0.0.1: a multicast address":    {HostIf: "flock0", Sources: []netip.Addr{netip.MustParseAddr("224.0.0.1")}},
		"address ::ffff:192.0.2.1: an IPv4 address": {HostIf: "flock0", Sources: []netip.Addr{netip.AddrFrom16(a4.As16())}},
		"2001:db8::1%x: bound to a link":            {HostIf: "flock0", Sources: []netip.Addr{a6.WithZone("x")}},
		"192.0.2.1: named twice":                    {HostIf: "flock0", Sources: []netip.Addr{a4, a6, a4}},
	} {
		if err := b.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want one with %q", b, err, want)
		}
	}
	all := Binding{HostIf: "eth0", LinkLocal: a6, Sources: []netip.Addr{ll}}
	if err := all.Validate(); strings.Count(fmt.Sprint(err), "\n") != 2 {
		t.Errorf("%v: want all three faults", err)
	}
}

// What diff says leads from any state to any other, and to nothing that is
// neither's.
func TestDiff(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	some := func() []element {
		var es []element
		for s := range sets {
			for k := range 4 {
				if r.IntN(2) == 0 {
					es = append(es, element{set(s), fmt.Sprint(k)})
				}
			}
		}
		return es
	}
	for range 1000 {
		have, want := some(), some()
		got := slices.Clone(have)
		for _, c := range diff(have, want) {
			i, there := slices.BinarySearchFunc(got, c.element, element.compare)
			if there == c.add {
				t.Fatalf("from %v to %v: %v is there: %t, to be added: %t", have, want, c.element, there, c.add)
			}
			if c.add {
				got = slices.Insert(got, i, c.element)
			} else {
				got = slices.Delete(got, i, i+1)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("from %v to %v: came to %v", have, want, got)
		}
		if cs := diff(want, want); cs != nil {
			t.Fatalf("from %v to itself: %v", want, cs)
		}
	}
}
