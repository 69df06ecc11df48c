package birdc

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// established is what BIRD 2.0.12 prints for a session, shortened.
const established = `2002-Name       Proto      Table      State  Since         Info
1002-kernel6    Kernel     master6    up     2026-11-23 21:53:27.963  
1006-  Channel ipv6
     State:          UP
     Routes:         1 imported, 0 exported, 1 preferred
1002-peer_tor   BGP        ---        up     2026-11-23 21:53:28.946  Established   
1006-  BGP state:          Established
     Neighbor address: 2001:db8:0:1::1
     Neighbor AS:      64512
     Local AS:         64601
     Neighbor graceful restart active
     Neighbor ID:      192.0.2.1
     Neighbor capabilities
       Graceful restart
         Restart time: 120
     Session:          external AS4
     Source address:   2001:db8:0:1::11
     Hold timer:       5.937/9
     Keepalive timer:  0.752/3
     Last error:       Received: Administrative shutdown
   Channel ipv6
     State:          UP
     Preference:     100
     Input filter:   REJECT
     Import limit:     10 [HIT]
       Action:       disable
     Routes:         2 imported, 3 filtered, 4 exported, 1 preferred
     Route change stats:     received   rejected   filtered    ignored   accepted
       Import updates:             12          1          9          0          2
       Import withdraws:            0          0        ---          0          0
     BGP Next hop:   2001:db8:0:1::11 fe80::11
   Channel ipv4
     State:          DOWN
     GR recovery:    pending waiting
1006-
1002-peer_b     BGP        ---        start  2026-11-23 21:53:30.000  Active        Socket: Connection refused
1006-  BGP state:          Active
1006-
0000 
`

func TestParseProtocols(t *testing.T) {
	var lines []Line
	for raw := range strings.Lines(established) {
		l, _, ok := parseLine(strings.TrimRight(raw, "\n"), lines)
		if !ok {
			t.Fatalf("not a line of a reply: %q", raw)
		}
		lines = append(lines, l)
	}
	// BIRD runs in a zone two hours ahead of UTC.
	now := time.Date(2026, 11, 23, 19, 54, 0, 123e6, time.UTC)
	status, err := parseStatus([]Line{
		{1000, "BIRD 2.0.12"},
		{1011, "Router ID is 192.0.2.11"},
		{1011, "Current server time is 2026-11-23 21:54:00.000"},
		{1011, "Last reboot on 2026-11-23 21:53:27.963"},
		{1011, "Last reconfiguration on 2026-11-23 21:53:27.963"},
		{24, "Graceful restart recovery in progress"},
		{13, "Daemon is up and running"},
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	boot := time.Date(2026, 11, 23, 19, 53, 27, 963e6, time.UTC)
	if want := (Status{Version: "2.0.12", RouterID: "192.0.2.11", Boot: boot, Loaded: boot, GracefulRestart: true, State: "Daemon is up and running", zone: -2 * time.Hour, known: true}); status != want {
		t.Errorf("have %+v\nwant %+v", status, want)
	}

	got, err := parseProtocols(lines, status)
	if err != nil {
		t.Fatal(err)
	}
	want := []Protocol{
		{Name: "kernel6", Kind: "Kernel", State: "up", Since: boot, Channels: []Channel{{Name: "ipv6", State: "UP", Imported: 1}}},
		{
			Name: "peer_tor", Kind: "BGP", State: "up", Since: time.Date(2026, 11, 23, 19, 53, 28, 946e6, time.UTC), Info: "Established",
			BGP: &BGP{
				State: "Established", Neighbor: "2001:db8:0:1::1", NeighborAS: 64512,
				LastError: "Received: Administrative shutdown", RestartingPeer: true,
			},
			Channels: []Channel{
				{Name: "ipv6", State: "UP", Imported: 2, Exported: 4, Received: 12, Invalid: 1, Filtered: 9, LimitHit: true},
				{Name: "ipv4", State: "DOWN", RecoveryPending: true, RecoveryWaiting: true},
			},
		},
		{
			Name: "peer_b", Kind: "BGP", State: "start", Since: time.Date(2026, 11, 23, 19, 53, 30, 0, time.UTC),
			Info: "Active Socket: Connection refused", BGP: &BGP{State: "Active"},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("have %+v\nwant %+v", got, want)
	}
	for _, bad := range [][]Line{{{1002, "peer_tor BGP"}}} {
		if _, err := parseProtocols(bad, status); err == nil {
			t.Errorf("%v was taken for a protocol", bad)
		}
	}
	if _, err := parseStatus([]Line{{13, "up"}}, now); err == nil {
		t.Error("a status without a version was taken")
	}
}

func TestParseOSPFNeighbors(t *testing.T) {
	got := parseOSPFNeighbors([]Line{
		{1013, "ospf4: is not up"},
		{1013, "ospf6:"},
		{1013, "Router ID   \tPri\t     State     \tDTime\tInterface  Router IP"},
		{1013, "192.0.2.1   \t  1\tFull/DR   \t38.123\teth0       fe80::1"},
		{1013, "192.0.2.2   \t  0\t2-Way/Other\t38.123\teth1       fe80::2"},
		{0, ""},
	})
	want := []OSPFNeighbor{
		{Protocol: "ospf6", RouterID: "192.0.2.1", State: "Full", Role: "DR", Interface: "eth0", Address: "fe80::1"},
		{Protocol: "ospf6", RouterID: "192.0.2.2", State: "2-Way", Role: "Other", Interface: "eth1", Address: "fe80::2"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("have %+v\nwant %+v", got, want)
	}
}
