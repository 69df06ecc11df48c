package service

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/datapath/proxy/proxytest"
	"flock.fritzlab.net/flock/pkg/pod"
)

// toPod are the connections to the Service's addresses, led to the pod for a minute.
func toPod(port uint16) Interim { return toPodUntil(port, time.Now().Add(time.Minute)) }

func toPodUntil(port uint16, end time.Time) Interim {
	all := Interim{}
	for i, a := range vip {
		for _, protocol := range []byte{6, 17} {
			all[proxy.Target{Addr: a, Protocol: protocol, Port: port}] = Translation{netip.AddrPortFrom(here[i], podPort), end}
		}
	}
	return all
}

// Whatever rules kube-proxy has for a Service without an endpoint here, connections from
// outside reach the pod, from their own addresses. From elsewhere they are as they were.
func TestInterimTranslates(t *testing.T) {
	t.Parallel()
	for _, m := range modes {
		for _, where := range []string{"none", "there"} {
			t.Run(string(m)+"/"+where, func(t *testing.T) {
				t.Parallel()
				f := newFabric(t)
				p := proxytest.Port{Name: "shop/web:http", Protocol: "tcp", Port: servicePort, Local: true}
				if where == "there" {
					p.Elsewhere = endpoints(there)
				}
				f.program(m, p)
				f.announce()
				expect := func(when, network string, port int, want ...string) {
					t.Helper()
					for i, a := range vip {
						if got := ask(t, f.client, network, a, port); got != want[i] {
							t.Errorf("%s: %s to %v port %d: %q, want %q", when, network, a, port, got, want[i])
						}
					}
				}
				reached := []string{"here " + outside[0].String(), "here " + outside[1].String()}
				refused := []string{refusedAtOnce, refusedAtOnce}
				if err := set(f.routes, nil, toPod(servicePort)); err != nil {
					t.Fatal(err)
				}
				expect("translated", "tcp", servicePort, reached...)
				expect("translated", "udp", servicePort, reached...)
				// Pods and the node have what kube-proxy makes of theirs.
				for _, ns := range []*nettest.NS{f.pod, f.node} {
					for i, a := range vip {
						want := "there "
						if where == "none" { // as in TestRoute
							want = []string{noAnswer, refusedAtOnce}[i]
						}
						if got := ask(t, ns, "tcp", a, servicePort); got != refusedAtOnce && !strings.HasPrefix(got, want) {
							t.Errorf("from within, to %v: %q, want %q", a, got, want)
						}
					}
				}
				expect("another port", "tcp", podPort, refused...)
				// A flow of UDP stays where it was; the next one is refused.
				if err := set(f.routes, nil, nil); err != nil {
					t.Fatal(err)
				}
				expect("no more", "udp", servicePort, refused...)
				// kube-proxy has its rule, while flock's is there.
				p.Here = endpoints(here)
				if err := set(f.routes, nil, toPod(servicePort)); err != nil {
					t.Fatal(err)
				}
				f.program(m, p)
				expect("both", "tcp", servicePort, reached...)
				if err := set(f.routes, nil, nil); err != nil {
					t.Fatal(err)
				}
				expect("kube-proxy alone", "tcp", servicePort, reached...)
			})
		}
	}
}

// The kernel has what is wanted, whatever it had and whoever changed it.
func TestInterimConverges(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	var r *Routes
	ns.Run(func() {
		var err error
		if r, err = Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(r.Close)
	entries := map[netip.Prefix]Entry{}
	for _, a := range vip {
		entries[netip.PrefixFrom(a, a.BitLen())] = Entry{Announced: true, Local: true}
	}
	want := toPod(80)
	if err := reset(r, entries, want); err != nil {
		t.Fatal(err)
	}
	has := func(when string, want Interim) {
		t.Helper()
		_, got, err := r.Kept()
		if err != nil || !maps.EqualFunc(got, want, Translation.same) {
			t.Errorf("%s: the kernel translates %v, %v; want %v", when, got, err, want)
		}
	}
	has("at the start", want)
	for what, meddle := range map[string][]string{
		"an element is gone":     {"delete", "element", "inet", "flock-service", "interim4", "{ 203.0.113.7 . tcp . 80 }"},
		"an element is added":    {"add", "element", "inet", "flock-service", "interim6", "{ 2001:db8:5::7 . tcp . 443 : 2001:db8:100:1::a . 1 }"},
		"an element never ends":  {"delete element inet flock-service interim4 { 203.0.113.7 . tcp . 80 }; add element inet flock-service interim4 { 203.0.113.7 . tcp . 80 : 10.244.1.10 . 8080 }"},
		"all elements are gone":  {"flush", "map", "inet", "flock-service", "interim6"},
		"the chain is gone":      {"delete", "chain", "inet", "flock-service", "interim"},
		"the rules are gone":     {"flush", "chain", "inet", "flock-service", "interim"},
		"the table is gone":      {"delete", "table", "inet", "flock-service"},
		"everything is gone":     {"flush", "ruleset"},
		"the table is dormant":   {"add table inet flock-service { flags dormant; }"},
		"another set is added":   {"add", "set", "inet", "flock-service", "x", "{ type ipv4_addr; }"},
		"another chain is added": {"add", "chain", "inet", "flock-service", "x"},
	} {
		ns.Exec("nft", meddle...)
		repairs, err := r.Sync(t.Context())
		if err != nil || len(repairs) == 0 {
			t.Errorf("%s: repairs %v, %v", what, repairs, err)
		}
		// A table that is made anew has its elements at once.
		if strings.Contains(fmt.Sprint(repairs), "table") && len(repairs) != 1 {
			t.Errorf("%s: repairs %v, want one", what, repairs)
		}
		has(what, want)
		if repairs, err := r.Sync(t.Context()); err != nil || len(repairs) > 0 {
			t.Errorf("%s, again: repairs %v, %v", what, repairs, err)
		}
	}
	// An element that leads elsewhere, and one that another program has taken before it is
	// deleted.
	want = maps.Clone(want)
	first := proxy.Target{Addr: vip[0], Protocol: 6, Port: 80}
	want[first] = Translation{netip.AddrPortFrom(there[0], 8081), time.Now().Add(time.Minute)}
	if err := set(r, nil, want); err != nil {
		t.Fatal(err)
	}
	has("one leads elsewhere", want)
	ns.Exec("nft", "flush", "map", "inet", "flock-service", "interim4")
	if err := set(r, nil, nil); err != nil {
		t.Fatal(err)
	}
	has("none", Interim{})
	if err := set(r, nil, want); err != nil {
		t.Fatal(err)
	}
	if err := reset(r, nil, nil); err != nil {
		t.Fatal(err)
	}
	has("no address", Interim{})
	if out := ns.Exec("nft", "list", "tables"); strings.Contains(out, "flock-service") {
		t.Errorf("tables:\n%s", out)
	}
}

// Without NAT in nf_tables the guard is there, and nothing is translated.
func TestInterimWithoutKernelNAT(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	f.routes.guard.seen.noNAT = true
	f.announce()
	if err := set(f.routes, nil, toPod(servicePort)); !errors.Is(err, errNoNAT) {
		t.Errorf("error %v, want %v", err, errNoNAT)
	}
	if err := set(f.routes, nil, nil); err != nil {
		t.Error(err)
	}
	if repairs, err := f.routes.Sync(t.Context()); err != nil || len(repairs) > 0 {
		t.Errorf("repairs %v, %v; want none", repairs, err)
	}
	if got := ask(t, f.client, "tcp", vip[0], servicePort); got != refusedAtOnce {
		t.Errorf("%q, want %q", got, refusedAtOnce)
	}
}

// A pod's report alone makes an address reachable, and kube-proxy's rule ends flock's.
func TestControllerTranslates(t *testing.T) {
	t.Parallel()
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			f := newFabric(t)
			p := proxytest.Port{Name: "shop/web:http", Protocol: "tcp", Port: servicePort, Local: true, Elsewhere: endpoints(there)}
			f.program(m, p)
			c, _ := run(t, f.node, nil)
			svc := plain(vip[0], vip[1])
			c.Send(NodeChanged{Node{Known: true}})
			c.Send(Services{All: []*Service{svc}})
			c.Send(PodsSynced{})
			reason := func() string {
				s, _ := c.Status(t.Context())
				if len(s.Paths) != 2 || s.Mode == proxy.None {
					return ""
				}
				return string(s.Paths[0].Reason) + " " + s.Paths[0].Detail
			}
			nettest.Await(t, "a look", func() bool { return strings.HasPrefix(reason(), string(NoLocalEndpoint)) })
			c.Send(report("a", pod.Ready, appWeb, here[0], here[1]))
			nettest.Await(t, "the translation", func() bool { return reason() == "Serving flock translates tcp port 80 until kube-proxy does" })
			reached := func(when string) {
				t.Helper()
				for i, a := range vip {
					if got, want := ask(t, f.client, "tcp", a, servicePort), "here "+outside[i].String(); got != want {
						t.Errorf("%s: %v: %q, want %q", when, a, got, want)
					}
				}
			}
			reached("by flock")
			p.Here = endpoints(here)
			f.program(m, p)
			nettest.Await(t, "kube-proxy's rule", func() bool { return reason() == "Serving " })
			nettest.Await(t, "the end of flock's translations", func() bool {
				return !strings.Contains(f.node.Exec("nft", "list", "table", "inet", "flock-service"), "elements")
			})
			reached("by kube-proxy")
		})
	}
}

// What arrives after a node that departs has withdrawn an address still reaches its pod.
func TestControllerTranslatesWhileRoutersFollow(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	f.program(nftables, proxytest.Port{Name: "shop/web:http", Protocol: "tcp", Port: servicePort, Local: true, Elsewhere: endpoints(there)})
	c, _ := run(t, f.node, nil)
	c.Send(NodeChanged{Node{Known: true}})
	c.Send(Services{All: []*Service{plain(vip[0], vip[1])}})
	c.Send(PodsSynced{})
	c.Send(report("a", pod.Ready, appWeb, here[0], here[1]))
	all := func(want func(Path) bool) func() bool {
		return func() bool {
			s, _ := c.Status(t.Context())
			return len(s.Paths) == 2 && want(s.Paths[0]) && want(s.Paths[1])
		}
	}
	nettest.Await(t, "the addresses", all(func(p Path) bool { return p.Announced }))
	c.Send(NodeChanged{Node{Known: true, Departing: "it is drained"}})
	nettest.Await(t, "the withdrawal", all(func(p Path) bool { return p.Reason == NodeDeparting }))
	wantRoutes(t, f.node, "departing")
	if err := c.cfg.Routes.Complete(); err != nil {
		t.Error(err)
	}
	for i, a := range vip {
		if got, want := ask(t, f.client, "tcp", a, servicePort), "here "+outside[i].String(); got != want {
			t.Errorf("%v: %q, want %q", a, got, want)
		}
	}
	c.Send(report("a", pod.NotReady, appWeb, here[0], here[1]))
	nettest.Await(t, "the end", func() bool { _, got, err := c.cfg.Routes.Kept(); return err == nil && len(got) == 0 })
}

// openRoutes opens the Services' part of a namespace, with no kernel NAT if nat is false.
func openRoutes(t *testing.T, ns *nettest.NS, nat bool) (r *Routes) {
	t.Helper()
	ns.Run(func() {
		var err error
		if r, err = Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(r.Close)
	r.guard.seen.noNAT = !nat
	return r
}

// reset is Reset, and what it leaves to Complete.
func reset(r *Routes, all map[netip.Prefix]Entry, interim Interim) error {
	r.Reset(all, interim)
	return r.Complete()
}

// set is Set, and what it leaves to Complete.
func set(r *Routes, changes map[netip.Prefix]Entry, interim Interim) error {
	r.Set(changes, interim)
	return r.Complete()
}

func announcedAt(addrs ...netip.Addr) map[netip.Prefix]Entry {
	all := map[netip.Prefix]Entry{}
	for _, a := range addrs {
		all[hostPrefix(a)] = Entry{Announced: true, Local: true}
	}
	return all
}

// The kernel ends a translation by itself, so that an agent that does not run leaves none. A
// longer one is told to it.
func TestInterimEndsInTheKernel(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	has := func(want Interim) bool {
		t.Helper()
		_, got, err := r.Kept()
		if err != nil {
			t.Fatal(err)
		}
		return maps.EqualFunc(got, want, Translation.same)
	}
	// It is not the agent that waits here, which would be later.
	soon := toPodUntil(80, time.Now().Add(-interimMargin+time.Second))
	if err := reset(r, announcedAt(vip[:]...), soon); err != nil {
		t.Fatal(err)
	}
	if !has(soon) {
		t.Error("the kernel has nothing")
	}
	nettest.Await(t, "the end in the kernel", func() bool { return has(Interim{}) })
	// Deleting what has ended is no error.
	if err := set(r, nil, nil); err != nil {
		t.Error(err)
	}
	if err := set(r, nil, soon); err != nil {
		t.Fatal(err)
	}
	long := toPodUntil(80, time.Now().Add(time.Minute))
	if err := set(r, nil, long); err != nil || !has(long) {
		t.Errorf("a longer one is not in the kernel: %v", err)
	}
	if repairs, err := r.Sync(t.Context()); err != nil || len(repairs) > 0 {
		t.Errorf("repairs %v, %v", repairs, err)
	}
	if out := ns.Exec("nft", "list", "map", "inet", "flock-service", "interim4"); strings.Count(out, "expires") != 2 {
		t.Errorf("elements without an end:\n%s", out)
	}
}

// What keeps one address from being announced keeps no translation from ending, and no other
// address from being withdrawn.
func TestInterimEndsBesideARefusedRoute(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	ns.IP("route", "add", "unreachable", vip[1].String(), "metric", "640")
	if err := reset(r, announcedAt(vip[:]...), toPod(80)); err == nil {
		t.Fatal("another program's route is no error")
	}
	for _, again := range []func() error{
		func() error { return set(r, map[netip.Prefix]Entry{hostPrefix(vip[0]): {Local: true}}, nil) },
		func() error {
			return errors.Join(set(r, announcedAt(vip[0]), toPod(80)), set(r, map[netip.Prefix]Entry{hostPrefix(vip[0]): {Local: true}}, nil))
		},
	} {
		if err := again(); err == nil {
			t.Error("another program's route is no error")
		}
		if entries, interim, err := r.Kept(); err != nil || len(interim) > 0 || entries[hostPrefix(vip[0])].Announced {
			t.Errorf("the kernel has %v and translates %v, %v", entries, interim, err)
		}
	}
}

// An address whose connections the kernel does not translate is not announced. All others are
// announced and withdrawn.
func TestInterimThatFailsStopsNothingElse(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	other := netip.MustParseAddr("203.0.113.99")
	if err := reset(r, announcedAt(vip[0]), nil); err != nil {
		t.Fatal(err)
	}
	r.guard.seen.noNAT = true // from now on
	changes := announcedAt(vip[1], other)
	changes[hostPrefix(vip[0])] = Entry{}
	interim := toPod(80)
	maps.DeleteFunc(interim, func(from proxy.Target, _ Translation) bool { return from.Addr != vip[1] })
	if err := set(r, changes, interim); !errors.Is(err, errNoNAT) {
		t.Errorf("error %v", err)
	}
	want := announcedAt(other)
	want[hostPrefix(vip[1])] = Entry{Local: true}
	if got := r.Actual(); !maps.Equal(got, want) {
		t.Errorf("the kernel has %v, want %v", got, want)
	}
}

// A connection that cannot be led to another pod is led to none. All others are.
func TestInterimThatCannotMoveEnds(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	if err := reset(r, announcedAt(vip[0]), toPod(80)); err != nil {
		t.Fatal(err)
	}
	want, moved := Interim{}, Interim{}
	for from, is := range toPod(80) {
		is.To = netip.AddrPortFrom(there[0], 8080) // which the map of IPv4 refuses
		want[from] = is
		if from.Addr == vip[0] {
			moved[from] = is
		}
	}
	if err := set(r, nil, want); err == nil {
		t.Error("an element with an address of the other family is no error")
	}
	if _, got, err := r.Kept(); err != nil || !maps.EqualFunc(got, moved, Translation.same) {
		t.Errorf("the kernel translates %v, %v; want %v", got, err, moved)
	}
}

// What the kernel refuses of some connections keeps no other from being translated and
// announced, and costs few transactions.
func TestInterimRefusedForSome(t *testing.T) {
	t.Parallel()
	const all = 1000
	for bad, most := range map[int]int{1: 30, 3: 70, all: 80} {
		for _, first := range []bool{false, true} { // the guard is made with them
			t.Run(fmt.Sprint(bad, first), func(t *testing.T) {
				t.Parallel()
				r := openRoutes(t, nettest.New(t), true)
				commits := 0
				r.guard.onCommit = func() { commits++ }
				other := netip.MustParseAddr("203.0.113.99")
				if err := reset(r, announcedAt(other), nil); err != nil {
					t.Fatal(err)
				}
				interim, good, entries := Interim{}, Interim{}, announcedAt(other)
				addr := netip.MustParseAddr("198.51.100.0")
				for i := range all {
					addr = addr.Next()
					from := proxy.Target{Addr: addr, Protocol: 6, Port: 80}
					to := Translation{netip.AddrPortFrom(here[1], podPort), time.Now().Add(time.Minute)}
					if i < bad {
						to.To = netip.AddrPortFrom(here[0], podPort) // of the other family
					} else {
						good[from] = to
					}
					interim[from] = to
					maps.Copy(entries, announcedAt(addr))
				}
				commits = 0
				what := set
				if first {
					if err := reset(r, nil, nil); err != nil {
						t.Fatal(err)
					}
					what = reset
				}
				if err := what(r, entries, interim); err == nil {
					t.Error("an element with an address of the other family is no error")
				}
				if commits > most {
					t.Errorf("%d transactions, want %d at most", commits, most)
				}
				_, got, err := r.Kept()
				if err != nil || !maps.EqualFunc(got, good, Translation.same) {
					t.Errorf("%d of %d are translated, %v", len(got), len(good), err)
				}
				for prefix, is := range r.Actual() {
					_, lacks := interim[proxy.Target{Addr: prefix.Addr(), Protocol: 6, Port: 80}]
					_, has := good[proxy.Target{Addr: prefix.Addr(), Protocol: 6, Port: 80}]
					if want := !lacks || has; is.Announced != want || !is.Local {
						t.Errorf("%v is %v", prefix, is)
					}
				}
			})
		}
	}
}

// A transaction that the kernel refuses leaves no belief in what the kernel does not have, though
// its tables were looked at often enough: what is wanted next is there after one Complete, and
// what has ended meanwhile counts as nobody's change.
func TestInterimAfterARefusal(t *testing.T) {
	t.Parallel()
	const bad, ends, moves, stays = 1, 2, 4, 8
	for _, c := range []struct {
		what  string
		kinds int
		many  int // connections of each kind
	}{
		{"one is refused", bad | stays, 1},
		{"one has ended, and moves", ends | stays, 1},
		{"one has ended, one is refused", bad | ends | stays, 1},
		{"one moves, one has ended, one is refused", bad | ends | moves | stays, 1},
		{"more are refused than are tried", bad | ends | moves | stays, 2 * mostRefusals},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			ns := nettest.New(t)
			r := openRoutes(t, ns, true)
			later := time.Now().Add(time.Minute)
			had, refused, right := Interim{}, Interim{}, Interim{}
			addr := netip.MustParseAddr("198.51.100.0")
			next := func(kind int, f func(from proxy.Target)) {
				for range c.many {
					if addr = addr.Next(); c.kinds&kind != 0 {
						f(proxy.Target{Addr: addr, Protocol: 6, Port: 80})
					}
				}
			}
			at := func(a netip.Addr, until time.Time) Translation {
				return Translation{netip.AddrPortFrom(a, podPort), until}
			}
			next(ends, func(from proxy.Target) {
				had[from] = at(here[1], time.Now().Add(time.Second-interimMargin)) // in the kernel: in a second
				refused[from], right[from] = at(there[1], later), at(there[1], later)
			})
			next(bad, func(from proxy.Target) {
				had[from], refused[from], right[from] = at(here[1], later), at(here[0], later), at(there[1], later)
			})
			next(moves, func(from proxy.Target) {
				had[from], refused[from], right[from] = at(here[1], later), at(there[1], later), at(there[1], later)
			})
			next(stays, func(from proxy.Target) {
				had[from], refused[from], right[from] = at(here[1], later), at(here[1], later), at(here[1], later)
			})
			kept := func() Interim {
				_, got, err := r.Kept()
				if err != nil {
					t.Fatal(err)
				}
				return got
			}
			if err := reset(r, announcedAt(vip[0]), had); err != nil {
				t.Fatal(err)
			}
			for range enoughLooks {
				if _, err := r.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if r.guard.seen.complete < enoughLooks {
				t.Fatalf("seen complete %d times", r.guard.seen.complete)
			}
			staying := maps.Clone(had)
			maps.DeleteFunc(staying, func(_ proxy.Target, t Translation) bool { return t.Until.Before(time.Now()) })
			nettest.Await(t, "the end in the kernel", func() bool { return maps.EqualFunc(kept(), staying, Translation.same) })

			if err := set(r, nil, refused); (err != nil) != (c.kinds&bad != 0) {
				t.Errorf("what the kernel refuses: %v", err)
			}
			for from, is := range kept() {
				if !is.same(refused[from]) {
					t.Errorf("%v leads to %v, want %v or nothing", from, is, refused[from])
				}
			}
			if err := set(r, nil, right); err != nil {
				t.Errorf("what it does not refuse: %v", err)
			}
			if got := kept(); !maps.EqualFunc(got, right, Translation.same) {
				t.Errorf("the kernel translates %v, want %v", got, right)
			}
			if repairs, err := r.Sync(t.Context()); err != nil || len(repairs) > 0 {
				t.Errorf("repairs %v, %v", repairs, err)
			}
		})
	}
}

// An element of another program's in the place of one of flock's gives way, as what it has put
// there later does.
func TestInterimInTheWay(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	if err := reset(r, announcedAt(vip[:]...), nil); err != nil {
		t.Fatal(err)
	}
	ns.Exec("nft", "add", "element", "inet", "flock-service", "interim4", "{ 203.0.113.7 . tcp . 80 : 10.244.1.99 . 1 }")
	if err := set(r, nil, toPod(80)); err != nil {
		t.Error(err)
	}
	if _, got, err := r.Kept(); err != nil || !maps.EqualFunc(got, toPod(80), Translation.same) {
		t.Errorf("the kernel translates %v, %v", got, err)
	}
}

// So many connections come at once after a node's start.
func TestInterimOfManyServices(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	want := Interim{}
	addr := netip.MustParseAddr("2001:db8:5::1:0")
	for range 5000 {
		addr = addr.Next()
		want[proxy.Target{Addr: addr, Protocol: 6, Port: 80}] = Translation{netip.AddrPortFrom(here[0], 8080), time.Now().Add(time.Minute)}
	}
	if err := reset(r, announcedAt(vip[0]), want); err != nil {
		t.Fatal(err)
	}
	if err := set(r, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := set(r, nil, want); err != nil {
		t.Fatal(err)
	}
	if _, got, err := r.Kept(); err != nil || !maps.EqualFunc(got, want, Translation.same) {
		t.Errorf("%d of %d are there, %v", len(got), len(want), err)
	}
}

// kill -9 between a node's first translation and its route leaves elements without routes.
func TestInterimWithoutAddress(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	first := openRoutes(t, ns, true)
	if err := reset(first, announcedAt(vip[0]), toPod(80)); err != nil {
		t.Fatal(err)
	}
	ns.IP("link", "del", "flock-service")
	r := openRoutes(t, ns, true)
	entries, interim, err := r.Kept()
	if err != nil || len(entries) > 0 || len(interim) == 0 {
		t.Fatalf("kept %v, %v, %v", entries, interim, err)
	}
	if err := reset(r, entries, interim); err != nil {
		t.Error(err)
	}
	if err := set(r, nil, nil); err != nil {
		t.Error(err)
	}
	if err := set(r, announcedAt(vip[0]), toPod(80)); err != nil {
		t.Error(err)
	}
}

// A client that sends from one port is led to the new pod, though conntrack leads it to one
// that is gone. One whose pod is there stays with it.
func TestInterimOfUDPFlows(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	draining := addrs{netip.MustParseAddr("2001:db8:100:1::b"), netip.MustParseAddr("10.244.1.11")}
	gone := addrs{netip.MustParseAddr("2001:db8:100:1::c"), netip.MustParseAddr("10.244.1.12")}
	f.addPod("draining", draining)
	f.addPod("gone", gone)
	f.program(nftables, proxytest.Port{Name: "shop/web:dns", Protocol: "udp", Port: servicePort, Local: true})
	c, _ := run(t, f.node, nil)
	svc := plain(vip[0], vip[1])
	svc.Ports = []Port{{Name: "dns", Protocol: 17, Number: servicePort, TargetNumber: podPort}}
	c.Send(NodeChanged{Node{Known: true}})
	c.Send(Services{All: []*Service{svc}})
	c.Send(PodsSynced{})
	ready := func(name string, is pod.Readiness, own addrs) {
		t.Helper()
		c.Send(report(name, is, appWeb, own[0], own[1]))
		want := LocalEndpointNotReady
		if is == pod.Ready {
			want = Serving
		}
		nettest.Await(t, "pod "+name, func() bool {
			s, _ := c.Status(t.Context())
			return len(s.Paths) == 2 && !slices.ContainsFunc(s.Paths, func(p Path) bool { return p.Reason != want || p.Announced != (is == pod.Ready) })
		})
	}
	clients := func(name string) (both [2]func() string) {
		t.Helper()
		for i, a := range vip {
			both[i] = flow(t, f.client, a)
			nettest.Eventually(t, func() error { return answer(both[i], name) })
		}
		return both
	}
	ready("draining", pod.Ready, draining)
	stay := clients("draining")
	ready("draining", pod.NotReady, draining)
	ready("gone", pod.Ready, gone)
	move := clients("gone")
	c.Send(PodGone{"gone"})
	ready("a", pod.Ready, here)
	for i := range vip {
		nettest.Eventually(t, func() error { return answer(move[i], "here") })
		// The kernel has gone through the flows.
		if err := answer(stay[i], "draining"); err != nil {
			t.Error(err)
		}
	}
}

// answer fails if a client is answered by another than a pod.
func answer(client func() string, by string) error {
	if got := client(); !strings.HasPrefix(got, by+" ") {
		return fmt.Errorf("answer %q, want it from %s", got, by)
	}
	return nil
}

// flow asks again and again from one port.
func flow(t *testing.T, ns *nettest.NS, addr netip.Addr) func() string {
	t.Helper()
	var c net.Conn
	ns.Run(func() {
		var err error
		if c, err = net.Dial("udp", netip.AddrPortFrom(addr, servicePort).String()); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	return func() string {
		_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		b := make([]byte, 100)
		_, _ = c.Write([]byte("?"))
		n, err := c.Read(b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
}

// An nftables that cannot be asked, or a link that cannot be changed, keeps no address from being withdrawn.
func TestWithdrawalWithoutNFTables(t *testing.T) {
	t.Parallel()
	for what, withdraw := range map[string]func(*Routes) error{
		"one of two": func(r *Routes) error { return set(r, map[netip.Prefix]Entry{hostPrefix(vip[0]): {Local: true}}, nil) },
		"after a look": func(r *Routes) error {
			if _, err := r.Sync(t.Context()); err == nil {
				t.Error("a look without a socket is no error")
			}
			return set(r, map[netip.Prefix]Entry{hostPrefix(vip[0]): {}}, nil)
		},
		"the link cannot be changed": func(r *Routes) error {
			r.mtu = -1
			defer func() { r.mtu = 0 }()
			if _, err := r.Sync(t.Context()); err == nil {
				t.Error("an MTU that the kernel refuses is no error")
			}
			return set(r, map[netip.Prefix]Entry{hostPrefix(vip[0]): {}}, nil)
		},
		"the last": func(r *Routes) error {
			return set(r, map[netip.Prefix]Entry{hostPrefix(vip[0]): {}, hostPrefix(vip[1]): {}}, nil)
		},
		"a restart": func(r *Routes) error { return reset(r, announcedAt(vip[1]), nil) },
	} {
		ns := nettest.New(t)
		r := openRoutes(t, ns, true)
		if err := reset(r, announcedAt(vip[:]...), nil); err != nil {
			t.Fatal(err)
		}
		if what != "the link cannot be changed" {
			r.guard.Close()
		}
		_ = withdraw(r)
		ns.Run(func() {
			var err error
			if r.guard, err = openGuard(); err != nil {
				t.Fatal(err)
			}
		})
		if entries, _, err := r.Kept(); err != nil || entries[hostPrefix(vip[0])].Announced {
			t.Errorf("%s: the kernel has %v, %v", what, entries, err)
		}
		if _, err := r.Sync(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
