package bird

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// TestRecovery: after a restart of BIRD a withdrawal is not held up for long by a
// router that is away.
func TestRecovery(t *testing.T) {
	t.Parallel()
	n, tor := besideRouter(t)
	n.IP("addr add 2001:db8:0:2::11/64 dev lo") // the link to the router that is away
	n.IP("-6 route add unreachable 2001:db8:100:1::/64 proto 85 metric 512")
	const anycast = "2001:db8:a::a"
	n.IP("-6 route add unreachable " + anycast + "/128 proto 85 metric 512")
	config := external
	config.GracefulRestart = true
	router, err := routingtest.StartBIRDRouter(tor, config)
	if err != nil {
		t.Fatal(err)
	}
	n.Set(n.intentWith(`
    peers:
      - {name: tor, address: "2001:db8:0:1::1", remoteAS: 64512}
      - {name: away, address: "2001:db8:0:1::9", remoteAS: 64513}`))
	n.await("the file", func(s State) bool { return s.Err != nil })
	daemon := routingtest.StartBIRD(n.NS, n.conf(), "-R")
	n.await("the first recovery", func(s State) bool { return len(s.Sessions) == 2 && s.Recovering == "" })
	routingtest.WantRoute(t, router, anycast+"/128", func(routingtest.Path) error { return nil })

	daemon.Kill()
	n.await("bird to be missed", func(s State) bool { return len(s.Sessions) == 0 })
	seen := tor.Monitor("route")
	routingtest.StartBIRD(n.NS, n.conf(), "-R")
	start := time.Now()
	n.await("the session", func(s State) bool { return len(s.Sessions) == 2 && s.Sessions[1].Up })
	if s := n.State(); s.Recovering == "" {
		t.Errorf("%+v: want BIRD to be recovering", s)
	}
	n.IP("-6 route del " + anycast + "/128 proto 85")
	deleted := time.Now()
	routingtest.Eventually(t, 20*time.Second, func() error {
		if _, there := router.Route(anycast + "/128"); there {
			return fmt.Errorf("the router still has the route")
		}
		return nil
	})
	t.Logf("withdrawn %s after its route was deleted, %s after BIRD's start", time.Since(deleted).Round(10*time.Millisecond), time.Since(start).Round(10*time.Millisecond))
	if took := time.Since(start); took > recoveryWait+2*time.Second {
		t.Errorf("withdrawn %s after BIRD's start: want recoveryWait and little more", took)
	}
	n.await("the end of the recovery", func(s State) bool { return s.Recovering == "" })
	if got := seen(); strings.Contains(got, "Deleted 2001:db8:100:1::/64") {
		t.Errorf("the router dropped its other route:\n%s", got)
	}
}
