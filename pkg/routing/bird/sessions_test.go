package bird

import (
	"reflect"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
)

func TestSessions(t *testing.T) {
	since := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	bgp := func(name, state string) birdc.Protocol {
		return birdc.Protocol{
			Name: name, Kind: "BGP", Since: since,
			BGP:      &birdc.BGP{State: state, Neighbor: name, NeighborAS: 64512, LastError: "Socket: x", RestartingPeer: true},
			Channels: []birdc.Channel{{Name: "ipv6", State: "UP", Imported: 1, Exported: 2, Received: 9, Invalid: 3, Filtered: 4, LimitHit: true}, {Name: "ipv4", State: "DOWN"}},
		}
	}
	session := func(name, router, state string) routing.Session {
		return routing.Session{
			Protocol: "bgp", Name: name, Router: router, AS: 64512, Up: state == "Established", State: state, Since: since,
			Restarting: true, LastError: "Socket: x",
			Families: []routing.SessionFamily{{Family: "ipv6", Up: true, Sent: 2, Accepted: 1, Received: 9, Rejected: 7, LimitHit: true}, {Family: "ipv4"}},
		}
	}
	got := sessions([]birdc.Protocol{
		{Name: "device1", Kind: "Device"},
		bgp("peer_tor_b", "Active"),
		bgp("peer_left", "Passive"), bgp("unnumbered_left_1", "Active"), bgp("unnumbered_left_12", "Established"),
		bgp("peer_left_1", "Passive"), bgp("unnumbered_left_1_1", "Established"),
		bgp("peer_right", "Passive"),
		{Name: "ospf6", Kind: "OSPF", State: "up", Channels: []birdc.Channel{{Name: "ipv6", State: "UP", Exported: 2}}},
		{Name: "ospf4", Kind: "OSPF", State: "up"},
	}, []birdc.OSPFNeighbor{
		{Protocol: "ospf6", RouterID: "192.0.2.1", State: "Full", Role: "DR", Interface: "eth0", Address: "fe80::1"},
		{Protocol: "ospf6", RouterID: "192.0.2.2", State: "2-Way", Role: "Other", Interface: "eth0", Address: "fe80::2"},
	})
	v6 := []routing.SessionFamily{{Family: "ipv6", Up: true, Sent: 2}}
	want := []routing.Session{
		session("left", "unnumbered_left_12", "Established"),
		session("left-1", "unnumbered_left_1_1", "Established"),
		session("right", "peer_right", "Passive"),
		session("tor-b", "peer_tor_b", "Active"),
		{Protocol: "ospf", Name: "eth0 192.0.2.1", Router: "fe80::1", Up: true, State: "Full/DR", Families: v6},
		{Protocol: "ospf", Name: "eth0 192.0.2.2", Router: "fe80::2", State: "2-Way/Other", Families: v6},
		{Protocol: "ospf", Name: "ospf4", State: "no neighbor"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("have %+v\nwant %+v", got, want)
	}
}

// BIRD is asked for a session often while it may soon change.
func TestUnsettled(t *testing.T) {
	sent, silent := routing.SessionFamily{Up: true, Sent: 1}, routing.SessionFamily{Up: true}
	for _, c := range []struct {
		name string
		s    routing.Session
		want bool
	}{
		{"down", routing.Session{Families: []routing.SessionFamily{sent}}, true},
		{"up, and BIRD waits for another peer", routing.Session{Up: true, Families: []routing.SessionFamily{silent, silent}}, true},
		{"up", routing.Session{Up: true, Families: []routing.SessionFamily{sent, sent}}, false},
		{"a node with routes of one family", routing.Session{Up: true, Families: []routing.SessionFamily{sent, silent}}, false},
	} {
		if got := unsettled(c.s); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestKeepSince(t *testing.T) {
	at := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	before := []routing.Session{{Protocol: "bgp", Name: "tor", State: stateUp, Since: at}}
	for _, tt := range []struct {
		name  string
		state string
		since time.Time
		want  time.Time
	}{
		{"3 ms apart", stateUp, at.Add(-3 * time.Millisecond), at},
		{"another state", "Connect", at.Add(3 * time.Millisecond), at.Add(3 * time.Millisecond)},
		{"gone and back", stateUp, at.Add(time.Second), at.Add(time.Second)},
	} {
		now := []routing.Session{{Protocol: "bgp", Name: "tor", State: tt.state, Since: tt.since}}
		if keepSince(now, before); !now[0].Since.Equal(tt.want) {
			t.Errorf("%s: since %v, want %v", tt.name, now[0].Since, tt.want)
		}
	}
}
