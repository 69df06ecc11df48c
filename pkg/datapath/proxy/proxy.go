// Package proxy reads what the node's own forwarding makes of connections to a Service: the
// rules that kube-proxy has put into the kernel, in its modes nftables and iptables (with
// either of the kernel's interfaces for iptables). It decides nothing and changes nothing.
//
// It asks the kernel, and not kube-proxy or the API server, because only the kernel's rules
// say that a packet that comes now is translated. In mode nftables a look at one port costs
// the same in a cluster of any size. The kernel notifies of each change of nftables, so that
// nothing is polled; only of iptables-legacy's it does not.
package proxy

import (
	"cmp"
	"net/netip"
	"slices"
)

// Key is a port of a Service at one of its addresses. Its rule is that Service's only: one
// that is left of an earlier Service at the address is none.
type Key struct {
	Target
	Owner
}

// Target is where packets go.
type Target struct {
	Addr     netip.Addr
	Protocol byte // IANA's number
	Port     uint16
}

// Owner is a port of a Service, by its names.
type Owner struct {
	Namespace, Name string
	PortName        string // may be empty
}

// Mode is how kube-proxy writes its rules.
type Mode string

// The modes.
const (
	None     Mode = "" // there are no rules of kube-proxy
	NFTables Mode = "nftables"
	IPTables Mode = "iptables"
	Legacy   Mode = "iptables-legacy"
)

// Rule is what the node makes of new connections to a Key. The zero Rule is nothing: they
// are not translated.
type Rule struct {
	// Translated: there is a rule, because the Service has endpoints that serve, on any
	// node.
	Translated bool
	// Here are the endpoints on this node to which connections from outside are
	// translated, if the traffic policy for them is Local. They are sorted.
	Here []netip.AddrPort
	// Anywhere: they are translated to endpoints of all nodes, as the traffic policy is Cluster. It
	// is known if Here was asked for.
	Anywhere bool
}

// IsHere says whether connections from outside may go to an address of the node's own.
func (r Rule) IsHere(addr netip.Addr) bool {
	return slices.ContainsFunc(r.Here, func(e netip.AddrPort) bool { return e.Addr() == addr })
}

func (r *Rule) add(here ...netip.AddrPort) {
	r.Here = append(r.Here, here...)
	slices.SortFunc(r.Here, netip.AddrPort.Compare)
	r.Here = slices.Compact(r.Here)
}

// Look is what the kernel had at one moment.
type Look struct {
	// Mode is the one of which there are rules. Of several, which happens while the mode
	// is changed, it is the first.
	Mode Mode
	// At has the keys that were asked for and that are translated.
	At map[Key]Rule

	torn bool // a chain that a rule leads to has none: it was replaced meanwhile, or is about to be
}

func (l *Look) found(m Mode) {
	if rank := func(m Mode) int { return slices.Index([]Mode{NFTables, IPTables, Legacy, None}, m) }; cmp.Less(rank(m), rank(l.Mode)) {
		l.Mode = m
	}
}

// Question is a Key, and whether the endpoints Here are asked for too.
type Question struct {
	Key
	Here bool
}
