package service

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/netlink"
	"flock.fritzlab.net/flock/pkg/netlink/conntrack"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

// beforeProxy is the priority of the chain that translates. kube-proxy's is dstnat (-100);
// the first of the chains of type nat that translates a connection is the last that is asked.
const beforeProxy = -105

// The kernel ends a translation by itself, so that an agent that does not run leaves none
// before kube-proxy's rules. It does so a little later than the agent, which withdraws the
// address first. Ends that differ by less than the slack are the same.
const interimMargin, interimSlack = 5 * time.Second, 2 * time.Second

// interimMap is the map of a family, from a Service's address, protocol and port to a pod's
// address and port.
type interimMap struct {
	set         nft.Set
	proto       uint32 // NFPROTO_…
	destination uint32 // offset in the IP header
	addr        nft.Field
}

var interimMaps = []interimMap{
	newInterimMap("interim6", unix.NFPROTO_IPV6, 24, nft.IPv6Addr),
	newInterimMap("interim4", unix.NFPROTO_IPV4, 16, nft.IPv4Addr),
}

func newInterimMap(name string, proto, destination uint32, addr nft.Field) interimMap {
	return interimMap{
		set:   nft.Set{Table: table, Name: name, Key: []nft.Field{addr, nft.InetProto, nft.InetPort}, Data: []nft.Field{addr, nft.InetPort}, Expires: true},
		proto: proto, destination: destination, addr: addr,
	}
}

// interimRules translate what comes from outside.
func interimRules() (rules []nft.Rule) {
	for _, m := range interimMaps {
		words := uint32(m.addr.Len() / 4)
		// iifname != "flock*" dnat to ip daddr . meta l4proto . th dport map @interim4: a
		// pod that reaches itself would need another source.
		rules = append(rules, nft.Rule{
			nft.Meta(unix.NFT_META_NFPROTO, nft.Reg1), nft.Equal(byte(m.proto)),
			nft.Meta(unix.NFT_META_IIFNAME, nft.Reg1), nft.Differ([]byte(kernel.LinkPrefix)...),
			nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, m.destination, uint32(m.addr.Len()), nft.Word(0)),
			nft.Meta(unix.NFT_META_L4PROTO, nft.Word(words)),
			nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, nft.Word(words+1)),
			nft.Load(m.set), nft.DNAT(m.proto),
		})
	}
	return rules
}

// element is what the map has for a connection.
func (m interimMap) element(from proxy.Target, to netip.AddrPort) nft.Element {
	return nft.Element{
		Key:  string(from.Addr.AsSlice()) + string([]byte{from.Protocol, 0, 0, 0}) + padded(from.Port),
		Data: string(to.Addr().AsSlice()) + padded(to.Port()),
	}
}

func padded(port uint16) string {
	return string(append(binary.BigEndian.AppendUint16(nil, port), 0, 0))
}

// parse is the inverse of element.
func (m interimMap) parse(e nft.Element) (from proxy.Target, to netip.AddrPort, ok bool) {
	n := m.addr.Len()
	if len(e.Key) != n+8 || len(e.Data) != n+4 {
		return from, to, false
	}
	port := func(s string) uint16 { return binary.BigEndian.Uint16([]byte(s)) }
	from.Addr, _ = netip.AddrFromSlice([]byte(e.Key[:n]))
	from.Protocol, from.Port = e.Key[n], port(e.Key[n+4:])
	addr, _ := netip.AddrFromSlice([]byte(e.Data[:n]))
	return from, netip.AddrPortFrom(addr, port(e.Data[n:])), true
}

func interimMapOf(a netip.Addr) interimMap {
	return interimMaps[slices.IndexFunc(interimMaps, func(m interimMap) bool { return (m.proto == unix.NFPROTO_IPV4) == a.Is4() })]
}

// errNoNAT says that the node waits for kube-proxy with each announcement.
var errNoNAT = errors.New("the kernel has no destination NAT in nf_tables (CONFIG_NFT_NAT)")

// readInterim reads what the kernel translates.
func readInterim(tables *nft.Conn) (Interim, error) {
	all := Interim{}
	for _, m := range interimMaps {
		elements, err := tables.Elements(m.set)
		if errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return nil, err
		}
		now := time.Now()
		for _, e := range elements {
			from, to, ok := m.parse(e)
			if !ok {
				continue
			}
			t := Translation{To: to}
			if e.Timeout > 0 {
				t.Until = now.Add(e.Timeout - interimMargin)
			}
			all[from] = t
		}
	}
	return all, nil
}

// same says whether the kernel's translation needs no change to become the other.
func (t Translation) same(want Translation) bool {
	return t.To == want.To && t.Until.Sub(want.Until).Abs() <= interimSlack
}

// interimChange are connections that are not translated any more, and those that are from now
// on. One that is in both leads elsewhere, or for another time.
type interimChange struct{ del, add Interim }

func (c interimChange) isEmpty() bool { return len(c.del)+len(c.add) == 0 }

func (c interimChange) appendTo(b *nft.Batch) {
	for _, m := range interimMaps {
		var del, add []nft.Element
		for from, t := range c.del {
			if interimMapOf(from.Addr).proto == m.proto {
				del = append(del, m.element(from, t.To))
			}
		}
		for from, t := range c.add {
			if interimMapOf(from.Addr).proto == m.proto {
				e := m.element(from, t.To)
				e.Timeout = max(time.Until(t.Until)+interimMargin, time.Millisecond)
				add = append(add, e)
			}
		}
		b.Delete(m.set, del...)
		b.Add(m.set, add...)
	}
}

// additions are what has all connections that are wanted led to where they should be, or where
// they already lead.
func additions(want, have Interim) interimChange {
	c := interimChange{Interim{}, Interim{}}
	for from, t := range want {
		if is, there := have[from]; !there {
			c.add[from] = t
		} else if !is.same(t) {
			c.del[from], c.add[from] = is, t
		}
	}
	return c
}

// removals are what has no connections but these led anywhere. With moved, those that lead
// elsewhere are led nowhere, too.
func removals(want, have Interim, moved bool) interimChange {
	c := interimChange{del: Interim{}}
	for from, t := range have {
		if w, ok := want[from]; !ok || moved && w.To != t.To {
			c.del[from] = t
		}
	}
	return c
}

// mostRefusals bounds the transactions that are tried to find out what the kernel refuses.
const mostRefusals = 32

// change makes a change in one transaction. If the kernel refuses that, it makes the half of it,
// and so on: what cannot be keeps little else from being. It returns what was refused, and what
// was not tried after too much of that.
func (g *guard) change(c interimChange) error {
	refusals := 0
	var halve func(interimChange) error
	halve = func(c interimChange) error {
		err := g.changeAtOnce(c)
		refused := (*netlink.Error)(nil)
		if err == nil || len(c.add) < 2 || isOutdated(err) || !errors.As(err, &refused) {
			return err
		}
		if refusals++; refusals >= mostRefusals {
			return err
		}
		first, second := c.halves()
		return errors.Join(halve(first), halve(second))
	}
	return halve(c)
}

// isOutdated says whether an error is that of a change that does not fit what the kernel has: an
// element has ended, or another program has put one in the way.
func isOutdated(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY)
}

// halves divide a change of connections. The first has those that only end.
func (c interimChange) halves() (first, second interimChange) {
	first, second = interimChange{maps.Clone(c.del), Interim{}}, interimChange{Interim{}, Interim{}}
	for from, t := range c.add {
		if len(first.add) < len(c.add)/2 {
			first.add[from] = t
			continue
		}
		second.add[from] = t
		if is, ok := c.del[from]; ok {
			delete(first.del, from)
			second.del[from] = is
		}
	}
	return first, second
}

// changeAtOnce makes a change in one transaction.
func (g *guard) changeAtOnce(c interimChange) error {
	if c.isEmpty() {
		return nil
	}
	if g.seen.noNAT && len(c.add) > 0 {
		return errNoNAT
	}
	var b nft.Batch
	c.appendTo(&b)
	if err := g.commit(&b); err != nil {
		return err
	}
	for from := range c.del {
		delete(g.interim, from)
	}
	maps.Copy(g.interim, c.add)
	return nil
}

// interimRepairs are the differences in words, where they were not decided but found.
func interimRepairs(want, have Interim) (repairs []datapath.Repair) {
	add := func(from proxy.Target, found string) {
		repairs = append(repairs, datapath.Repair{Kind: kernel.NFTables, Found: found, Object: fmt.Sprintf("element %v of map %v",
			netip.AddrPortFrom(from.Addr, from.Port), interimMapOf(from.Addr).set)})
	}
	for from, t := range want {
		is, ok := have[from]
		switch {
		case !ok:
			add(from, datapath.Missing)
		case is.To != t.To:
			add(from, fmt.Sprintf("leads to %v, want %v", is.To, t.To))
		case !is.same(t):
			add(from, "another timeout")
		}
	}
	for from := range have {
		if _, ok := want[from]; !ok {
			add(from, datapath.Stray)
		}
	}
	return repairs
}

// forgetFlows makes the kernel decide again for flows of UDP from outside to where these
// connections go, but for those that lead to a pod. What the node and its pods send may go to
// pods of other nodes.
func (f *fib) forgetFlows(targets []proxy.Target, isPod func(netip.Addr) bool) error {
	wanted, ports := map[netip.AddrPort]bool{}, map[uint16]bool{}
	for _, t := range targets {
		wanted[netip.AddrPortFrom(t.Addr, t.Port)], ports[t.Port] = true, true
	}
	return netns.Do(f.netns, func() error {
		addrs, err := sys.InterfaceAddrs()
		if err != nil {
			return err
		}
		own := netaddr.Held(addrs)
		return conntrack.ForgetUDP(ports, func(flow conntrack.Flow) bool {
			return wanted[flow.To] && !isPod(flow.Server.Addr()) && !isPod(flow.From.Addr()) && !slices.Contains(own, flow.From.Addr())
		})
	})
}
