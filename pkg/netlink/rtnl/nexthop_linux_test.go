package rtnl

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
)

func TestNexthopsReadAsWritten(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	ns.Veth("l0", nettest.New(t), "eth0")
	ns.Veth("l1", nettest.New(t), "eth0")
	var c *Conn
	ns.Run(func() {
		var err error
		if c, err = Dial(); err != nil {
			t.Fatal(err)
		}
	})
	defer c.Close()
	index := func(name string) int {
		links, err := c.Links("veth")
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if l.Name == name {
				return l.Index
			}
		}
		t.Fatalf("no link %s", name)
		return 0
	}
	want := []Nexthop{
		{ID: 1, Proto: 85, Link: index("l0"), IPv6: true},
		{ID: 2, Proto: 85, Link: index("l1"), IPv6: true},
		{ID: 3, Proto: 85, Link: index("l0")},
		{ID: 4, Proto: 85, Blackhole: true},
		{ID: 10, Proto: 85, Group: []NexthopMember{{1, 255}, {2, 1}}},
		{ID: 0x85000001, Proto: 85, Group: []NexthopMember{{1, 1}}, Resilient: &Resilient{Buckets: 64, Idle: 500 * time.Millisecond, Unbalanced: time.Minute}},
	}
	for _, n := range want {
		if errs := c.Do(NewNexthop(n)); errs != nil {
			t.Fatal(errs)
		}
	}
	wantNexthops := func(want []Nexthop) {
		t.Helper()
		got, err := c.Nexthops()
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	wantNexthops(want)

	grown := want[5]
	grown.Group = []NexthopMember{{2, 255}, {1, 255}}
	grown.Resilient = &Resilient{Idle: time.Second}
	if errs := c.Do(SetNexthop(grown)); errs != nil {
		t.Fatal(errs)
	}
	grown.Resilient = &Resilient{Buckets: 64, Idle: time.Second} // as it was made
	wantNexthops(append(slices.Clone(want[:5]), grown))

	for _, tt := range []struct {
		m    Message
		want error
	}{
		{NewNexthop(want[0]), unix.EEXIST},
		{SetNexthop(Nexthop{ID: 99, Link: index("l0")}), unix.ENOENT},
		{DelNexthop(99), unix.ENOENT},
	} {
		if errs := c.Do(tt.m); errs == nil || !errors.Is(errs[0], tt.want) {
			t.Errorf("%s: %v, want %v", tt.m.What, errs, tt.want)
		}
	}
	if errs := c.Do(DelNexthop(0x85000001), DelNexthop(10), DelNexthop(4), DelNexthop(3), DelNexthop(2), DelNexthop(1)); errs != nil {
		t.Error(errs)
	}
	wantNexthops([]Nexthop{})
}
