package sourceguard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/netlink"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

// guardIn opens a guard in a namespace that holds nothing else.
func guardIn(t testing.TB, ns *nettest.NS) *Guard {
	t.Helper()
	return (&testNode{ns: ns}).open(t)
}

func synced(t testing.TB, ns *nettest.NS, all ...Binding) *Guard {
	t.Helper()
	g := guardIn(t, ns)
	if err := g.Resync(all); err != nil {
		t.Fatal(err)
	}
	return g
}

func listing(ns *nettest.NS, family string) string {
	return ns.Exec("nft", "list", "table", family, "flock")
}

// bindings are what the kernel has, in words: link, set, address.
func bindings(t testing.TB, g *Guard) (out []string) {
	t.Helper()
	have, err := g.actual()
	if err != nil {
		t.Fatal(err)
	}
	for link, es := range have {
		for _, e := range es {
			a, _ := netip.AddrFromSlice([]byte(e.key[ifNameSize:]))
			out = append(out, fmt.Sprint(link, " ", sets[e.set], " ", a))
		}
	}
	slices.Sort(out)
	return out
}

func wantBindings(t testing.TB, g *Guard, bs ...Binding) {
	t.Helper()
	var want []string
	for _, b := range bs {
		for _, e := range b.elements() {
			a, _ := netip.AddrFromSlice([]byte(e.key[ifNameSize:]))
			want = append(want, fmt.Sprint(b.HostIf, " ", sets[e.set], " ", a))
		}
	}
	slices.Sort(want)
	if got := bindings(t, g); !slices.Equal(got, want) {
		t.Errorf("kernel has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

var cafe = Binding{HostIf: "flock0badcafe", LinkLocal: addr("fe80::a"), Sources: []netip.Addr{addr("2001:db8:100::a"), addr("10.244.1.10")}}

// TestTable holds what the guard writes against what nft writes for the same
// script.
func TestTable(t *testing.T) {
	t.Parallel()
	ours, theirs := nettest.New(t), nettest.New(t)
	g := synced(t, ours)
	if err := g.Set(cafe); err != nil {
		t.Fatal(err)
	}
	theirs.Exec("nft", "-f", "testdata/table.nft")
	for _, family := range []string{"inet", "arp"} {
		if got, want := listing(ours, family), listing(theirs, family); got != want {
			t.Errorf("table %s flock is\n%s\nwant\n%s", family, got, want)
		}
	}
}

func TestSetAndRemove(t *testing.T) {
	t.Parallel()
	g := synced(t, nettest.New(t))
	all := pods(3)
	for _, b := range all {
		if err := g.Set(b); err != nil {
			t.Fatal(err)
		}
	}
	wantBindings(t, g, all...)

	more := all[1]
	more.Sources = append([]netip.Addr{static6, static4}, all[1].Sources[1:]...) // one less, two more
	for range 2 {
		if err := g.Set(more); err != nil {
			t.Fatal(err)
		}
		wantBindings(t, g, all[0], more, all[2])
	}
	only4 := Binding{HostIf: more.HostIf, Sources: []netip.Addr{static4}}
	if err := g.Set(only4); err != nil {
		t.Fatal(err)
	}
	wantBindings(t, g, all[0], only4, all[2])
	for range 2 {
		if err := g.Remove(more.HostIf); err != nil {
			t.Fatal(err)
		}
		wantBindings(t, g, all[0], all[2])
	}
	if err := g.Set(Binding{HostIf: more.HostIf}); err != nil {
		t.Errorf("no addresses: %v", err)
	}
	drops, _, err := g.Counters()
	if err != nil || !slices.Equal(drops, []Drop{{HostIf: all[0].HostIf}, {HostIf: more.HostIf}, {HostIf: all[2].HostIf}}) {
		t.Errorf("counters %v, %v; want one for each link, by name", drops, err)
	}
}

// TestRestart does to the guard what an agent's end and start, and the pods that
// came and went between, do.
func TestRestart(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := listing(n.ns, "inet")
	n.Close()
	if after := listing(n.ns, "inet"); after != before {
		t.Errorf("the table changed with the agent's end:\n%s\nbefore:\n%s", after, before)
	}
	n.a.send(t, packet(n.a.mac, nowhere6, outside6, 17, udp(nowhere6, outside6, forged)))

	n.Guard = n.open(t)
	if got := n.dropped(t, n.a); got != 1 {
		t.Errorf("%d drops counted while the agent was away, want 1", got)
	}
	if err := n.Set(n.a.binding()); !errors.Is(err, ErrNotSynced) {
		t.Errorf("Set before Resync: %v", err)
	}
	if err := n.Remove(n.a.HostIf); !errors.Is(err, ErrNotSynced) {
		t.Errorf("Remove before Resync: %v", err)
	}
	stale, come := n.b.binding(), cafe
	kept := n.a.binding()
	if err := n.Resync([]Binding{come, kept}); err != nil {
		t.Fatal(err)
	}
	wantBindings(t, n.Guard, come, kept)
	if got := n.dropped(t, n.a); got != 1 {
		t.Errorf("%d drops counted after Resync, want still 1", got)
	}
	// b is nobody's now.
	n.b.send(t, packet(n.b.mac, n.b.v6(), outside6, 17, udp(n.b.v6(), outside6, forged)),
		ethernet(n.b.mac, unix.ETH_P_ARP, arp(1, n.b.mac, n.b.v4(), n.a.mac, node4)))
	if _, unbound, err := n.Counters(); err != nil || unbound.Packets < 2 {
		t.Errorf("unbound: %d packets, %v; want 2, and what its kernel sends of its own", unbound.Packets, err)
	}
	if err := n.Set(stale); err != nil {
		t.Fatal(err)
	}
	n.b.Exec("ping", "-c1", "-W5", outside6.String())
}

// TestUpgrade is the guard's first start on a node whose pods run already. They
// are not cut off at any moment.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.addPods(t)
	n.Guard = n.open(t)
	n.a.Exec("ping", "-c1", "-W5", outside6.String())
	commit := n.commit
	n.commit = func(b *nft.Batch) error {
		err := commit(b)
		n.a.Exec("ping", "-c1", "-W5", outside6.String())
		n.a.Exec("ping", "-c1", "-W5", outside4.String())
		return err
	}
	if err := n.Resync(append(pods(2*batchElements/8), n.a.binding(), n.b.binding())); err != nil {
		t.Fatal(err)
	}
	if got := n.dropped(t, n.a); got != 0 {
		t.Errorf("%d packets dropped", got)
	}
}

// TestNoGap has pod a send from its address without pause while its other addresses
// come and go. Not one packet is lost: a binding changes between two packets.
func TestNoGap(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		f := packet(n.a.mac, n.a.v6(), nowhere6, unix.IPPROTO_UDP, udp(n.a.v6(), nowhere6, honest))
		for {
			select {
			case <-stop:
				return
			default:
				unix.Write(n.a.eth0, f)
			}
		}
	})
	b := n.a.binding()
	for i := range 200 {
		b.Sources = n.a.all[:2+i%3]
		if err := n.Set(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Resync(append(pods(300), b, n.b.binding())); err != nil {
		t.Fatal(err)
	}
	close(stop)
	wg.Wait()
	if got := n.dropped(t, n.a); got != 0 {
		t.Errorf("%d packets from an address that it held all the time were dropped", got)
	}
}

// TestBeforeBound has a link send that no binding is known for: nothing passes.
func TestBeforeBound(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	o := n.observe(t)
	g := n.Guard
	n.Guard = nil
	p := n.pod(t, "unbound", []netip.Addr{addr("2001:db8:100::c"), addr("10.244.1.12")})
	n.Guard = g
	for _, src := range append(p.all, p.linkLocal, outside6, outside4) {
		for _, dst := range n.destinations(src) {
			p.send(t, packet(p.mac, src, dst, unix.IPPROTO_UDP, udp(src, dst, forged)))
		}
	}
	o.nothingForged(t, n)
	if _, unbound, err := n.Counters(); err != nil || unbound.Packets < 15 {
		t.Errorf("unbound: %d packets, %v; want 15, and what its kernel sends of its own", unbound.Packets, err)
	}
	if err := n.Set(p.binding()); err != nil {
		t.Fatal(err)
	}
	p.Exec("ping", "-c1", "-W5", outside6.String())
}

// TestParallel has pods come and go at once while somebody reads the counters.
func TestParallel(t *testing.T) {
	t.Parallel()
	all := pods(64)
	g := synced(t, nettest.New(t), all[:32]...)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			if err := errors.Join(g.Set(all[32+i]), g.Remove(all[i].HostIf)); err != nil {
				t.Error(err)
			}
		})
	}
	for range 10 {
		if drops, _, err := g.Counters(); err != nil && !errors.Is(err, netlink.ErrInterrupted) || len(drops) > len(all) {
			t.Error(len(drops), err)
		}
	}
	wg.Wait()
	wantBindings(t, g, all[32:]...)
}
