package nodeguard

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/kernel/kerneltest"
)

func newGuard(t *testing.T) (*Guard, *nettest.NS) {
	t.Helper()
	ns := nettest.New(t)
	var g *Guard
	ns.Run(func() {
		var err error
		if g, err = Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(g.Close)
	return g, ns
}

var desired = Desired{OnLink: onLink, BGPPort: 179}

// TestTable: nft(8) makes the same table of testdata/table.nft.
func TestTable(t *testing.T) {
	t.Parallel()
	g, ns := newGuard(t)
	if err := g.Set(desired); err != nil {
		t.Fatal(err)
	}
	ours := ns.Exec("nft", "-nn", "list", "table", "inet", "flock-node")
	ns.Exec("nft", "delete", "table", "inet", "flock-node")
	ns.Exec("nft", "-f", "testdata/table.nft")
	if theirs := ns.Exec("nft", "-nn", "list", "table", "inet", "flock-node"); ours != theirs {
		t.Errorf("the table is\n%s\nwant\n%s", ours, theirs)
	}
	ns.Exec("nft", "list", "ruleset")
}

// sorted are the lines of a listing, in which chains come in the order of their making.
func sorted(listing string) string {
	return strings.Join(slices.Sorted(strings.Lines(listing)), "")
}

func TestSyncRepairs(t *testing.T) {
	t.Parallel()
	g, ns := newGuard(t)
	sync := func() (found []string) {
		t.Helper()
		repairs, err := g.Sync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range repairs {
			found = append(found, r.String())
		}
		return found
	}
	if got := sync(); len(got) != 0 {
		t.Errorf("before anything is desired: %v", got)
	}
	if err := g.Set(desired); err != nil {
		t.Fatal(err)
	}
	want := ns.Exec("nft", "list", "ruleset")
	for _, c := range []struct{ damage, found string }{
		{"delete table inet flock-node", "table inet flock-node: missing"},
		{"flush ruleset", "table inet flock-node: missing"},
		{"add table inet flock-node { flags dormant; }", "table inet flock-node: dormant"},
		{"flush chain inet flock-node input", "chain inet flock-node input: other rules (0, want 12)"},
		{"flush chain inet flock-node pods; flush chain inet flock-node neighbours6", "chain inet flock-node neighbours6: other rules (0, want 5)"},
		{"insert rule inet flock-node input accept", "chain inet flock-node input: other rules (13, want 12)"},
		{"delete chain inet flock-node forward", "chain inet flock-node forward: missing"},
		{"add chain inet flock-node more", "chain inet flock-node more: stray"},
		{"add set inet flock-node more { type ipv4_addr; }", "set inet flock-node more: stray"},
		{"flush chain inet flock-node neighbours4; delete set inet flock-node tried4; add set inet flock-node tried4 { type ipv4_addr; }", "set inet flock-node tried4: key type 7"},
	} {
		for i := range 2 { // it is seen to be right, and then wrong
			if got := sync(); len(got) != 0 {
				t.Errorf("look %d before %q: %v", i, c.damage, got)
			}
		}
		ns.Exec("nft", c.damage)
		if got := sync(); len(got) == 0 || !strings.HasPrefix(got[0], c.found) {
			t.Errorf("%s: found %v, want %s", c.damage, got, c.found)
		}
		if got := ns.Exec("nft", "list", "ruleset"); sorted(got) != sorted(want) {
			t.Errorf("%s: is repaired to\n%s\nwant\n%s", c.damage, got, want)
		}
	}
}

// What the kernel refuses is not taken for what it has: when another program no longer owns the
// table, it becomes what was desired last, though that needs no new generation of nftables.
func TestRefused(t *testing.T) {
	t.Parallel()
	g, ns := newGuard(t)
	changed := Desired{OnLink: append([]netip.Prefix{prefix("198.51.100.0/24")}, onLink...)}
	if err := g.Set(changed); err != nil {
		t.Fatal(err)
	}
	want := ns.Exec("nft", "list", "ruleset")
	if err := g.Set(desired); err != nil {
		t.Fatal(err)
	}
	for range enoughLooks {
		if _, err := g.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ns.Exec("nft", "delete", "table", "inet", "flock-node")
	owner := exec.Command("nft", "-i")
	in, err := owner.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	ns.Run(func() { err = owner.Start() })
	if err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { in.Close(); owner.Wait() })
	t.Cleanup(end)
	fmt.Fprintln(in, "add table inet flock-node { flags owner; }")
	nettest.Await(t, "the other program's table", func() bool { return strings.Contains(ns.Exec("nft", "list", "tables"), "flock-node") })
	if _, err := g.Sync(t.Context()); err == nil {
		t.Error("another program's table is no error")
	}
	if err := g.Set(changed); err == nil {
		t.Error("another program's table is no error")
	}
	end()
	nettest.Await(t, "the end of the other program's table", func() bool { return !strings.Contains(ns.Exec("nft", "list", "tables"), "flock-node") })
	if repairs, err := g.Sync(t.Context()); err != nil || len(repairs) == 0 {
		t.Errorf("repairs %v, %v", repairs, err)
	}
	if got := ns.Exec("nft", "list", "ruleset"); sorted(got) != sorted(want) {
		t.Errorf("the table is\n%s\nwant\n%s", got, want)
	}
}

// Another subnet changes rules; what the sets and counters have stays.
func TestSetKeepsWhatIsKnown(t *testing.T) {
	t.Parallel()
	g, ns := newGuard(t)
	if err := g.Set(desired); err != nil {
		t.Fatal(err)
	}
	ns.Exec("nft", "add element inet flock-node known6 { 2001:db8:0:1::7 timeout 1h }")
	if err := g.Set(Desired{OnLink: append([]netip.Prefix{prefix("198.51.100.0/24")}, onLink...)}); err != nil {
		t.Fatal(err)
	}
	out := ns.Exec("nft", "list", "table", "inet", "flock-node")
	if !strings.Contains(out, "2001:db8:0:1::7") || !strings.Contains(out, "198.51.100.0/24") || strings.Contains(out, "179") {
		t.Errorf("the table is\n%s", out)
	}
	// What packets added is nothing to restore.
	objects, err := kerneltest.Objects(func(name string, args ...string) (string, error) { return ns.Exec(name, args...), nil })
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(objects, func(o kerneltest.Object) bool { return strings.Contains(o.Name, "known6") }) {
		t.Errorf("a set that packets fill is among what is restored: %v", objects)
	}
}

// An agent that starts finds the table of the one before, and changes nothing.
func TestRestart(t *testing.T) {
	t.Parallel()
	g, ns := newGuard(t)
	if err := g.Set(desired); err != nil {
		t.Fatal(err)
	}
	before, err := g.conn.Generation()
	if err != nil {
		t.Fatal(err)
	}
	ns.Run(func() {
		next, err := Open()
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		if err := next.Set(desired); err != nil {
			t.Fatal(err)
		}
	})
	if after, err := g.conn.Generation(); err != nil || after != before {
		t.Errorf("generation %d, then %d, %v", before, after, err)
	}
}
