package fabric

import (
	"slices"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/plan"
)

func TestParseSessions(t *testing.T) {
	const said = `BIRD 2.0.12 ready.
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     2026-11-23 22:11:23.934  
kernel6    Kernel     master6    up     2026-11-23 22:11:23.934  
node1_ipv6 BGP        ---        up     2026-11-23 22:12:01.100  Established   
  BGP state:          Established
    Neighbor address: 2001:db8:0:1::11
node1_ipv4 BGP        ---        start  2026-11-23 22:11:23.934  Passive       Socket: Connection refused
  BGP state:          Passive
    Neighbor graceful restart active
kernel4    Kernel     master4    up     2026-11-23 22:11:23.934  
`
	got := ParseSessions(said)
	want := []Session{
		{Name: "node1_ipv6", State: "Established", Since: time.Date(2026, 11, 23, 22, 12, 1, 100e6, time.UTC)},
		{Name: "node1_ipv4", State: "Passive Socket: Connection refused", Since: time.Date(2026, 11, 23, 22, 11, 23, 934e6, time.UTC), Restarting: true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("ParseSessions: %+v, want %+v", got, want)
	}
	if !got[0].Established() || got[1].Established() {
		t.Error("only the first is established")
	}

	first := got[0]
	for name, c := range map[string]struct {
		change func(*Session)
		same   bool
	}{
		"BIRD rounds its time otherwise": {func(s *Session) { s.Since = s.Since.Add(time.Millisecond) }, true},
		"it is another one since":        {func(s *Session) { s.Since = s.Since.Add(time.Second) }, false},
		"it has gone down":               {func(s *Session) { s.State = "Active" }, false},
		"it is that of another node":     {func(s *Session) { s.Name = "node2_ipv6" }, false},
	} {
		later := first
		c.change(&later)
		if later.Same(first) != c.same || first.Same(later) != c.same {
			t.Errorf("%s: same is %t", name, !c.same)
		}
	}
}

func TestParseNeighbors(t *testing.T) {
	const said = `BIRD 2.0.12 ready.
nodes6:
Router ID   	Pri	     State     	DTime	Interface  Router IP
192.0.2.11  	  0	Full/Other  	3.632	lan       	fe80::a8c8:adff:fe3c:a30b
192.0.2.13  	  0	2-Way/Other 	3.100	lan       	fe80::a8c8:adff:fe3c:a30d
`
	got := ParseNeighbors(said, "ipv6", plan.Nodes(3))
	want := []Session{{Name: "node1_ipv6", State: "Full"}, {Name: "node2_ipv6", State: "not heard"}, {Name: "node3_ipv6", State: "2-Way"}}
	if !slices.Equal(got, want) {
		t.Errorf("ParseNeighbors: %+v, want %+v", got, want)
	}
	if !got[0].Established() || got[1].Established() || got[2].Established() {
		t.Error("only the first is there")
	}
}
