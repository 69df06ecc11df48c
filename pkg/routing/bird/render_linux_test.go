package bird

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/birdc"
	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

var checkFile = CheckFile(routingtest.BIRDProgram)

func TestBIRDAcceptsEveryGolden(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.conf")
	for _, file := range files {
		if err := checkFile(t.Context(), file); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	bad := filepath.Join(t.TempDir(), "bad.conf")
	if err := os.WriteFile(bad, []byte("protocol device { nonsense; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if refusal := new(birdc.ReplyError); !errors.As(checkFile(t.Context(), bad), &refusal) {
		t.Error("a wrong file was accepted")
	}
}

// TestAnnounces plays a node and a router, each with a real BIRD, and looks at
// the kernel routes of the router.
func TestAnnounces(t *testing.T) {
	t.Parallel()
	node, router := pair(t)
	conf := filepath.Join(node.Dir, "bird.conf")
	if err := os.WriteFile(conf, Render(intentOf(t, readFile(t, "testdata/one-peer.yaml"))), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := routingtest.StartBIRD(node, conf, "-R")
	routingtest.StartBIRDWith(router, routerConf)
	established(t, daemon, "peer_tor")
	// Another address of the link must not become the session's after a restart.
	node.IP("addr add 2001:db8:0:1:8000::1/64 dev eth0 nodad")

	node.IP("-6 route add unreachable 2001:db8:100:1::/64 proto 85 metric 512")
	node.IP("route add unreachable 10.244.1.0/24 proto 85 metric 512")
	node.IP("-6 route add 2001:db8:100:1::5/128 dev pod proto 85 metric 1024")
	node.IP("route add 10.244.1.5/32 dev pod proto 85 metric 1024")
	node.IP("-6 route add 2001:db8:bad::/64 dev pod proto static")
	node.IP("-6 route add 2001:db8:a::a/128 dev pod proto 85 metric 512")
	node.IP("route add 10.99.0.1/32 dev pod proto 85 metric 512")
	wantRoutes(t, router, map[string]string{
		"2001:db8:100:1::/64": "2001:db8:0:1::11",
		"10.244.1.0/24":       "2001:db8:0:1::11", // RFC 8950
		"2001:db8:a::a":       "2001:db8:0:1::11",
		"10.99.0.1":           "2001:db8:0:1::11",
	})

	t.Run("what flock deletes is withdrawn at once", func(t *testing.T) {
		start := time.Now()
		node.IP("-6 route del 2001:db8:a::a/128 proto 85 metric 512")
		node.IP("route del 10.99.0.1/32 proto 85 metric 512")
		wantRoutes(t, router, map[string]string{
			"2001:db8:100:1::/64": "2001:db8:0:1::11",
			"10.244.1.0/24":       "2001:db8:0:1::11",
		})
		if took := time.Since(start); took > time.Second {
			t.Errorf("the router had the routes for another %s", took)
		}
	})

	t.Run("a restart of the daemon leaves the node's routes alone", func(t *testing.T) {
		before := fmt.Sprint(node.Routes("proto 85"))
		daemon.Stop()
		if after := fmt.Sprint(node.Routes("proto 85")); after != before {
			t.Errorf("routes before: %s, after the daemon's end: %s", before, after)
		}
		daemon = routingtest.StartBIRD(node, conf, "-R")
		established(t, daemon, "peer_tor")
		if after := fmt.Sprint(node.Routes("proto 85")); after != before {
			t.Errorf("routes before: %s, after the daemon's restart: %s", before, after)
		}
		wantRoutes(t, router, map[string]string{
			"2001:db8:100:1::/64": "2001:db8:0:1::11",
			"10.244.1.0/24":       "2001:db8:0:1::11",
		})
	})
}

// TestGracefulRestart: with the daemon ended by "graceful restart", and with it
// killed, the router keeps the node's routes until it is back.
func TestGracefulRestart(t *testing.T) {
	t.Parallel()
	ends := map[string]func(*routingtest.BIRD) error{
		"killed": func(b *routingtest.BIRD) error { b.Kill(); return nil },
		"ordered": func(b *routingtest.BIRD) error {
			c, err := birdc.Dial(context.Background(), b.Socket)
			if err != nil {
				return err
			}
			defer c.Close()
			defer b.Wait()
			return c.GracefulRestart(context.Background())
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node, router := pair(t)
			conf := filepath.Join(node.Dir, "bird.conf")
			if err := os.WriteFile(conf, Render(intentOf(t, readFile(t, "testdata/one-peer.yaml"))), 0o600); err != nil {
				t.Fatal(err)
			}
			daemon := routingtest.StartBIRD(node, conf, "-R")
			tor := routingtest.StartBIRDRouterWith(router, routerConf)
			node.IP("-6 route add unreachable 2001:db8:100:1::/64 proto 85 metric 512")
			want := map[string]string{"2001:db8:100:1::/64": "2001:db8:0:1::11"}
			wantRoutes(t, router, want)

			monitor := router.Monitor("route")
			if err := end(daemon); err != nil {
				t.Fatal(err)
			}
			cease := name == "ordered" && routingtest.CeaseOnRestart()
			routingtest.Eventually(t, 5*time.Second, func() error {
				if p := tor.Protocol("node"); p.BGP == nil || p.BGP.State == stateUp || p.BGP.RestartingPeer == cease {
					return fmt.Errorf("the router is to see a restart: %t, it sees %+v", !cease, p)
				}
				return nil
			})
			if cease { // the router drops the routes
				wantRoutes(t, router, nil)
			}
			established(t, routingtest.StartBIRD(node, conf, "-R"), "peer_tor")
			wantRoutes(t, router, want)
			if changes := monitor(); changes != "" && !cease {
				t.Errorf("the router's routes changed meanwhile: %s", changes)
			}
		})
	}
}

// pair makes a node and a router on one link, with addresses of both families,
// and a pod's link on the node.
func pair(t *testing.T) (node, router *routingtest.NS) {
	node, router = routingtest.NewNS(t, "node"), routingtest.NewNS(t, "tor")
	for _, ns := range []*routingtest.NS{node, router} {
		// Else a first session starts without link-local addresses, and routes change when a
		// later one has them.
		ns.Sysctl("ipv6/conf/default/accept_dad", "0")
	}
	routingtest.Connect(node, "eth0", router, "eth0")
	pod := routingtest.NewNS(t, "pod")
	routingtest.Connect(node, "pod", pod, "eth0")
	node.IP("addr add 2001:db8:0:1::11/64 dev eth0 nodad")
	node.IP("addr add 192.0.2.11/24 dev eth0")
	router.IP("addr add 2001:db8:0:1::1/64 dev eth0 nodad")
	router.IP("addr add 192.0.2.1/24 dev eth0")
	return node, router
}

// routerConf is passive: when both ends of a restart connect in the same moment, the router takes
// the second connection for another restart (RFC 4724 section 4.2) and drops the routes.
const routerConf = `
log stderr all;
router id 192.0.2.1;
protocol device {}
protocol kernel { ipv6 { export all; }; }
protocol kernel { ipv4 { export all; }; }
protocol bgp node {
	local as 64512; neighbor 2001:db8:0:1::11 as 64601;
	passive; error wait time 1, 1;
	ipv6 { import all; export none; };
	ipv4 { import all; export none; extended next hop; };
}
`

func established(t *testing.T, b *routingtest.BIRD, name string) {
	t.Helper()
	routingtest.Eventually(t, 15*time.Second, func() error {
		if p := b.Protocol(name); p.BGP == nil || p.BGP.State != "Established" {
			return fmt.Errorf("%s: %+v", name, p)
		}
		return nil
	})
}

// wantRoutes waits until BIRD's routes in the kernel of ns are those of want, a
// prefix with its next hop.
func wantRoutes(t *testing.T, ns *routingtest.NS, want map[string]string) {
	t.Helper()
	routingtest.Eventually(t, 15*time.Second, func() error {
		got := map[string]string{}
		for _, r := range ns.Routes("proto bird") {
			got[r.Dst] = r.Gateway + r.Via.Host
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("the kernel has %v, want %v", got, want)
		}
		return nil
	})
}
