package sourceguard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/netlink"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

var errKilled = errors.New("killed")

// TestKill ends the agent between any two transactions of a Resync. What is in the
// kernel then is of what was and of what shall be, pod by pod, and the next Resync
// comes to the end.
func TestKill(t *testing.T) {
	t.Parallel()
	all := pods(300)
	old, young := all[:200], slices.Clone(all[100:])
	for i := range young {
		young[i].Sources = append([]netip.Addr{static6}, young[i].Sources[1:]...)
	}
	for at := 0; ; at++ {
		ns := nettest.New(t)
		synced(t, ns, old...)
		g := guardIn(t, ns)
		commit, n := g.commit, 0
		g.commit = func(b *nft.Batch) error {
			if n++; n > at {
				return errKilled
			}
			return commit(b)
		}
		err := g.Resync(young)
		if err != nil && !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		if err == nil {
			if at < 4 {
				t.Fatalf("done after %d transactions: too few to show anything", at)
			}
			wantBindings(t, g, young...)
			return
		}
		allowed := map[string][]string{} // by link: the two ways it may be
		for _, bs := range [][]Binding{old, young} {
			for _, b := range bs {
				allowed[b.HostIf] = append(allowed[b.HostIf], fmt.Sprint(b.elements()))
			}
		}
		have, err := g.actual()
		if err != nil {
			t.Fatal(err)
		}
		for link, es := range have {
			if !slices.Contains(allowed[link], fmt.Sprint(es)) {
				t.Errorf("killed after %d transactions: %s is neither as it was nor as it shall be: %v", at, link, es)
			}
		}
		next := synced(t, ns, young...)
		wantBindings(t, next, young...)
	}
}

// TestOthersDamage does to flock's table what "nft flush ruleset" or a person
// does, and sees it mended by what comes next.
func TestOthersDamage(t *testing.T) {
	t.Parallel()
	for _, damage := range []string{
		"flush ruleset",
		"delete table inet flock",
		"delete table arp flock",
		"flush set inet flock pod-sources6",
		"flush set arp flock pod-drops",
	} {
		t.Run(damage, func(t *testing.T) {
			t.Parallel()
			ns := nettest.New(t)
			all := pods(3)
			g := synced(t, ns, all...)
			inet, arp := listing(ns, "inet"), listing(ns, "arp")

			ns.Exec("nft", damage)
			if err := g.Remove(all[1].HostIf); err != nil { // deletes something of every set
				t.Fatal(err)
			}
			wantBindings(t, g, all[0], all[2])
			if err := g.Set(all[1]); err != nil {
				t.Fatal(err)
			}
			wantBindings(t, g, all...)

			ns.Exec("nft", damage)
			if err := g.Resync(all); err != nil {
				t.Fatal(err)
			}
			wantBindings(t, g, all...)
			sameLines(t, listing(ns, "inet"), inet)
			sameLines(t, listing(ns, "arp"), arp)
		})
	}
	t.Run("counters", func(t *testing.T) {
		ns := nettest.New(t)
		g := synced(t, ns, cafe)
		for _, damage := range []string{"delete table arp flock", "flush ruleset"} {
			ns.Exec("nft", damage)
			if _, _, err := g.Counters(); !errors.Is(err, unix.ENOENT) {
				t.Errorf("after %s: %v, want an error that tells", damage, err)
			}
		}
	})
	t.Run("rules", func(t *testing.T) {
		ns := nettest.New(t)
		g := synced(t, ns, cafe)
		inet := listing(ns, "inet")
		ns.Exec("nft", "flush chain inet flock pod-sources; add rule inet flock pod-sources accept; add element inet flock pod-icmpv6-from-link-local { nd-router-advert }")
		if err := g.Resync([]Binding{cafe}); err != nil {
			t.Fatal(err)
		}
		sameLines(t, listing(ns, "inet"), inet)
	})
}

// sameLines compares listings whose sets are in any order.
func sameLines(t *testing.T, got, want string) {
	t.Helper()
	words := func(s string) []string {
		w := strings.Fields(strings.NewReplacer(",", " ", "{", " ", "}", " ").Replace(s))
		slices.Sort(w)
		return w
	}
	if !slices.Equal(words(got), words(want)) {
		t.Errorf("the table is\n%s\nwant\n%s", got, want)
	}
}

// TestRefusals has the kernel, or someone in its place, refuse.
func TestRefusals(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	all := pods(2)
	g := synced(t, ns, all...)
	errNo := &netlink.Error{Errno: unix.ENOMEM}

	commit := g.commit
	g.commit = func(*nft.Batch) error { return errNo }
	moved := all[0]
	moved.Sources = []netip.Addr{static6}
	if err := g.Set(moved); !errors.Is(err, errNo) {
		t.Errorf("Set: %v, want the kernel's refusal", err)
	}
	g.commit = commit
	wantBindings(t, g, all...)
	if err := g.Set(cafe); err != nil {
		t.Fatal(err)
	}
	wantBindings(t, g, all[0], all[1], cafe) // a Set that was refused is not made up for

	// The answer is lost, the transaction is not.
	g.commit = func(b *nft.Batch) error {
		g.commit = commit
		return errors.Join(commit(b), netlink.ErrUnknown)
	}
	if err := g.Set(moved); err != nil {
		t.Fatal(err)
	}
	wantBindings(t, g, moved, all[1], cafe)

	// Resync cannot read.
	elements := g.elements
	g.elements = func(nft.Set) ([]nft.Element, error) { return nil, netlink.ErrInterrupted }
	if err := g.Resync(all); !errors.Is(err, netlink.ErrInterrupted) {
		t.Errorf("Resync: %v", err)
	}
	g.elements = elements
	if err := g.Remove(cafe.HostIf); err != nil {
		t.Fatal(err)
	}
	wantBindings(t, g, moved, all[1]) // as it was before the Resync that failed

	if err := g.Resync([]Binding{all[0], all[0]}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a link bound twice: %v", err)
	}
	bad := Binding{HostIf: "eth0", Sources: []netip.Addr{static6}}
	if g.Set(bad) == nil || g.Remove(bad.HostIf) == nil || g.Resync([]Binding{bad}) == nil {
		t.Error("a link was bound that is not flock's")
	}
	wantBindings(t, g, moved, all[1])

	// A first Resync that fails leaves nothing that Set could take for the whole.
	other := guardIn(t, ns)
	other.elements = func(nft.Set) ([]nft.Element, error) { return nil, netlink.ErrInterrupted }
	if err := other.Resync(all); !errors.Is(err, netlink.ErrInterrupted) {
		t.Errorf("Resync: %v", err)
	}
	other.elements = elements
	if err := other.Set(cafe); !errors.Is(err, ErrNotSynced) {
		t.Errorf("Set after a failed first Resync: %v", err)
	}
	wantBindings(t, g, moved, all[1])
}

// TestOpenRefused is the guard where it may not change nftables, and where another
// program has a table of flock's name.
func TestOpenRefused(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	ns.Exec("nft", "add table inet flock; add set inet flock pod-drops { type mark; }")
	ns.Run(func() {
		g, err := Open()
		if err == nil {
			g.Close()
			t.Fatal("opened over another's set")
		}
		if !strings.Contains(err.Error(), "set inet flock pod-drops") {
			t.Errorf("%v: want the set's name", err)
		}
	})
}

// TestOthersTables has the guard do all that it does beside other programs' tables.
func TestOthersTables(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	others := func() string {
		return n.ns.Exec("nft", "list", "table", "ip", "kube-proxy") + n.ns.Exec("nft", "list", "table", "inet", "firewall")
	}
	n.load(t, `table inet flock {
		chain others { tcp dport 1 drop; }
		set peers { type ipv4_addr; elements = { 192.0.2.7 }; }
	}`)
	before := others()
	n.addGuard(t)
	if err := n.Resync(pods(100)); err != nil {
		t.Fatal(err)
	}
	if err := n.Resync(pods(50)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Set(cafe), n.Remove(cafe.HostIf)); err != nil {
		t.Fatal(err)
	}
	if after := others(); after != before {
		t.Errorf("others' tables are now\n%s\nwere\n%s", after, before)
	}
	for _, neighbour := range []string{"tcp dport 1 drop", "192.0.2.7"} {
		if !strings.Contains(listing(n.ns, "inet"), neighbour) {
			t.Errorf("in flock's own table, what is not the guard's is gone: %s", neighbour)
		}
	}

	// A Service, translated behind the guard.
	n.addPods(t)
	n.ns.Exec("nft", `add chain ip kube-proxy web { dnat to `+outside4.String()+`; }; add element ip kube-proxy service-ips { 10.96.0.80 . udp . `+fmt.Sprint(testPort)+` : goto web }`)
	n.outside.Run(func() {
		fd := packetSocket(t, n.outside, unix.ETH_P_IP)
		n.a.send(t, packet(n.a.mac, n.a.v4(), addr("10.96.0.80"), unix.IPPROTO_UDP, udp(n.a.v4(), addr("10.96.0.80"), honest)))
		in := make([]byte, 1500)
		if k, err := unix.Read(fd, in); err != nil || !strings.Contains(string(in[:k]), honest) {
			t.Errorf("through the Service: %v", err)
		}
	})
}
