package nodeguard

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Limits of how many addresses without an answer there can be at once: of one pod
// 100 + 3·50, of all pods 250 + 3·100 = 550. The kernel's limit for all neighbors,
// gc_thresh3, is 1024 by default.
const (
	podRate, podBurst   = 50, 100
	nodeRate, nodeBurst = 100, 250
	// unanswered is how long the kernel tries: mcast_solicit (3) times retrans_time (1 s).
	unanswered = 3 * time.Second
	// answered is how long an address is known after its last packet.
	answered = 10 * time.Minute
	// room is for addresses and for links.
	room = 1 << 16
)

// Beside filter (0), at which firewalls and policies decide, and behind the translation of
// Services' addresses.
const priority = -20

var (
	table = nft.Table{Family: nft.Inet, Name: kernel.NodeTable}

	// toNode and toNeighbours count what was dropped or refused.
	toNode       = nft.Counter{Table: table, Name: "pod-to-node"}
	toNeighbours = nft.Counter{Table: table, Name: "pod-to-neighbours"}

	links = nft.Set{Table: table, Name: "links", Key: []nft.Field{nft.IfName}, Dynamic: true, Size: room, Timeout: time.Minute}

	input   = nft.Chain{Table: table, Name: "input", Hook: unix.NF_INET_LOCAL_IN, Priority: priority}
	forward = nft.Chain{Table: table, Name: "forward", Hook: unix.NF_INET_FORWARD, Priority: priority}
)

// family is what differs between IPv4 and IPv6.
type family struct {
	proto               byte   // NFPROTO_…
	source, destination uint32 // offsets in the IP header
	size                uint32 // of an address, in bytes
	// known has addresses from which packets have come, tried those to which a packet went.
	known, tried nft.Set
	// neighbours decides about packets of pods to an address on a subnet of the node.
	neighbours nft.Chain
}

func newFamily(name string, proto byte, key nft.Field, source, destination uint32) family {
	return family{
		proto, source, destination, uint32(key.Len()),
		nft.Set{Table: table, Name: "known" + name, Key: []nft.Field{key}, Dynamic: true, Size: room, Timeout: answered},
		nft.Set{Table: table, Name: "tried" + name, Key: []nft.Field{key}, Dynamic: true, Size: room, Timeout: unanswered},
		nft.Chain{Table: table, Name: "neighbours" + name, Plain: true},
	}
}

var (
	v6 = newFamily("6", unix.NFPROTO_IPV6, nft.IPv6Addr, 8, 24)
	v4 = newFamily("4", unix.NFPROTO_IPV4, nft.IPv4Addr, 12, 16)

	families = []family{v6, v4}
)

func (f family) only() nft.Rule {
	return nft.Rule{nft.Meta(unix.NFT_META_NFPROTO, nft.Reg1), nft.Equal(f.proto)}
}

func (f family) load(offset uint32) nft.Expr {
	return nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, f.size, nft.Reg1)
}

// within matches packets whose address at an offset is of a prefix.
func (f family) within(offset uint32, p netip.Prefix) nft.Rule {
	whole, rest := uint32(p.Bits()/8), p.Bits()%8
	bytes := p.Masked().Addr().AsSlice()
	if rest == 0 {
		return f.only().On(nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, whole, nft.Reg1), nft.Equal(bytes[:whole]...))
	}
	mask := make([]byte, f.size)
	for i := range whole {
		mask[i] = 0xff
	}
	mask[whole] = ^byte(0xff >> rest)
	return f.only().On(f.load(offset), nft.Mask(mask...), nft.Equal(bytes...))
}

// ruled is a chain with its rules.
type ruled struct {
	chain nft.Chain
	rules []nft.Rule
}

// chains are those of the table. Chains that others jump to come first.
func (d Desired) chains() (all []ruled) {
	fromPod := []nft.Expr{nft.Meta(unix.NFT_META_IIFNAME, nft.Reg1), nft.Equal([]byte(kernel.LinkPrefix)...)}
	notFromPod := nft.Rule{nft.Meta(unix.NFT_META_IIFNAME, nft.Reg1), nft.Differ([]byte(kernel.LinkPrefix)...)}
	var toOnLink, fromOnLink []nft.Rule
	for _, f := range families {
		all = append(all, ruled{f.neighbours, []nft.Rule{
			// ip6 daddr @known6 accept
			f.only().On(f.load(f.destination), nft.In(f.known), nft.Accept),
			// ip6 daddr @tried6 accept
			f.only().On(f.load(f.destination), nft.In(f.tried), nft.Accept),
			// update @links { iifname limit rate over 50/second burst 100 packets } counter name "…" drop
			{nft.Meta(unix.NFT_META_IIFNAME, nft.Reg1), nft.RenewEach(links, nft.Over(podRate, podBurst)), nft.To(toNeighbours), nft.Drop},
			// limit rate over 100/second burst 250 packets counter name "…" drop
			{nft.Over(nodeRate, nodeBurst), nft.To(toNeighbours), nft.Drop},
			// add @tried6 { ip6 daddr } accept
			f.only().On(f.load(f.destination), nft.Remember(f.tried), nft.Accept),
		}})
		for _, p := range d.OnLink {
			if p.Addr().Is4() != (f.proto == unix.NFPROTO_IPV4) || p.Bits() == 0 {
				continue
			}
			// ip6 daddr 2001:db8:0:1::/64 goto neighbours6
			toOnLink = append(toOnLink, f.within(f.destination, p).On(nft.Decide(nft.GoTo(f.neighbours.Name))))
			// ip6 saddr 2001:db8:0:1::/64 update @known6 { ip6 saddr }
			fromOnLink = append(fromOnLink, f.within(f.source, p).On(f.load(f.source), nft.Renew(f.known)))
		}
	}
	pods := nft.Chain{Table: table, Name: "pods", Plain: true}
	all = append(all,
		ruled{pods, toOnLink},
		ruled{forward, append([]nft.Rule{
			// iifname "flock*" goto pods
			append(nft.Rule(fromPod), nft.Decide(nft.GoTo(pods.Name))),
		}, fromOnLink...)},
		ruled{input, append([]nft.Rule{notFromPod.On(nft.Accept)}, d.services()...)})
	return all
}

const (
	ospf           = 89 // IPPROTO_OSPFIGP
	protocol4      = 9  // the offset of the protocol in the IPv4 header
	prohibitedCode = unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED
)

// services are the rules about what a pod sends to the node itself.
func (d Desired) services() []nft.Rule {
	proto := func(p byte) nft.Rule { return nft.Rule{nft.Meta(unix.NFT_META_L4PROTO, nft.Reg1), nft.Equal(p)} }
	refuse := []nft.Expr{nft.To(toNode), nft.Reject(prohibitedCode)}
	drop := []nft.Expr{nft.To(toNode), nft.Drop}
	var rules []nft.Rule
	for _, p := range d.Ports() {
		// tcp dport 179 counter name "…" reject with icmpx admin-prohibited
		rules = append(rules, proto(pod.Protocols[p.Protocol]).On(
			nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, nft.Reg1), nft.Equal(byte(p.Number>>8), byte(p.Number))).On(refuse...))
	}
	rules = append(rules,
		// meta l4proto ospf counter name "…" drop
		proto(ospf).On(drop...),
		// meta l4proto ipv6-icmp accept: neighbor discovery, multicast listener reports, pings.
		// The source guard has let pass what a host may send.
		proto(unix.IPPROTO_ICMPV6).On(nft.Accept),
		// ip protocol igmp accept
		v4.only().On(nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, protocol4, 1, nft.Reg1), nft.Equal(unix.IPPROTO_IGMP), nft.Accept),
		// ip6 daddr fe80::/10 counter name "…" reject with icmpx admin-prohibited
		v6.within(v6.destination, netip.MustParsePrefix("fe80::/10")).On(refuse...),
		// ip6 daddr ff00::/8 counter name "…" drop
		v6.within(v6.destination, netip.MustParsePrefix("ff00::/8")).On(drop...),
		// ip daddr 224.0.0.0/3 counter name "…" drop: multicast, broadcast, and what is reserved
		v4.within(v4.destination, netip.MustParsePrefix("224.0.0.0/3")).On(drop...),
	)
	for _, p := range d.OnLink {
		if broadcast := lastOf(p); broadcast.IsValid() {
			// ip daddr 192.0.2.255 counter name "…" drop
			rules = append(rules, v4.within(v4.destination, netip.PrefixFrom(broadcast, 32)).On(drop...))
		}
	}
	return rules
}

// lastOf is the broadcast address of an IPv4 subnet (RFC 922); invalid if it has none (RFC 3021).
func lastOf(p netip.Prefix) netip.Addr {
	if !p.Addr().Is4() || p.Bits() > 30 {
		return netip.Addr{}
	}
	a := binary.BigEndian.Uint32(p.Masked().Addr().AsSlice()) | 1<<(32-p.Bits()) - 1
	return netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
}
