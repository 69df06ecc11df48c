package service

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/datapath/proxy/proxytest"
	"flock.fritzlab.net/flock/pkg/pod"
)

// run runs a controller in a namespace until the test ends or stop is called.
func run(t *testing.T, ns *nettest.NS, onTransitions func([]Transition)) (c *Controller, stop func()) {
	t.Helper()
	var routes *Routes
	var reader *proxy.Reader
	ns.Run(func() {
		var err error
		if routes, err = Open(); err != nil {
			t.Fatal(err)
		}
		if reader, err = proxy.Open(); err != nil {
			t.Fatal(err)
		}
	})
	c = NewController(Config{Routes: routes, Proxy: reader, OnTransitions: onTransitions, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		reader.Close()
		routes.Close()
	})
	t.Cleanup(stop)
	return c, stop
}

// From a pod's report and kube-proxy's real rules to a route, and back.
func TestController(t *testing.T) {
	t.Parallel()
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			f := newFabric(t)
			var mu sync.Mutex
			var log []string
			start := func() (*Controller, func()) {
				return run(t, f.node, func(all []Transition) {
					mu.Lock()
					defer mu.Unlock()
					for _, tr := range all {
						log = append(log, fmt.Sprint(tr.Announced, " ", tr.Addr, " ", tr.Reason))
					}
				})
			}
			c, stop := start()
			announced := func(want bool) {
				t.Helper()
				nettest.Eventually(t, func() error {
					for _, family := range []string{"-6", "-4"} {
						if got := f.node.IP(family, "route", "show", "proto", "85", "metric", "640"); (got != "") != want {
							status, _ := c.Status(t.Context())
							return fmt.Errorf("routes of family %s: %q, want %t: %+v", family, got, want, status.Paths)
						}
					}
					return nil
				})
			}
			svc := web("web", Local, vip[0], vip[1])
			reported := report("a", pod.Ready, appWeb, here[0], here[1])
			facts := func(c *Controller) {
				c.Send(NodeChanged{Node{Known: true}})
				c.Send(Services{All: []*Service{svc}})
				c.Send(reported)
				c.Send(PodsSynced{All: []pod.UID{"a"}})
			}
			facts(c)
			nettest.Await(t, "a look", func() bool {
				s, err := c.Status(t.Context())
				return err == nil && len(s.Paths) == 2 && s.Paths[0].Reason == ProxyMissing
			})
			announced(false)
			p := proxytest.Port{Name: "shop/web:http", Protocol: "tcp", Port: servicePort, Local: true, Here: endpoints(here)}
			f.program(m, p)
			announced(true)
			for i, a := range vip {
				if got, want := ask(t, f.client, "tcp", a, servicePort), "here "+outside[i].String(); got != want {
					t.Errorf("%v: %q, want %q", a, got, want)
				}
			}
			c.Send(report("a", pod.NotReady, appWeb, here[0], here[1]))
			announced(false)
			c.Send(reported)
			announced(true)
			// kube-proxy loses its rules.
			empty := p
			empty.Here = nil
			f.program(m, empty)
			announced(false)
			f.program(m, p)
			announced(true)
			// A restart changes nothing.
			mu.Lock()
			log = nil
			mu.Unlock()
			stop()
			watched := f.node.IP("route", "show", "metric", "640")
			c, _ = start()
			if _, err := c.Status(t.Context()); err != nil {
				t.Fatal(err)
			}
			facts(c)
			nettest.Await(t, "all is known", func() bool {
				s, err := c.Status(t.Context())
				return err == nil && len(s.Paths) == 2 && s.Paths[0].Reason == Serving && s.Mode == proxy.Mode(m)
			})
			if got := f.node.IP("route", "show", "metric", "640"); got != watched {
				t.Errorf("after a restart %q, before %q", got, watched)
			}
			mu.Lock()
			if len(log) > 0 {
				t.Errorf("a restart made transitions: %q", log)
			}
			mu.Unlock()
			c.Send(Services{})
			announced(false)
		})
	}
}

// What the kernel refuses is said in the status, and is tried again.
func TestControllerRetries(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	f.node.IP("route", "add", "unreachable", vip[1].String(), "metric", "640")
	c, _ := run(t, f.node, nil)
	f.program(nftables, proxytest.Port{Name: "shop/web:http", Protocol: "tcp", Port: servicePort, Local: true, Here: endpoints(here)})
	c.Send(NodeChanged{Node{Known: true}})
	c.Send(Services{All: []*Service{web("web", Local, vip[0], vip[1])}})
	c.Send(report("a", pod.Ready, appWeb, here[0], here[1]))
	c.Send(PodsSynced{All: []pod.UID{"a"}})
	path := func(a netip.Addr) (p Path) {
		s, _ := c.Status(t.Context())
		for _, p := range s.Paths {
			if p.Addr == a {
				return p
			}
		}
		return p
	}
	nettest.Await(t, "the refusal in the status", func() bool {
		return !path(vip[1]).Announced && strings.Contains(path(vip[1]).Detail, "a route of another program")
	})
	nettest.Await(t, "the other address", func() bool { return path(vip[0]).Announced })
	f.node.IP("route", "del", "unreachable", vip[1].String(), "metric", "640")
	nettest.Await(t, "the address", func() bool { return path(vip[1]).Announced && path(vip[1]).Detail == "" })
}
