package sourceguard

import (
	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

// beforeDefrag is the priority of both chains. In prerouting, packets are put
// together from fragments at -400 and conntrack looks at -200. Behind the first, a
// pod could slip its fragment into another's packet: what comes out counts as from
// where the last fragment came.
const beforeDefrag = -450

var (
	ipChain  = nft.Chain{Table: ipTable, Name: "pod-sources", Hook: unix.NF_INET_PRE_ROUTING, Priority: beforeDefrag}
	arpChain = nft.Chain{Table: arpTable, Name: "pod-sources", Hook: arpIn, Priority: beforeDefrag}

	// What comes from links of flock's that no binding is known for.
	ipUnbound  = nft.Counter{Table: ipTable, Name: "pod-unbound"}
	arpUnbound = nft.Counter{Table: arpTable, Name: "pod-unbound"}

	// fromLinkLocal is what a pod may send from its link-local address. Router
	// advertisements, redirects and queries are a router's.
	fromLinkLocal = nft.Set{Table: ipTable, Name: "pod-icmpv6-from-link-local", Key: []nft.Field{nft.ICMPv6Type}}
	// fromUnspecified is what hosts send before they have an address (RFC 4861,
	// 4862, 3590). The node needs none of it, and it indicates no fault.
	fromUnspecified = nft.Set{Table: ipTable, Name: "pod-icmpv6-from-unspecified", Key: []nft.Field{nft.ICMPv6Type}}
)

const arpIn = 0 // NF_ARP_IN of linux/netfilter_arp.h

// The types of ICMPv6 messages (IANA).
const (
	echoRequest, echoReply                         = "\x80", "\x81"
	mldReport, mldDone, mldReport2                 = "\x83", "\x84", "\x8f"
	routerSolicit, neighborSolicit, neighborAdvert = "\x85", "\x87", "\x88"
)

// addBase adds all but rules and bindings; what is there stays as it is. Without
// rules nothing is guarded, and nothing is dropped.
func addBase(b *nft.Batch) {
	b.AddTable(ipTable)
	b.AddTable(arpTable)
	for _, s := range sets {
		b.AddSet(s)
	}
	for _, c := range constants {
		b.AddSet(c.set)
	}
	b.AddCounter(ipUnbound)
	b.AddCounter(arpUnbound)
	b.AddChain(ipChain)
	b.AddChain(arpChain)
}

// constants are the sets with the same members on every node, sorted.
var constants = []struct {
	set  nft.Set
	keys []string
}{
	{fromLinkLocal, []string{echoRequest, echoReply, mldReport, mldDone, routerSolicit, neighborSolicit, neighborAdvert, mldReport2}},
	{fromUnspecified, []string{mldReport, mldDone, routerSolicit, neighborSolicit, mldReport2}},
}

// ruled is a chain with its rules.
type ruled struct {
	chain nft.Chain
	rules []nft.Rule
}

// setRules puts the rules in place of those that there are, for the bindings that are there by
// then. Chains in remake are made again, because they have another hook or policy.
func setRules(b *nft.Batch, remake map[nft.Chain]bool) {
	for _, c := range constants {
		b.Empty(c.set)
		b.AddElements(c.set, c.keys...)
	}
	for _, r := range chains() {
		if remake[r.chain] {
			b.DelChain(r.chain)
			b.AddChain(r.chain)
		}
		b.SetRules(r.chain, r.rules...)
	}
}

// chains are flock's, with the rules that they shall have.
func chains() []ruled {
	link := nft.Meta(unix.NFT_META_IIFNAME, nft.Reg1)
	notOurs := nft.Rule{link, nft.Differ([]byte(kernel.LinkPrefix)...), nft.Accept}
	header := func(offset, n, reg uint32) nft.Expr {
		return nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, n, reg)
	}
	only := func(family byte) nft.Rule {
		return nft.Rule{nft.Meta(unix.NFT_META_NFPROTO, nft.Reg1), nft.Equal(family)}
	}
	ipv4, ipv6 := only(unix.NFPROTO_IPV4), only(unix.NFPROTO_IPV6)
	icmpv6 := func(types nft.Set) nft.Rule {
		return nft.Rule{
			nft.Meta(unix.NFT_META_L4PROTO, nft.Reg1), nft.Equal(unix.IPPROTO_ICMPV6),
			nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, nft.Reg1), nft.In(types),
		}
	}

	const source6, source4, protocol4 = 8, 12, 9 // offsets in the IP header
	ip := []nft.Rule{
		// iifname != "flock*" accept
		notOurs,
		// iifname . ip6 saddr @pod-sources6 accept
		ipv6.On(link, header(source6, 16, nft.Reg2), nft.In(sets[podSources6]), nft.Accept),
		// iifname . ip saddr @pod-sources4 accept
		ipv4.On(link, header(source4, 4, nft.Reg2), nft.In(sets[podSources4]), nft.Accept),
		// iifname . ip6 saddr @pod-link-locals icmpv6 type @pod-icmpv6-from-link-local accept
		ipv6.On(link, header(source6, 16, nft.Reg2), nft.In(sets[podLinkLocals])).On(icmpv6(fromLinkLocal)...).On(nft.Accept),
		// ip6 saddr :: icmpv6 type @pod-icmpv6-from-unspecified drop
		ipv6.On(header(source6, 16, nft.Reg1), nft.Equal(make([]byte, 16)...)).On(icmpv6(fromUnspecified)...).On(nft.Drop),
		// ip saddr 0.0.0.0 ip protocol igmp drop
		ipv4.On(header(source4, 4, nft.Reg1), nft.Equal(0, 0, 0, 0), header(protocol4, 1, nft.Reg1), nft.Equal(unix.IPPROTO_IGMP), nft.Drop),
		// iifname @pod-drops drop
		{link, nft.In(sets[podDrops]), nft.Drop},
		// counter name "pod-unbound" drop
		{nft.To(ipUnbound), nft.Drop},
	}

	const sender = 14 // offset in ARP for IPv4 over Ethernet, which is all that the kernel takes
	arp := []nft.Rule{
		// iifname != "flock*" accept
		notOurs,
		// iifname . arp saddr ip @pod-sources4 accept
		{link, header(sender, 4, nft.Reg2), nft.In(sets[arpPodSources4]), nft.Accept},
		// arp saddr ip 0.0.0.0 drop: a probe (RFC 5227), as above
		{header(sender, 4, nft.Reg1), nft.Equal(0, 0, 0, 0), nft.Drop},
		// iifname @pod-drops drop
		{link, nft.In(sets[arpPodDrops]), nft.Drop},
		// counter name "pod-unbound" drop
		{nft.To(arpUnbound), nft.Drop},
	}
	return []ruled{{ipChain, ip}, {arpChain, arp}}
}
