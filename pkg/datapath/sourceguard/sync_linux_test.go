package sourceguard

import (
	"context"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

func syncNow(t testing.TB, g *Guard) []datapath.Repair {
	t.Helper()
	repairs, err := g.Sync(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return repairs
}

// Whatever somebody does to flock's tables, one Sync finds it, names it, and ends in the state
// before; the next finds nothing.
func TestSyncRepairs(t *testing.T) {
	t.Parallel()
	for damage, want := range map[string]string{
		"flush ruleset":                           "table inet flock: missing",
		"delete table inet flock":                 "table inet flock: missing",
		"delete table arp flock":                  "table arp flock: missing",
		"add table inet flock { flags dormant; }": "table inet flock: dormant",
		"flush chain inet flock pod-sources":      "chain inet flock pod-sources: other rules (0, want 8)",
		"flush chain arp flock pod-sources; delete chain arp flock pod-sources":              "chain arp flock pod-sources: missing",
		"insert rule inet flock pod-sources accept":                                          "chain inet flock pod-sources: other rules (9, want 8)",
		"add chain inet flock pod-sources { policy drop; }":                                  "chain inet flock pod-sources: type filter hook 0 priority -450 policy 0, want type filter hook 0 priority -450 policy 1",
		"add chain inet flock mine { type filter hook forward priority -500; policy drop; }": "chain inet flock mine: stray",
		"add chain arp flock mine { type filter hook input priority 7; policy drop; }":       "chain arp flock mine: stray",
		"flush set inet flock pod-sources6":                                                  "set inet flock pod-sources6: 6 elements missing, 0 stray",
		`add element inet flock pod-sources4 { "flockb0000000" . 192.0.2.1 }`:                "set inet flock pod-sources4: 0 elements missing, 1 stray",
		"delete element inet flock pod-icmpv6-from-link-local { echo-request }":              "set inet flock pod-icmpv6-from-link-local: other members",
		"flush chain arp flock pod-sources; delete counter arp flock pod-unbound":            "counter arp flock pod-unbound: missing",
		"flush chain arp flock pod-sources; delete set arp flock pod-sources4":               "set arp flock pod-sources4: missing",
	} {
		t.Run(damage, func(t *testing.T) {
			t.Parallel()
			ns := nettest.New(t)
			g := synced(t, ns, pods(3)...)
			inet, arp := listing(ns, "inet"), listing(ns, "arp")
			for range 2 { // the second is the short way
				if repairs := syncNow(t, g); len(repairs) > 0 {
					t.Fatalf("nothing was done to it: %v", repairs)
				}
			}
			ns.Exec("nft", damage)
			repairs := syncNow(t, g)
			found := false
			for _, r := range repairs {
				found = found || r.String() == want
			}
			if !found {
				t.Errorf("repairs %q, want %q among them", repairs, want)
			}
			sameLines(t, listing(ns, "inet"), inet)
			sameLines(t, listing(ns, "arp"), arp)
			if repairs := syncNow(t, g); len(repairs) > 0 {
				t.Errorf("the second time: %v", repairs)
			}
		})
	}
}

// What Set repairs on its way is reported by the next Sync. Before the first Resync there is
// nothing to keep.
func TestSyncReportsWhatSetRepaired(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	g := guardIn(t, ns)
	ns.Exec("nft", "flush ruleset")
	if repairs := syncNow(t, g); len(repairs) > 0 {
		t.Errorf("before anything is desired: %v", repairs)
	}
	if err := g.Resync(pods(2)); err != nil {
		t.Fatal(err)
	}
	ns.Exec("nft", "flush ruleset")
	if err := g.Set(cafe); err != nil {
		t.Fatal(err)
	}
	if repairs := syncNow(t, g); len(repairs) == 0 || repairs[0].Found != datapath.Missing {
		t.Errorf("repairs %v, want the tables", repairs)
	}
	wantBindings(t, g, append(pods(2), cafe)...)
}

// A table of the same name with a set of another kind cannot be repaired: the error names it.
func TestSyncSaysWhatIsInTheWay(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	g := synced(t, ns, cafe)
	ns.Exec("nft", "flush ruleset; add table inet flock; add set inet flock pod-drops { type mark; }")
	if _, err := g.Sync(context.Background()); err == nil || !strings.Contains(err.Error(), "set inet flock pod-drops") {
		t.Errorf("error %v, want one with the set", err)
	}
	ns.Exec("nft", "delete table inet flock")
	if repairs := syncNow(t, g); len(repairs) == 0 {
		t.Error("nothing was repaired")
	}
	wantBindings(t, g, cafe)
}

// BenchmarkSync is a look at 250 pods: where another program has changed nftables meanwhile, and
// where none has.
func BenchmarkSync(b *testing.B) {
	for name, changed := range map[string]bool{"changed": true, "unchanged": false} {
		b.Run(name, func(b *testing.B) {
			ns := nettest.New(b)
			g := synced(b, ns, pods(250)...)
			var other *nft.Conn
			ns.Run(func() { other, _ = nft.Dial() })
			defer other.Close()
			syncNow(b, g)
			for b.Loop() {
				if changed {
					var batch nft.Batch
					batch.AddTable(nft.Table{Family: nft.Inet, Name: "other"})
					batch.DelTable(nft.Table{Family: nft.Inet, Name: "other"})
					if err := other.Commit(&batch); err != nil {
						b.Fatal(err)
					}
				}
				if repairs := syncNow(b, g); len(repairs) > 0 {
					b.Fatal(repairs)
				}
			}
		})
	}
}
