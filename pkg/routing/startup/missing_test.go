package startup

import (
	"net/netip"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

// What a peer is, and what the daemon says of it.
type peer struct {
	name                   string
	only6, only4, disabled bool
}

func bgp(name string, families ...routing.SessionFamily) routing.Session {
	return routing.Session{Protocol: "bgp", Name: name, Up: true, Families: families}
}

func downBGP(name, lastError string) routing.Session {
	return routing.Session{Protocol: "bgp", Name: name, LastError: lastError, Families: []routing.SessionFamily{{Family: "ipv6"}, {Family: "ipv4"}}}
}

func ospf(name string, up bool, family string) routing.Session {
	return routing.Session{Protocol: "ospf", Name: name, Up: up, Families: []routing.SessionFamily{{Family: family, Up: true, Sent: 1}}}
}

var (
	sent6   = routing.SessionFamily{Family: "ipv6", Up: true, Sent: 1}
	sent4   = routing.SessionFamily{Family: "ipv4", Up: true, Sent: 1}
	silent6 = routing.SessionFamily{Family: "ipv6", Up: true}
	silent4 = routing.SessionFamily{Family: "ipv4", Up: true}
	without = routing.SessionFamily{Family: "ipv4"} // the router does not speak it
)

func TestMissing(t *testing.T) {
	type sessions = []routing.Session
	const nothing = ""
	for _, c := range []struct {
		name     string
		setting  v1alpha1.StartupSessions // "": each of any and all
		cidrs    string
		peers    []peer
		links    []string // of OSPF, for both families
		sessions sessions
		want     string // of the message; "" for nothing
	}{
		{"no routers", "", "64", nil, nil, nil, nothing},
		{"no router is waited for", "none", "64", []peer{{name: "a"}}, nil, nil, nothing},
		{"no BIRD yet", "", "64", []peer{{name: "a"}}, nil, nil, "IPv6: BGP peer a is down; IPv4: BGP peer a is down"},
		{"a session is down", "", "6", []peer{{name: "a"}}, nil, sessions{downBGP("a", "Socket: Connection refused")}, "IPv6: BGP peer a is down (Socket: Connection refused) (NodeConfig spec.startup.sessions: "},
		{"the session is up", "", "64", []peer{{name: "a"}}, nil, sessions{bgp("a", sent6, sent4)}, nothing},
		{"up, and announcing nothing: BIRD waits for another peer", "", "64", []peer{{name: "a"}}, nil, sessions{bgp("a", silent6, silent4)}, "IPv6: BGP peer a is up, but nothing"},
		{"half of it announced", "", "64", []peer{{name: "a"}}, nil, sessions{bgp("a", sent6, silent4)}, "yet: IPv4: BGP peer a is up, but nothing"},
		{"a router without IPv4 is not waited for", "", "64", []peer{{name: "a"}}, nil, sessions{bgp("a", sent6, without)}, nothing},
		{"but the one beside it that may speak it", "", "64", []peer{{name: "a"}, {name: "b"}}, nil, sessions{bgp("a", sent6, without), downBGP("b", "")}, "IPv4: BGP peer b is down"},
		{"a session for each family", "", "64", []peer{{name: "a", only6: true}, {name: "b", only4: true}}, nil, sessions{bgp("a", sent6), downBGP("b", "")}, "yet: IPv4: BGP peer b is down"},
		{"a family that the node has no CIDR of", "", "6", []peer{{name: "a"}, {name: "b", only4: true}}, nil, sessions{bgp("a", sent6, silent4), downBGP("b", "")}, nothing},
		{"a family that is announced to no router", "", "64", []peer{{name: "a", only6: true}}, nil, sessions{bgp("a", sent6)}, nothing},
		{"one of two", "any", "64", []peer{{name: "a"}, {name: "b"}}, nil, sessions{downBGP("a", ""), bgp("b", sent6, sent4)}, nothing},
		{"one of two is not all", "all", "64", []peer{{name: "a"}, {name: "b"}}, nil, sessions{downBGP("a", "x"), bgp("b", sent6, sent4)}, "not all routers have the routes to this node's pods yet: IPv6: BGP peer a is down (x); IPv4"},
		{"one of two is silent", "all", "6", []peer{{name: "a"}, {name: "b"}}, nil, sessions{bgp("a", silent6), bgp("b", sent6)}, "BGP peer a is up, but nothing has been announced to it ("},
		{"a peer that is disabled", "", "64", []peer{{name: "a", disabled: true}, {name: "b"}}, nil, sessions{downBGP("a", ""), bgp("b", sent6, sent4)}, nothing},
		{"only one that is disabled", "", "64", []peer{{name: "a", disabled: true}}, nil, nil, nothing},
		{"a session that the configuration does not name", "", "6", []peer{{name: "a"}}, nil, sessions{bgp("ab", sent6), ospf("a 192.0.2.1", true, "ipv6")}, "BGP peer a is down"},
		{"OSPF without a neighbor", "", "6", nil, []string{"eth0"}, sessions{{Protocol: "ospf", Name: "ospf6", State: "no neighbor", Families: []routing.SessionFamily{sent6}}}, "OSPF on eth0 is down"},
		{"OSPF with neighbors that are no router's", "", "6", nil, []string{"eth0"}, sessions{ospf("eth0 192.0.2.3", false, "ipv6")}, "OSPF on eth0 is down"},
		{"OSPF with one that is", "", "6", nil, []string{"eth0"}, sessions{ospf("eth0 192.0.2.3", false, "ipv6"), ospf("eth0 192.0.2.1", true, "ipv6")}, nothing},
		{"OSPF of one family", "", "64", nil, []string{"eth0"}, sessions{ospf("eth0 192.0.2.1", true, "ipv6")}, "yet: IPv4: OSPF on eth0 is down"},
		{"one of two links", "any", "6", nil, []string{"eth0", "eth1"}, sessions{ospf("eth1 192.0.2.1", true, "ipv6")}, nothing},
		{"not all links", "all", "6", nil, []string{"eth0", "eth1"}, sessions{ospf("eth1 192.0.2.1", true, "ipv6")}, "OSPF on eth0 is down"},
		{"OSPF beside BGP", "any", "6", []peer{{name: "a"}}, []string{"eth0"}, sessions{ospf("eth0 192.0.2.1", true, "ipv6")}, nothing},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := config.Node{}
			for _, f := range c.cidrs {
				if f == '6' {
					n.IPv6 = []netip.Prefix{netip.MustParsePrefix("2001:db8::/64")}
				} else {
					n.IPv4 = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
				}
			}
			if c.peers != nil {
				n.BGP = &config.BGP{}
			}
			for _, p := range c.peers {
				n.BGP.Peers = append(n.BGP.Peers, config.BGPPeer{Name: p.name, IPv6: !p.only4, IPv4: !p.only6, Disabled: p.disabled})
			}
			if c.links != nil {
				n.OSPF = &config.OSPF{IPv6: true, IPv4: true}
			}
			for _, l := range c.links {
				n.OSPF.Interfaces = append(n.OSPF.Interfaces, config.OSPFInterface{Name: l})
			}
			settings := []v1alpha1.StartupSessions{v1alpha1.StartupAny, v1alpha1.StartupAll}
			if c.setting != "" {
				settings = []v1alpha1.StartupSessions{c.setting}
			}
			for _, n.StartupSessions = range settings {
				if got := Missing(n, c.sessions); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
					t.Errorf("%s: %q, want %q", n.StartupSessions, got, c.want)
				}
			}
		})
	}
}
