package service

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/datapath/proxy/proxytest"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
	"flock.fritzlab.net/flock/pkg/pod"
)

// held is nftables as it is while another program's transaction is under way: transactions wait.
type held struct {
	waits   chan struct{} // has a value when one waits
	release func()
}

// hold has the transactions of routes wait until release is called, or the test ends.
func hold(t *testing.T, r *Routes) held {
	h := held{waits: make(chan struct{}, 1)}
	free := make(chan struct{})
	h.release = sync.OnceFunc(func() { close(free) })
	t.Cleanup(h.release)
	r.work.Lock()
	defer r.work.Unlock()
	r.guard.onCommit = func() {
		select {
		case h.waits <- struct{}{}:
		default:
		}
		<-free
	}
	return h
}

// announcedRoutes are the destinations of routes that are announced.
func announcedRoutes(ns *nettest.NS) (all []string) {
	for _, family := range []string{"-6", "-4"} {
		for line := range strings.Lines(ns.IP(family, "route", "show", "proto", "85", "metric", "640")) {
			all = append(all, strings.Fields(line)[0])
		}
	}
	return all
}

func wantRoutes(t *testing.T, ns *nettest.NS, when string, want ...netip.Addr) {
	t.Helper()
	var texts []string
	for _, a := range want {
		texts = append(texts, a.String())
	}
	if got := announcedRoutes(ns); !slices.Equal(got, texts) {
		t.Errorf("%s: announced are %q, want %q", when, got, texts)
	}
}

// toPodAt is toPod for the addresses that are given.
func toPodAt(addrs ...netip.Addr) Interim {
	all := toPod(80)
	maps.DeleteFunc(all, func(from proxy.Target, _ Translation) bool { return !slices.Contains(addrs, from.Addr) })
	return all
}

// Whatever the agent writes into nftables, and whoever it waits for there, a withdrawal does not
// wait, and neither does what needs no translation.
func TestWithdrawalDoesNotWait(t *testing.T) {
	t.Parallel()
	plainAddr := netip.MustParseAddr("203.0.113.99")
	for what, c := range map[string]struct {
		begin   func(*nettest.NS, *Routes) error
		guarded bool // the guard is there meanwhile
	}{
		"a translation is written": {func(_ *nettest.NS, r *Routes) error { return set(r, nil, toPod(80)) }, true},
		"a translation is ended":   {func(_ *nettest.NS, r *Routes) error { return set(r, nil, nil) }, true},
		"a translation is led to another pod": {func(_ *nettest.NS, r *Routes) error {
			other := Interim{}
			for from, to := range toPodAt(vip[1]) {
				to.To = netip.AddrPortFrom(there[1], podPort)
				other[from] = to
			}
			return set(r, nil, other)
		}, true},
		"the guard is repaired": {func(ns *nettest.NS, r *Routes) error {
			ns.Exec("nft", "flush", "ruleset")
			_, err := r.Sync(t.Context())
			return err
		}, false},
		"the MTU is another": {func(ns *nettest.NS, r *Routes) error {
			ns.Exec("nft", "flush", "ruleset")
			r.SetMTU(1400)
			return r.Complete()
		}, false},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ns := nettest.New(t)
			r := openRoutes(t, ns, true)
			if err := reset(r, announcedAt(vip[1]), toPodAt(vip[1])); err != nil {
				t.Fatal(err)
			}
			h := hold(t, r)
			done := make(chan error, 1)
			go func() { done <- c.begin(ns, r) }()
			<-h.waits
			r.Set(map[netip.Prefix]Entry{hostPrefix(vip[1]): {Local: true}}, nil)
			wantRoutes(t, ns, "held")
			r.Set(announcedAt(plainAddr), nil)
			if c.guarded {
				wantRoutes(t, ns, "an address without translations", plainAddr)
			} else {
				wantRoutes(t, ns, "without guard")
			}
			h.release()
			if err := errors.Join(<-done, r.Complete()); err != nil {
				t.Error(err)
			}
			if _, got, err := r.Kept(); err != nil || len(got) > 0 {
				t.Errorf("the kernel translates %v, %v", got, err)
			}
			wantRoutes(t, ns, "free", plainAddr)
			if repairs, err := r.Sync(t.Context()); err != nil || len(repairs) > 0 {
				t.Errorf("repairs %v, %v", repairs, err)
			}
		})
	}
}

// An address is not announced before the kernel translates, nor while it is about to cease to.
func TestAnnouncementWaits(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	if err := reset(r, announcedAt(vip[0]), nil); err != nil {
		t.Fatal(err)
	}
	local := map[netip.Prefix]Entry{hostPrefix(vip[1]): {Local: true}}
	complete := func() (held, func()) {
		t.Helper()
		h := hold(t, r)
		done := make(chan error, 1)
		go func() { done <- r.Complete() }()
		<-h.waits
		return h, func() {
			t.Helper()
			h.release()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	r.Set(announcedAt(vip[1]), toPodAt(vip[1]))
	_, end := complete()
	wantRoutes(t, ns, "being translated", vip[0])
	end()
	wantRoutes(t, ns, "translated", vip[:]...)

	// It comes back while its translation is being ended, and while it is being written.
	r.Set(local, nil)
	_, end = complete()
	r.Set(announcedAt(vip[1]), toPodAt(vip[1]))
	wantRoutes(t, ns, "while it ends", vip[0])
	end()
	wantRoutes(t, ns, "when it has ended", vip[0])
	_, end = complete()
	wantRoutes(t, ns, "being translated again", vip[0])
	// It goes before the kernel translates.
	r.Set(local, nil)
	end()
	wantRoutes(t, ns, "it went", vip[0])
	if err := r.Complete(); err != nil {
		t.Error(err)
	}
	if _, got, err := r.Kept(); err != nil || len(got) > 0 {
		t.Errorf("the kernel translates %v, %v", got, err)
	}

	// The last goes and comes back while link and guard are taken away.
	r.Set(map[netip.Prefix]Entry{hostPrefix(vip[0]): {}, hostPrefix(vip[1]): {}}, nil)
	_, end = complete()
	r.Set(announcedAt(vip[1]), toPodAt(vip[1]))
	wantRoutes(t, ns, "without guard")
	end()
	if err := r.Complete(); err != nil {
		t.Error(err)
	}
	wantRoutes(t, ns, "with another guard", vip[1])
	if _, got, err := r.Kept(); err != nil || !maps.EqualFunc(got, toPodAt(vip[1]), Translation.same) {
		t.Errorf("the kernel translates %v, %v", got, err)
	}
}

// What changes while the kernel is looked at is known better than what was seen.
func TestChangesDuringALook(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	if err := reset(r, announcedAt(vip[:]...), nil); err != nil {
		t.Fatal(err)
	}
	other := netip.MustParseAddr("203.0.113.99")
	r.work.Lock()
	r.mu.Lock()
	r.touched = map[netip.Prefix]struct{}{}
	r.mu.Unlock()
	is, _, err := r.fib.Load(0)
	if err != nil {
		t.Fatal(err)
	}
	ns.IP("route", "del", vip[0].String(), "metric", "640") // by another program
	again, _, err := r.fib.Load(0)
	if err != nil {
		t.Fatal(err)
	}
	changes := announcedAt(other)
	changes[hostPrefix(vip[1])] = Entry{Local: true}
	r.Set(changes, nil)
	r.mu.Lock()
	if found := r.found(is); len(found) > 0 {
		t.Errorf("found %v", found)
	}
	if found := r.found(again); !slices.Equal(found, []Change{{Announce, hostPrefix(vip[0])}}) {
		t.Errorf("found %v", found)
	}
	want := maps.Clone(changes)
	want[hostPrefix(vip[0])] = Entry{Local: true}
	if got := r.fib.Actual(); !maps.Equal(got, want) {
		t.Errorf("the kernel has %v, want %v", got, want)
	}
	r.touched = nil
	r.mu.Unlock()
	r.work.Unlock()
	if repairs, err := r.Sync(t.Context()); err != nil || len(repairs) > 0 {
		t.Errorf("repairs %v, %v", repairs, err)
	}
}

// From pods' reports to routes while transactions of nftables wait.
func TestControllerWithdrawsWhileNFTablesWaits(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	var mu sync.Mutex
	var log []string
	c, _ := run(t, f.node, func(all []Transition) {
		mu.Lock()
		defer mu.Unlock()
		for _, tr := range all {
			log = append(log, tr.Addr.String()+" "+string(tr.Reason))
		}
	})
	f.program(nftables, proxytest.Port{Name: "shop/web:http", Protocol: "tcp", Port: servicePort, Local: true, Elsewhere: endpoints(there)})
	one, two := plain(vip[0]), plain(vip[1])
	two.Name, two.Selector = "two", map[string]string{"app": "two"}
	c.Send(NodeChanged{Node{Known: true}})
	c.Send(Services{All: []*Service{one, two}})
	c.Send(PodsSynced{})
	path := func(a netip.Addr) (p Path) {
		s, _ := c.Status(t.Context())
		for _, p := range s.Paths {
			if p.Addr == a {
				return p
			}
		}
		return p
	}
	nettest.Await(t, "a look", func() bool { return path(vip[0]).Reason == NoLocalEndpoint && path(vip[1]).Reason == NoLocalEndpoint })
	c.Send(report("a", pod.Ready, appWeb, here[0], here[1]))
	nettest.Await(t, "the first address", func() bool { return path(vip[0]).Announced })

	h := hold(t, c.cfg.Routes)
	isTwo := map[string]string{"app": "two"}
	c.Send(report("b", pod.Ready, isTwo, here[0], here[1]))
	<-h.waits
	if p := path(vip[1]); p.Announced || p.Reason != Serving || p.Detail != "the kernel does not have it yet" {
		t.Errorf("the second address: %+v", p)
	}
	c.Send(report("a", pod.NotReady, appWeb, here[0], here[1]))
	nettest.Await(t, "the withdrawal", func() bool { return path(vip[0]).Reason == LocalEndpointNotReady })
	wantRoutes(t, f.node, "held")
	// This one goes before it was announced, and nobody hears of it.
	c.Send(report("b", pod.NotReady, isTwo, here[0], here[1]))
	nettest.Await(t, "the second withdrawal", func() bool { return path(vip[1]).Reason == LocalEndpointNotReady })
	h.release()
	c.Send(report("a", pod.Ready, appWeb, here[0], here[1]))
	nettest.Await(t, "the first address again", func() bool { return path(vip[0]).Announced })
	wantRoutes(t, f.node, "free", vip[0])
	mu.Lock()
	defer mu.Unlock()
	if want := []string{vip[0].String() + " Serving", vip[0].String() + " LocalEndpointNotReady", vip[0].String() + " Serving"}; !slices.Equal(log, want) {
		t.Errorf("transitions %q, want %q", log, want)
	}
}

// The kernel makes one transaction at a time. A withdrawal comes before the end of others' that
// the agent's waits for.
func TestWithdrawalDuringATransaction(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	var others []*nft.Conn
	var reader *guard
	ns.Run(func() {
		var err error
		for range 3 {
			other, err := nft.Dial()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(other.Close)
			if err := other.SetSendBuffer(64 << 20); err != nil {
				t.Fatal(err)
			}
			others = append(others, other)
		}
		if reader, err = openGuard(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(reader.Close)
	// Once one of the others' transactions has ended, the next is under way. On a busy machine
	// that may end before it is seen: then larger ones are made.
	for elements := 10_000; ; elements *= 2 {
		if elements > 400_000 {
			t.Fatal("no withdrawal came before the end of a transaction")
		}
		if err := reset(r, announcedAt(vip[0]), toPodAt(vip[0])); err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		ended, waits := make(chan struct{}, len(others)), make(chan struct{})
		for i, other := range others {
			b := large(fmt.Sprint("other", i), elements)
			running.Go(func() {
				if err := other.Commit(b); err != nil {
					t.Error(err)
				}
				ended <- struct{}{}
			})
		}
		<-ended
		r.work.Lock()
		r.guard.onCommit = sync.OnceFunc(func() { close(waits) })
		r.work.Unlock()
		running.Go(func() {
			if err := set(r, announcedAt(vip[1]), toPod(80)); err != nil {
				t.Error(err)
			}
		})
		<-waits
		r.Set(map[netip.Prefix]Entry{hostPrefix(vip[0]): {Local: true}}, toPodAt(vip[1]))
		if routes := announcedRoutes(ns); slices.Contains(routes, vip[0].String()) {
			t.Errorf("announced are %q", routes)
		}
		translated, err := readInterim(reader.tables)
		if err != nil {
			t.Error(err)
		}
		running.Wait()
		if len(translated) == len(toPodAt(vip[0])) || t.Failed() {
			return
		}
	}
}

// While nftables is busy, a connection to an address may still be led to a pod that is gone. Until that
// has ended, the address is not announced for others.
func TestAnnouncementWaitsForTheEndOfOthers(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	if err := reset(r, announcedAt(vip[1]), toPodAt(vip[1])); err != nil {
		t.Fatal(err)
	}
	h := hold(t, r)
	gone := map[netip.Prefix]Entry{hostPrefix(vip[1]): {Local: true}}
	r.Set(gone, nil)
	r.Set(announcedAt(vip[1]), nil)
	wantRoutes(t, ns, "nobody has begun to end it")
	done := make(chan error, 1)
	go func() { done <- r.Complete() }()
	<-h.waits
	r.Set(gone, nil)
	r.Set(announcedAt(vip[1]), nil)
	wantRoutes(t, ns, "its end waits")
	h.release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantRoutes(t, ns, "it has ended", vip[1])
	if _, got, err := r.Kept(); err != nil || len(got) > 0 {
		t.Errorf("the kernel translates %v, %v", got, err)
	}
	// One whose time is over has ended by itself.
	past := toPodAt(vip[1])
	for from, to := range past {
		to.Until = time.Now().Add(-interimMargin)
		past[from] = to
	}
	r.mu.Lock()
	r.standing = past
	r.mu.Unlock()
	r.Set(gone, nil)
	r.Set(announcedAt(vip[1]), nil)
	wantRoutes(t, ns, "its time is over", vip[1])
}

// large is a transaction that takes the kernel a while.
func large(name string, elements int) *nft.Batch {
	other := nft.Table{Family: nft.IPv6, Name: name}
	addresses := nft.Set{Table: other, Name: "service-ips", Key: []nft.Field{nft.IPv6Addr}}
	var b nft.Batch
	b.AddTable(other)
	b.DelTable(other)
	b.AddTable(other)
	b.AddSet(addresses)
	keys := make([]string, elements)
	for i := range keys {
		addr := vip[0].As16()
		binary.BigEndian.PutUint32(addr[12:], uint32(i))
		keys[i] = string(addr[:])
	}
	b.AddElements(addresses, keys...)
	return &b
}

// A look at the kernel may take long on a busy node. What is announced meanwhile does not wait
// for it, and the look does not take what has changed since for another program's doing.
func TestAnnouncementDoesNotWaitForALook(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	if err := reset(r, announcedAt(vip[0]), nil); err != nil {
		t.Fatal(err)
	}
	looks, free := make(chan struct{}), make(chan struct{})
	r.looking.Lock()
	r.guard.onLook = sync.OnceFunc(func() { close(looks); <-free })
	r.looking.Unlock()
	var repairs []datapath.Repair
	synced := make(chan error, 1)
	go func() {
		var err error
		repairs, err = r.Sync(t.Context())
		synced <- err
	}()
	<-looks
	announced := make(chan error, 1)
	go func() { announced <- set(r, announcedAt(vip[1]), toPodAt(vip[1])) }()
	select {
	case err := <-announced:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("an announcement waits for a look")
	}
	wantRoutes(t, ns, "while the kernel is looked at", vip[0], vip[1])
	close(free)
	if err := <-synced; err != nil || len(repairs) > 0 {
		t.Errorf("the look found %v, %v; want nothing", repairs, err)
	}
	if is := r.Translated(); len(is) != len(toPodAt(vip[1])) {
		t.Errorf("after the look the kernel translates %v", is)
	}
	wantRoutes(t, ns, "after the look", vip[0], vip[1])
}
