package bird

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// besideRouter is a node with an Applier, on one link with a router.
func besideRouter(t *testing.T) (n *node, tor *routingtest.NS) {
	n, tor = newNode(t), routingtest.NewNS(t, "tor")
	routingtest.Connect(n.NS, "eth0", tor, "eth0")
	n.IP("addr add 2001:db8:0:1::11/64 dev eth0 nodad")
	tor.IP("addr add 2001:db8:0:1::1/64 dev eth0 nodad")
	return n, tor
}

// intentWith is an Intent from the part of a NodeConfig below bgp, with what the
// interfaces of the node have.
func (n *node) intentWith(bgp string) routing.Intent {
	n.t.Helper()
	in := intentOf(n.t, []byte(`
spec:
  podCIDRs: {ipv6: ["2001:db8:100:1::/64"]}
  bgp:
    localAS: 64601
    routerID: 192.0.2.11
`+bgp))
	n.Inside(func() error {
		addrs, err := net.InterfaceAddrs()
		in.OnLink, in.Held = routing.OnLink(addrs), netaddr.Held(addrs)
		return err
	})
	return in
}

func only(s State) (session routing.Session) {
	if len(s.Sessions) == 1 {
		session = s.Sessions[0]
	}
	return session
}

// TestPortTaken: a session that could not start because another program had the
// port says so, and comes up once the port is free, without a new configuration.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	n, tor := besideRouter(t)
	if _, err := routingtest.StartBIRDRouter(tor, external); err != nil {
		t.Fatal(err)
	}
	var other net.Listener
	n.Inside(func() (err error) { other, err = net.Listen("tcp", "[::]:179"); return err })
	defer other.Close()
	in := n.intentWith(`    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512}]`)
	n.Set(in)
	n.await("the file", func(s State) bool { _, err := os.Stat(n.conf()); return err == nil })
	routingtest.StartBIRD(n.NS, n.conf())
	n.await("the reason", func(s State) bool {
		return strings.Contains(only(s).LastError, "another program on the node listens on TCP port 179")
	})
	other.Close()
	start := time.Now()
	s := n.await("the session", func(s State) bool { return only(s).Up })
	t.Logf("up %s after the port was free", time.Since(start).Round(10*time.Millisecond))
	if s.Applies != 0 {
		t.Errorf("BIRD was configured %d times for it", s.Applies)
	}
}

// TestListenPort: beside another BGP speaker on port 179 the node listens on its own.
func TestListenPort(t *testing.T) {
	t.Parallel()
	n, tor := besideRouter(t)
	n.Inside(func() error {
		other, err := net.Listen("tcp", "[::]:179")
		if err == nil {
			t.Cleanup(func() { other.Close() })
		}
		return err
	})
	config := external
	config.NeighborPort = 1790 // both ends open the session
	router, err := routingtest.StartBIRDRouter(tor, config)
	if err != nil {
		t.Fatal(err)
	}
	for _, passive := range []string{"false", "true"} {
		n.Set(n.intentWith(`    listenPort: 1790` + "\n" + `    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512, passive: ` + passive + `}]`))
		if passive == "false" {
			n.await("the file", func(s State) bool { _, err := os.Stat(n.conf()); return err == nil })
			routingtest.StartBIRD(n.NS, n.conf())
		}
		n.await("the session", func(s State) bool { return s.Loaded && only(s).Up })
		routingtest.Established(t, router)
	}
}

// TestRenumbered: a session comes from an address that the node has, also after the
// one that the Node object names has gone.
func TestRenumbered(t *testing.T) {
	t.Parallel()
	n, tor := besideRouter(t)
	tor2 := external
	tor2.Neighbor = netip.MustParseAddr("2001:db8:0:1::22")
	const peer = `    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512%s}]`
	in := n.intentWith(fmt.Sprintf(peer, ""))
	if got := in.Source(in.BGP.Peers[0]); got != nodeAddr {
		t.Fatalf("the session is from %v", got)
	}
	n.Set(in)
	n.await("the file", func(s State) bool { _, err := os.Stat(n.conf()); return err == nil })
	routingtest.StartBIRD(n.NS, n.conf())
	if _, err := routingtest.StartBIRDRouter(tor, tor2); err != nil {
		t.Fatal(err)
	}
	n.IP("addr add 2001:db8:0:1::22/64 dev eth0 nodad")
	n.IP("addr del 2001:db8:0:1::11/64 dev eth0")
	n.Set(n.intentWith(fmt.Sprintf(peer, "")))
	n.await("the session from the new address", func(s State) bool { return only(s).Up })

	n.Set(n.intentWith(fmt.Sprintf(peer, `, sourceAddress: "2001:db8:0:1::11"`)))
	n.await("the reason", func(s State) bool {
		return only(s).LastError == "sourceAddress 2001:db8:0:1::11 is on no interface of the node: change it, or leave it out for an address of the link"
	})
}

// TestOffLink: a router outside the link's subnet is down until multihop is set, and
// says so.
func TestOffLink(t *testing.T) {
	t.Parallel()
	n, tor := besideRouter(t)
	tor.IP("addr add 2001:db8:0:9::1/128 dev lo")
	n.IP("-6 route add default via 2001:db8:0:1::1")
	router := external
	router.Multihop, router.Local = 2, netip.MustParseAddr("2001:db8:0:9::1")
	if _, err := routingtest.StartBIRDRouter(tor, router); err != nil {
		t.Fatal(err)
	}
	n.Set(n.intentWith(`    peers: [{name: tor, address: "2001:db8:0:9::1", remoteAS: 64512}]`))
	n.await("the file", func(s State) bool { _, err := os.Stat(n.conf()); return err == nil })
	routingtest.StartBIRD(n.NS, n.conf())
	n.await("the reason", func(s State) bool {
		return strings.HasPrefix(only(s).LastError, "address 2001:db8:0:9::1 is on no subnet of the node's links: set multihop")
	})
	n.Set(n.intentWith(`    peers: [{name: tor, address: "2001:db8:0:9::1", remoteAS: 64512, multihop: 2}]`))
	n.await("the session", func(s State) bool { return only(s).Up })
}
