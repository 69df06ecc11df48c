package fabric

import (
	"slices"
	"testing"
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
		{Name: "node1_ipv6", State: "Established", Since: "2026-11-23 22:12:01.100"},
		{Name: "node1_ipv4", State: "Passive Socket: Connection refused", Since: "2026-11-23 22:11:23.934", Restarting: true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("ParseSessions: %+v, want %+v", got, want)
	}
	if !got[0].Established() || got[1].Established() {
		t.Error("only the first is established")
	}
}
