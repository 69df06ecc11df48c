package bird

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// TestSessionsAreFollowed: the Applier's State has the sessions as they are,
// through their coming and going, a refused configuration and BIRD's end.
func TestSessionsAreFollowed(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	tor := routingtest.NewNS(t, "tor")
	routingtest.Connect(n.NS, "eth0", tor, "eth0")
	n.IP("addr add 2001:db8:0:1::11/64 dev eth0 nodad")
	tor.IP("addr add 2001:db8:0:1::1/64 dev eth0 nodad")
	n.IP("-6 route add unreachable 2001:db8:100:1::/64 proto 85 metric 512")
	in := intentOf(t, []byte(`
spec:
  podCIDRs: {ipv6: ["2001:db8:100:1::/64"], ipv4: [10.244.1.0/24]}
  bgp:
    localAS: 64601
    routerID: 192.0.2.11
    peers: [{name: tor-a, address: "2001:db8:0:1::1", remoteAS: 64512, import: {policy: prefixes, prefixes: [{prefix: "2001:db8:200::/64"}]}}]
  ospf:
    routerID: 192.0.2.11
    families: [ipv6]
    interfaces: [{name: eth0, networkType: point-to-point, helloSeconds: 1, deadSeconds: 4}]
`))
	if err := os.WriteFile(n.conf(), []byte("# of an earlier BIRD\n"), 0o600); err != nil { // it starts from a file with OSPF
		t.Fatal(err)
	}
	n.set(Render(in))
	n.await("bird to be missed", func(s State) bool { return errors.Is(s.Err, birdc.ErrAbsent) })
	daemon := routingtest.StartBIRD(n.NS, n.conf())
	s := n.await("both sessions down", func(s State) bool { return len(s.Sessions) == 2 })
	if a, b := s.Sessions[0], s.Sessions[1]; a.Protocol != "bgp" || a.Name != "tor-a" || a.Up || a.State == "" || b.Protocol != "ospf" || b.Up {
		t.Errorf("%+v", s.Sessions)
	}

	config := external
	config.Announce = prefixes(5)
	router, err := routingtest.StartBIRDRouter(tor, config)
	if err != nil {
		t.Fatal(err)
	}
	bgpUp := func(s State) bool { return len(s.Sessions) > 0 && s.Sessions[0].Up }
	s = n.await("the session up, with its counts", func(s State) bool {
		if !bgpUp(s) {
			return false
		}
		f := s.Sessions[0].Families
		return len(f) == 2 && f[0].Sent == 1 && f[0].Accepted == 1 && f[0].Received == 5 && f[0].Rejected == 4
	})
	if got := s.Sessions[0]; got.State != "Established" || got.AS != 64512 || got.Router != "2001:db8:0:1::1" || time.Since(got.Since).Abs() > time.Minute {
		t.Errorf("%+v", got)
	}

	// A configuration that BIRD refuses does not hide the sessions.
	n.set([]byte(strings.Replace(string(Render(in)), "hold time 9", "hold time 9 }", 1)))
	var refused *RefusedError
	n.await("a refusal", func(s State) bool { return errors.As(s.Err, &refused) && bgpUp(s) })
	n.set(Render(in))
	n.await("the good one", func(s State) bool { return s.Loaded && bgpUp(s) })

	// The router says goodbye: known at once, with its reason.
	start := time.Now()
	router.(interface{ Stop() }).Stop()
	s = n.await("the session down", func(s State) bool { return len(s.Sessions) > 0 && !s.Sessions[0].Up })
	soon := askWhileDown
	if routingtest.BIRD3() { // it is asked that often, and says nothing by itself
		soon += time.Second
	}
	if took := time.Since(start); took > soon {
		t.Errorf("it took %s to see", took)
	}
	if got := s.Sessions[0].LastError; !strings.Contains(got, "Administrative shutdown") && !routingtest.BIRD3() { // by then its next attempt has failed
		t.Errorf("last error %q", got)
	}
	daemon.Kill()
	n.await("no session without bird", func(s State) bool { return errors.Is(s.Err, birdc.ErrAbsent) && len(s.Sessions) == 0 })
}

// TestSessionsOfEveryKind: those of unnumbered peers and of OSPF bear the names of
// the node's configuration.
func TestSessionsOfEveryKind(t *testing.T) {
	t.Parallel()
	node, tor := pair(t)
	router, err := routingtest.StartFRR(tor, routingtest.RouterConfig{LocalAS: routerAS, RemoteAS: nodeAS, Interface: "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	ospf := routingtest.NewNS(t, "ospf")
	routingtest.Connect(node, "eth1", ospf, "eth0")
	routingtest.StartBIRDWith(ospf, fmt.Sprintf(ospfRouter, "0.0.0.0", "", "type ptp;", "v3", "type ptp;"))
	startNode(t, node, Render(intentOf(t, []byte(`
spec:
  podCIDRs: {ipv6: ["2001:db8:100:1::/64"]}
  bgp:
    localAS: 64601
    routerID: 192.0.2.11
    peers: [{name: tor-a, interface: eth0, peerType: external}]
  ospf:
    routerID: 192.0.2.11
    families: [ipv6]
    interfaces: [{name: eth1, networkType: point-to-point, helloSeconds: 1, deadSeconds: 4}]
`))))
	routingtest.Established(t, router)
	routingtest.Eventually(t, 15*time.Second, func() error {
		got, _, err := NewApplier(ApplierConfig{Socket: filepath.Join(node.Dir, "bird.ctl")}).readSessions(t.Context(), routing.Intent{})
		if err != nil {
			return err
		}
		type brief struct {
			protocol, name, state string
			as                    uint32
			linkLocal             bool
		}
		var have []brief
		for _, s := range got {
			have = append(have, brief{s.Protocol, s.Name, s.State, s.AS, strings.HasPrefix(s.Router, "fe80::")})
		}
		want := []brief{{"bgp", "tor-a", "Established", routerAS, true}, {"ospf", "eth1 192.0.2.1", "Full/PtP", 0, true}}
		if fmt.Sprint(have) != fmt.Sprint(want) {
			return fmt.Errorf("have %v, want %v", have, want)
		}
		return nil
	})
}
