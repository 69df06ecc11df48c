package bird

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/departure/stop"
	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// departing is a node and its router, which keeps routes over a graceful restart.
func departing(t *testing.T, start func(*routingtest.NS, routingtest.RouterConfig) (routingtest.Router, error)) (n *node, router routingtest.Router, daemon *routingtest.BIRD) {
	n, tor := besideRouter(t)
	n.IP("-6 route add unreachable 2001:db8:100:1::/64 proto 85 metric 512")
	n.IP("-6 route add unreachable 2001:db8:a::a/128 proto 85 metric 512")
	config := external
	config.GracefulRestart = true
	router, err := start(tor, config)
	if err != nil {
		t.Fatal(err)
	}
	n.Set(n.intentWith(`    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512}]`))
	n.await("the file", func(s State) bool { return s.Err != nil })
	daemon = routingtest.StartBIRD(n.NS, n.conf(), "-R")
	n.await("the session", func(s State) bool { return s.Loaded && only(s).Up && s.Recovering == "" })
	for _, prefix := range []string{summary, anycast} {
		routingtest.WantRoute(t, router, prefix, func(p routingtest.Path) error { return want(p, len(p.Communities) == 0) })
	}
	return n, router, daemon
}

const (
	summary = "2001:db8:100:1::/64"
	anycast = "2001:db8:a::a/128"
)

func wantNoRoute(t *testing.T, r routingtest.Router, prefix string, within time.Duration) (took time.Duration) {
	t.Helper()
	start := time.Now()
	routingtest.Eventually(t, within, func() error {
		if p, there := r.Route(prefix); there {
			return fmt.Errorf("the router still has %s: %v", prefix, p)
		}
		return nil
	})
	return time.Since(start)
}

// TestDeparture: a node that leaves withdraws its anycast addresses, asks for other
// paths to the rest, and then closes its sessions with a Cease: no router keeps its
// routes for the restart time.
func TestDeparture(t *testing.T) {
	t.Parallel()
	for _, router := range routingtest.Makes {
		t.Run(router.Name, func(t *testing.T) {
			t.Parallel()
			n, router, daemon := departing(t, router.Start)
			if err := stop.Write(n.Dir, stop.Decision{Leave: true, Final: true, Reason: "test"}); err != nil {
				t.Fatal(err)
			}
			n.stop() // the agent ends with the pod
			start, ended := time.Now(), stopBIRD(t, n)
			routingtest.Eventually(t, stop.Converge, func() error {
				p, there := router.Route(summary)
				if _, still := router.Route(anycast); still || !there || !slices.Equal(p.Communities, []string{"65535:0"}) {
					return fmt.Errorf("anycast is there: %t; the summary: %t, %v", still, there, p)
				}
				return nil
			})
			t.Logf("anycast withdrawn and the rest to be avoided %s after the stop", time.Since(start).Round(time.Millisecond))
			wantNoRoute(t, router, summary, stop.Converge+2*time.Second)
			took := time.Since(start)
			t.Logf("no route of the node at the router %s after the stop", took.Round(time.Millisecond))
			if err := <-ended; err != nil {
				t.Error(err)
			}
			daemon.Wait()
			if len(n.Routes("proto 85")) != 2 {
				t.Error("the routes of the node's kernel have gone")
			}
		})
	}
}

func stopBIRD(t *testing.T, n *node) <-chan error {
	ended := make(chan error, 1)
	go func() {
		_, err := stop.Run(t.Context(), n.Dir, n.Socket)
		ended <- err
	}()
	return ended
}

// TestStopIsRestart: without a departure the router keeps the routes, whether the agent
// has said so or there is none.
func TestStopIsRestart(t *testing.T) {
	t.Parallel()
	for name, decide := range map[string]func(dir string) error{
		"decided":  func(dir string) error { return stop.Write(dir, stop.Decision{Final: true}) },
		"no agent": func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, router, daemon := departing(t, routingtest.StartBIRDRouter)
			if err := decide(n.Dir); err != nil {
				t.Fatal(err)
			}
			n.stop()
			if d, err := stop.Run(t.Context(), n.Dir, n.Socket); err != nil || d.Leave {
				t.Errorf("%+v, %v", d, err)
			}
			daemon.Wait()
			if routingtest.CeaseOnRestart() {
				wantNoRoute(t, router, summary, 2*time.Second)
			} else {
				for _, prefix := range []string{summary, anycast} {
					if p, there := router.Route(prefix); !there || len(p.Communities) > 0 {
						t.Errorf("%s is there: %t, %v", prefix, there, p)
					}
				}
			}
			routingtest.StartBIRD(n.NS, n.conf(), "-R")
			routingtest.Established(t, router)
		})
	}
}

// TestStopWithoutConfiguration: a node that cannot announce its departure leaves
// nevertheless.
func TestStopWithoutConfiguration(t *testing.T) {
	t.Parallel()
	n, router, daemon := departing(t, routingtest.StartBIRDRouter)
	n.stop()
	if err := os.Remove(n.path(stop.ConfigFile)); err != nil {
		t.Fatal(err)
	}
	if err := stop.Write(n.Dir, stop.Decision{Leave: true, Final: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := stop.Run(t.Context(), n.Dir, n.Socket); err == nil {
		t.Error("no error without the configuration")
	}
	daemon.Wait()
	wantNoRoute(t, router, summary, 2*time.Second)
}

// TestDrain: while the node is drained its sessions stay up without its anycast
// addresses, and afterwards all is as before.
func TestDrain(t *testing.T) {
	t.Parallel()
	n, router, _ := departing(t, routingtest.StartBIRDRouter)
	in := n.intentWith(`    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512}]`)
	in.Departing = true
	n.Set(in)
	took := wantNoRoute(t, router, anycast, 5*time.Second)
	t.Logf("anycast withdrawn after %s", took.Round(time.Millisecond))
	routingtest.WantRoute(t, router, summary, func(p routingtest.Path) error { return want(p, slices.Equal(p.Communities, []string{"65535:0"})) })
	in.Departing = false
	n.Set(in)
	routingtest.WantRoute(t, router, anycast, func(p routingtest.Path) error { return want(p, len(p.Communities) == 0) })
	if s := n.State(); !only(s).Up {
		t.Errorf("%+v", s)
	}
}
