package service

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

// beforeProxy is the priority of the chain that translates. kube-proxy's is dstnat (-100);
// the first of the chains of type nat that translates a connection is the last that is asked.
const beforeProxy = -105

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
		set:   nft.Set{Table: table, Name: name, Key: []nft.Field{addr, nft.InetProto, nft.InetPort}, Data: []nft.Field{addr, nft.InetPort}},
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
func (f *fib) readInterim() (Interim, error) {
	all := Interim{}
	for _, m := range interimMaps {
		elements, err := f.tables.Elements(m.set)
		if errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return nil, err
		}
		for _, e := range elements {
			if from, to, ok := m.parse(e); ok {
				all[from] = to
			}
		}
	}
	return all, nil
}

// addInterim has the kernel translate these connections. Those that lead elsewhere lead to
// these.
func (f *fib) addInterim(want Interim) error {
	if f.noNAT && len(want) > 0 {
		return errNoNAT
	}
	return f.changeInterim(func(b *nft.Batch) {
		for from, to := range want {
			have, there := f.interim[from]
			if there && have == to {
				continue
			}
			m := interimMapOf(from.Addr)
			if there {
				b.Delete(m.set, m.element(from, have))
			}
			b.Add(m.set, m.element(from, to))
			f.interim[from] = to
		}
	})
}

// pruneInterim has the kernel translate no other connections than these.
func (f *fib) pruneInterim(want Interim) error {
	return f.changeInterim(func(b *nft.Batch) {
		for from, to := range maps.Clone(f.interim) {
			if _, ok := want[from]; !ok {
				m := interimMapOf(from.Addr)
				b.Delete(m.set, m.element(from, to))
				delete(f.interim, from)
			}
		}
	})
}

// interimRepairs are the differences in words, where they were not decided but found.
func interimRepairs(want, have Interim) (repairs []datapath.Repair) {
	add := func(from proxy.Target, found string) {
		repairs = append(repairs, datapath.Repair{Kind: kernel.NFTables, Found: found, Object: fmt.Sprintf("element %v of map %v",
			netip.AddrPortFrom(from.Addr, from.Port), interimMapOf(from.Addr).set)})
	}
	for from, to := range want {
		if is, ok := have[from]; !ok {
			add(from, datapath.Missing)
		} else if is != to {
			add(from, fmt.Sprintf("leads to %v, want %v", is, to))
		}
	}
	for from := range have {
		if _, ok := want[from]; !ok {
			add(from, datapath.Stray)
		}
	}
	return repairs
}

func (f *fib) changeInterim(change func(*nft.Batch)) error {
	var b nft.Batch
	change(&b)
	if b.Len() == 0 {
		return nil
	}
	if err := f.tables.Commit(&b); err != nil {
		f.looks = 0 // what the kernel has is to be read again
		return err
	}
	return nil
}
