package anycast

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestPlan(t *testing.T) {
	via := func(links ...int) (ms []Member) {
		for _, l := range links {
			ms = append(ms, Member{Link: l})
		}
		return ms
	}
	local := func(links ...int) Entry { return Entry{Local: true, Members: via(links...)} }
	announced := func(links ...int) Entry { return Entry{Announced: true, Local: true, Members: via(links...)} }
	drains := Entry{Announced: true, Local: true, Members: []Member{{Link: 4}, {Link: 5, Drains: true}}}
	for name, tt := range map[string]struct {
		have, want Entry
		plan       string
	}{
		"nothing to do":                       {announced(4), announced(4), "[]"},
		"appear":                              {Entry{}, announced(4), "[add group A 4 add local A announce A]"},
		"withdraw, still delivering":          {announced(4), local(4), "[withdraw A]"},
		"come back":                           {local(4), announced(4), "[announce A]"},
		"disappear":                           {announced(4), Entry{}, "[withdraw A delete local A delete group A]"},
		"another pod comes":                   {announced(4), announced(4, 5), "[set group A 4 5]"},
		"and goes":                            {announced(4, 5), announced(4), "[set group A 4]"},
		"one drains":                          {announced(4, 5), drains, "[set group A 4 5-]"},
		"the last goes, another is left over": {drains, local(4, 5), "[withdraw A set group A 4 5]"},
		"hands over":                          {local(4), announced(5), "[set group A 5 announce A]"},
		"local route was lost":                {Entry{Announced: true, Members: via(4)}, announced(4), "[add local A]"},
		"group without routes":                {Entry{Members: via(4)}, Entry{}, "[delete group A]"},
	} {
		a := netip.MustParseAddr("2001:db8::a")
		got := fmt.Sprint(Plan(map[netip.Addr]Entry{a: tt.want}, map[netip.Addr]Entry{a: tt.have}))
		if want := strings.ReplaceAll(tt.plan, "A", a.String()); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestPlanWithdrawsFirst(t *testing.T) {
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	one, two := []Member{{Link: 4}}, []Member{{Link: 4}, {Link: 5}}
	got := fmt.Sprint(Plan(
		map[netip.Addr]Entry{
			a: {Announced: true, Local: true, Members: one},
			b: {},
			c: {Announced: true, Local: true, Members: one},
		},
		map[netip.Addr]Entry{
			b: {Announced: true, Local: true, Members: one},
			c: {Announced: true, Local: true, Members: two},
			// Not in question: nothing is said of it.
			netip.MustParseAddr("2001:db8::3"): {Announced: true, Local: true, Members: two},
		}))
	want := "[withdraw 2001:db8::1 delete local 2001:db8::1 delete group 2001:db8::1 set group 2001:db8::2 4 add group 192.0.2.1 4 add local 192.0.2.1 announce 192.0.2.1]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
