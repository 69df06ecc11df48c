// Package plan says who is in a lab and which addresses and AS numbers each has.
// It is pure: the same flags make the same plan, and as every lab lives in
// network namespaces of its own, two labs on one machine share it.
//
//	LAN of the top-of-rack router   2001:db8:0:1::/64   192.0.2.0/24
//	  tor, control plane            ::1, ::2            .1, .2
//	  nodeN                         ::(10+N)            .(10+N)
//	link to the outside host        2001:db8:0:2::/64   198.51.100.0/24
//	pods of nodeN                   2001:db8:100:N::/64 10.244.N.0/24
//	  of another plugin             2001:db8:101:N::/64 10.245.N.0/24
//	Services, IPv6 first            2001:db8:0:5::/112  10.96.0.0/16
//	load balancers of the proof     2001:db8:0:6::/64   10.97.0.0/24
//	AS: tor 64512, nodeN 64600+N
package plan

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Names of the members that every lab has, as `lab exec` takes them.
const (
	ControlPlane = "cp"
	Tor          = "tor"
	Outside      = "outside"
)

// MaxNodes keeps node addresses below .100 of the LAN.
const MaxNodes = 64

// TorAS is the router's autonomous system number.
const TorAS = 64512

// Prefixes of the lab, those of documentation (RFC 3849, RFC 5737) where no pod
// or Service has them.
var (
	LAN4     = netip.MustParsePrefix("192.0.2.0/24")
	LAN6     = netip.MustParsePrefix("2001:db8:0:1::/64")
	Outside4 = netip.MustParsePrefix("198.51.100.0/24")
	Outside6 = netip.MustParsePrefix("2001:db8:0:2::/64")
	Service4 = netip.MustParsePrefix("10.96.0.0/16")
	Service6 = netip.MustParsePrefix("2001:db8:0:5::/112")
	// All nodes' pods.
	PodBlock4 = netip.MustParsePrefix("10.244.0.0/16")
	PodBlock6 = netip.MustParsePrefix("2001:db8:100::/48")
	// Those of another plugin's, from which nodes move to flock.
	OtherBlock4 = netip.MustParsePrefix("10.245.0.0/16")
	OtherBlock6 = netip.MustParsePrefix("2001:db8:101::/48")
)

// AllPods contain all pods', those of another plugin's included.
var AllPods = Addresses{netip.MustParsePrefix("2001:db8:100::/47"), netip.MustParsePrefix("10.244.0.0/15")}

// Services are the prefixes of Services' addresses, and LoadBalancers those of the AddressPool
// of the proof.
var (
	Services      = Addresses{Service6, Service4}
	LoadBalancers = Addresses{netip.MustParsePrefix("2001:db8:0:6::/64"), netip.MustParsePrefix("10.97.0.0/24")}
)

// Addresses of one member on one link.
type Addresses struct{ IPv6, IPv4 netip.Prefix }

// All lists them, IPv6 first.
func (a Addresses) All() []netip.Prefix { return []netip.Prefix{a.IPv6, a.IPv4} }

// Families are the address families of a cluster: those of its Nodes, pods,
// Services and routing sessions. The links always have both.
type Families string

// The families that a lab can have. The empty value is Dual.
const (
	Dual     Families = "dual" // IPv6 first
	IPv6Only Families = "ipv6"
	IPv4Only Families = "ipv4"
)

// ParseFamilies reads the value of --families.
func ParseFamilies(s string) (Families, error) {
	switch f := Families(s); f {
	case Dual, IPv6Only, IPv4Only:
		return f, nil
	}
	return "", fmt.Errorf("--families %q: want %q, %q or %q", s, Dual, IPv6Only, IPv4Only)
}

// IPv6 reports whether the cluster has IPv6.
func (f Families) IPv6() bool { return f != IPv4Only }

// IPv4 reports whether the cluster has IPv4.
func (f Families) IPv4() bool { return f != IPv6Only }

// Of are those of the addresses that are of these families, IPv6 first.
func (f Families) Of(a Addresses) []netip.Prefix {
	var of []netip.Prefix
	if f.IPv6() {
		of = append(of, a.IPv6)
	}
	if f.IPv4() {
		of = append(of, a.IPv4)
	}
	return of
}

// Addresses of the members that are not nodes.
var (
	TorLAN          = Addresses{host(LAN6, 1), host(LAN4, 1)}
	TorOutside      = Addresses{host(Outside6, 1), host(Outside4, 1)}
	OutsideHost     = Addresses{host(Outside6, 2), host(Outside4, 2)}
	ControlPlaneLAN = Addresses{host(LAN6, 2), host(LAN4, 2)}
)

// Node is a node of the cluster.
type Node struct {
	Number int // from 1
}

// Nodes are the first n nodes.
func Nodes(n int) []Node {
	nodes := make([]Node, n)
	for i := range nodes {
		nodes[i].Number = i + 1
	}
	return nodes
}

// Name of the node in the cluster and on the command line: node1, node2, …
func (n Node) Name() string { return "node" + strconv.Itoa(n.Number) }

// AS is the node's autonomous system number.
func (n Node) AS() int { return 64600 + n.Number }

// RouterID is what the node is called by routing protocols.
func (n Node) RouterID() netip.Addr { return n.LAN().IPv4.Addr() }

// OSPFCost is the OSPF cost of the node's routes. It differs between nodes, so a route
// shows which node announced it.
func (n Node) OSPFCost() int { return 100 + n.Number }

// Zone is the availability zone that the node is labelled with, one of three.
func (n Node) Zone() string { return "zone" + strconv.Itoa((n.Number-1)%3+1) }

// LAN holds the node's own addresses. The last part reads like the number of the
// IPv4 address: node1 is ::11 and .11.
func (n Node) LAN() Addresses {
	decimal, _ := strconv.ParseUint(strconv.Itoa(10+n.Number), 16, 16)
	return Addresses{host(LAN6, int(decimal)), host(LAN4, 10+n.Number)}
}

// Pods are the prefixes of the node's pods.
func (n Node) Pods() Addresses { return n.pods(PodBlock6, PodBlock4) }

// OtherPods are the prefixes of its pods of another plugin's.
func (n Node) OtherPods() Addresses { return n.pods(OtherBlock6, OtherBlock4) }

func (n Node) pods(block6, block4 netip.Prefix) Addresses {
	six := block6.Addr().As16()
	hextet, _ := strconv.ParseUint(strconv.Itoa(n.Number), 16, 16)
	six[6], six[7] = byte(hextet>>8), byte(hextet)
	four := block4.Addr().As4()
	four[2] = byte(n.Number)
	return Addresses{
		netip.PrefixFrom(netip.AddrFrom16(six), 64),
		netip.PrefixFrom(netip.AddrFrom4(four), 24),
	}
}

// Members of a lab with these nodes, in the order in which they are made.
func Members(nodes []Node) []string {
	names := []string{Tor, Outside, ControlPlane}
	for _, n := range nodes {
		names = append(names, n.Name())
	}
	return names
}

// Hosts is an /etc/hosts with every member's name.
func Hosts(nodes []Node) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	line := func(name string, a Addresses) {
		for _, p := range a.All() {
			fmt.Fprintf(&b, "%s %s\n", p.Addr(), name)
		}
	}
	line(Tor, TorLAN)
	line(ControlPlane, ControlPlaneLAN)
	line(Outside, OutsideHost)
	for _, n := range nodes {
		line(n.Name(), n.LAN())
	}
	return b.String()
}

// First is the first address of a Service prefix: the one of the API server.
func First(p netip.Prefix) netip.Addr { return p.Addr().Next() }

// DNS is the address of the cluster's name server in a Service prefix.
func DNS(p netip.Prefix) netip.Addr { return host(p, 10).Addr() }

// host is the address with that number in the prefix, with the prefix's length.
func host(p netip.Prefix, n int) netip.Prefix {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	b[len(b)-2] |= byte(n >> 8)
	addr, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(addr, p.Bits())
}
