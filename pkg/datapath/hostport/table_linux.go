package hostport

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
	"flock.fritzlab.net/flock/pkg/pod"
)

// A Binding says which ports of the node lead to a pod.
type Binding struct {
	// HostIf is the host end of the pod's link. It names the binding.
	HostIf string
	// Addrs are the pod's own addresses, at most one of each family.
	Addrs []netip.Addr
	Ports []pod.HostPort
}

var table = nft.Table{Family: nft.Inet, Name: kernel.HostPortTable}

// family is what differs between IPv4 and IPv6.
type family struct {
	proto               uint32 // NFPROTO_…
	addr                nft.Field
	source, destination uint32 // offsets in the IP header
	// withIP and anyIP lead from address, protocol and port, or protocol and port, to
	// the pod's address and port. self has each pod's address twice.
	withIP, anyIP, self nft.Set
}

func newFamily(name string, proto uint32, addr nft.Field, source, destination uint32) family {
	pod := []nft.Field{addr, nft.InetPort}
	return family{
		proto, addr, source, destination,
		nft.Set{Table: table, Name: "host-ip-ports" + name, Key: []nft.Field{addr, nft.InetProto, nft.InetPort}, Data: pod},
		nft.Set{Table: table, Name: "host-ports" + name, Key: []nft.Field{nft.InetProto, nft.InetPort}, Data: pod},
		nft.Set{Table: table, Name: "pods" + name, Key: []nft.Field{addr, addr}},
	}
}

var families = []family{
	newFamily("6", unix.NFPROTO_IPV6, nft.IPv6Addr, 8, 24),
	newFamily("4", unix.NFPROTO_IPV4, nft.IPv4Addr, 12, 16),
}

// desired are the elements of the sets, by set, for bindings from the oldest to the
// newest.
func desired(bindings []Binding) map[string][]nft.Element {
	all := map[string]map[string]string{} // set, key, data
	put := func(s nft.Set, key, data string) {
		if all[s.Name] == nil {
			all[s.Name] = map[string]string{}
		}
		all[s.Name][key] = data
	}
	for _, b := range bindings {
		for _, addr := range b.Addrs {
			f := families[0]
			if addr.Is4() {
				f = families[1]
			}
			for _, p := range b.Ports {
				hostIP := p.HostIP.Unmap()
				if hostIP.IsValid() && hostIP.Is4() != addr.Is4() {
					continue
				}
				to := string(addr.AsSlice()) + padded(byte(p.ContainerPort>>8), byte(p.ContainerPort))
				port := padded(pod.Protocols[p.Protocol]) + padded(byte(p.HostPort>>8), byte(p.HostPort))
				if hostIP.IsValid() && !hostIP.IsUnspecified() {
					put(f.withIP, string(hostIP.AsSlice())+port, to)
				} else {
					put(f.anyIP, port, to)
				}
				put(f.self, string(addr.AsSlice())+string(addr.AsSlice()), "")
			}
		}
	}
	sets := map[string][]nft.Element{}
	for name, elements := range all {
		for _, key := range slices.Sorted(maps.Keys(elements)) {
			sets[name] = append(sets[name], nft.Element{Key: key, Data: elements[key]})
		}
	}
	return sets
}

// padded is a field of a concatenated key.
func padded(b ...byte) string { return string(b) + strings.Repeat("\x00", 4-len(b)) }

// ruled is a chain with its rules.
type ruled struct {
	chain nft.Chain
	rules []nft.Rule
}

// chains are those of the table. Chains that others jump to come first.
func chains() []ruled {
	var toPods, fromPods []nft.Rule
	header := func(offset uint32, f nft.Field, word uint32) nft.Expr {
		return nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, uint32(f.Len()), nft.Word(word))
	}
	for _, f := range families {
		only := nft.Rule{nft.Meta(unix.NFT_META_NFPROTO, nft.Reg1), nft.Equal(byte(f.proto))}
		words := uint32(f.addr.Len() / 4)
		key := func(first uint32) []nft.Expr {
			return []nft.Expr{
				nft.Meta(unix.NFT_META_L4PROTO, nft.Word(first)),
				nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, nft.Word(first+1)), // the destination port of all three
			}
		}
		toPods = append(toPods,
			// dnat to ip daddr . meta l4proto . th dport map @host-ip-ports
			only.On(header(f.destination, f.addr, 0)).On(key(words)...).On(nft.Load(f.withIP), nft.DNAT(f.proto)),
			// dnat to meta l4proto . th dport map @host-ports
			only.On(key(0)...).On(nft.Load(f.anyIP), nft.DNAT(f.proto)))
		fromPods = append(fromPods,
			// ip saddr . ip daddr @pods masquerade
			only.On(header(f.source, f.addr, 0), header(f.destination, f.addr, words), nft.In(f.self), nft.Masquerade))
	}
	const local, loopback = 2, 127 // RTN_LOCAL; the first byte of 127.0.0.0/8
	pods := nft.Chain{Table: table, Name: "to-pods", Plain: true}
	toNode := nft.Rule{nft.DestinationType, nft.EqualNative(local), nft.Decide(nft.JumpTo(pods.Name))}
	v4, fromFlock := nft.Rule{nft.Meta(unix.NFT_META_NFPROTO, nft.Reg1), nft.Equal(unix.NFPROTO_IPV4)}, nft.Equal([]byte(kernel.LinkPrefix)...)
	v4Source, v4Destination := families[1].source, families[1].destination
	firstByte := func(offset uint32) nft.Expr {
		return nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, 1, nft.Reg1)
	}
	return []ruled{
		{pods, toPods},
		{nft.Chain{Table: table, Name: "prerouting", Hook: unix.NF_INET_PRE_ROUTING, Priority: -100, NAT: true}, []nft.Rule{toNode}},
		{nft.Chain{Table: table, Name: "output", Hook: unix.NF_INET_LOCAL_OUT, Priority: -100, NAT: true}, []nft.Rule{toNode}},
		{nft.Chain{Table: table, Name: "postrouting", Hook: unix.NF_INET_POST_ROUTING, Priority: 100, NAT: true}, append(fromPods,
			// oifname "flock*" ip saddr 127.0.0.0/8 masquerade
			v4.On(nft.Meta(unix.NFT_META_OIFNAME, nft.Reg1), fromFlock, firstByte(v4Source), nft.Equal(loopback), nft.Masquerade))},
		// With route_localnet, a pod could reach what listens on the node's 127.0.0.1.
		// Before conntrack, at -200, an answer to a process of the node still has the
		// node's address.
		{nft.Chain{Table: table, Name: "loopback", Hook: unix.NF_INET_PRE_ROUTING, Priority: -300}, []nft.Rule{
			// iifname "flock*" ip daddr 127.0.0.0/8 drop
			v4.On(nft.Meta(unix.NFT_META_IIFNAME, nft.Reg1), fromFlock, firstByte(v4Destination), nft.Equal(loopback), nft.Drop),
		}},
	}
}

// replace writes the whole table, or takes it away if there is nothing to forward.
func replace(b *nft.Batch, elements map[string][]nft.Element) {
	b.AddTable(table) // or it could not be deleted
	b.DelTable(table)
	if len(elements) == 0 {
		return
	}
	b.AddTable(table)
	for _, f := range families {
		for _, s := range []nft.Set{f.withIP, f.anyIP, f.self} {
			b.AddSet(s)
			b.Add(s, elements[s.Name]...)
		}
	}
	for _, r := range chains() {
		b.AddChain(r.chain)
		b.AddRules(r.chain, r.rules...)
	}
}
