package service

import (
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/datapath/proxy/proxytest"
	"flock.fritzlab.net/flock/pkg/pod"
)

// toPod are the connections to the Service's addresses, led to the pod.
func toPod(port uint16) Interim {
	all := Interim{}
	for i, a := range vip {
		for _, protocol := range []byte{6, 17} {
			all[proxy.Target{Addr: a, Protocol: protocol, Port: port}] = netip.AddrPortFrom(here[i], podPort)
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
				if err := f.fib.addInterim(toPod(servicePort)); err != nil {
					t.Fatal(err)
				}
				expect("translated", "tcp", servicePort, reached...)
				expect("translated", "udp", servicePort, reached...)
				expect("another port", "tcp", podPort, refused...)
				// A flow of UDP stays where it was; the next one is refused.
				if err := f.fib.pruneInterim(nil); err != nil {
					t.Fatal(err)
				}
				expect("no more", "udp", servicePort, refused...)
				// kube-proxy has its rule, while flock's is there.
				p.Here = endpoints(here)
				if err := f.fib.addInterim(toPod(servicePort)); err != nil {
					t.Fatal(err)
				}
				f.program(m, p)
				expect("both", "tcp", servicePort, reached...)
				if err := f.fib.pruneInterim(nil); err != nil {
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
	if err := r.Reset(entries, want); err != nil {
		t.Fatal(err)
	}
	has := func(when string, want Interim) {
		t.Helper()
		_, got, err := r.Kept()
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: the kernel translates %v, %v; want %v", when, got, err, want)
		}
	}
	has("at the start", want)
	for what, meddle := range map[string][]string{
		"an element is gone":     {"delete", "element", "inet", "flock-service", "interim4", "{ 203.0.113.7 . tcp . 80 }"},
		"an element is added":    {"add", "element", "inet", "flock-service", "interim6", "{ 2001:db8:5::7 . tcp . 443 : 2001:db8:100:1::a . 1 }"},
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
		has(what, want)
		if repairs, err := r.Sync(t.Context()); err != nil || len(repairs) > 0 {
			t.Errorf("%s, again: repairs %v, %v", what, repairs, err)
		}
	}
	// An element that leads elsewhere, and one that another program has taken before it is
	// deleted.
	want = maps.Clone(want)
	first := proxy.Target{Addr: vip[0], Protocol: 6, Port: 80}
	want[first] = netip.AddrPortFrom(there[0], 8081)
	if err := r.Set(nil, want); err != nil {
		t.Fatal(err)
	}
	has("one leads elsewhere", want)
	ns.Exec("nft", "flush", "map", "inet", "flock-service", "interim4")
	if err := r.Set(nil, nil); err != nil {
		t.Fatal(err)
	}
	has("none", Interim{})
	if err := r.Set(nil, want); err != nil {
		t.Fatal(err)
	}
	if err := r.Reset(nil, nil); err != nil {
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
	f.fib.noNAT = true
	f.announce()
	if err := f.fib.addInterim(toPod(servicePort)); !errors.Is(err, errNoNAT) {
		t.Errorf("error %v, want %v", err, errNoNAT)
	}
	if repairs, err := f.fib.Load(true, 0); err != nil || len(repairs) > 0 {
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
			if got := reason(); got != "Serving flock translates tcp port 80 until kube-proxy does" {
				t.Errorf("reason %q", got)
			}
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
			if out := f.node.Exec("nft", "list", "map", "inet", "flock-service", "interim4"); strings.Contains(out, "elements") {
				t.Errorf("flock still translates:\n%s", out)
			}
			reached("by kube-proxy")
		})
	}
}
