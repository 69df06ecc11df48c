package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/datapath/xtables"
	"flock.fritzlab.net/flock/pkg/netlink"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

// Reader reads the kernel of the network namespace that it was opened in.
type Reader struct {
	netns  *os.File
	tables *nft.Conn
	watch  *netlink.Watch
	wrote  cell.Topic
}

// Open takes the calling thread's network namespace for the node's.
func Open() (*Reader, error) {
	own, err := sys.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("node's network namespace: %w", err)
	}
	r := &Reader{netns: own}
	if r.tables, err = nft.Dial(); err == nil {
		r.watch, err = nft.SubscribeGenerations()
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Close gives the sockets up. Watch must have ended.
func (r *Reader) Close() {
	if r.tables != nil {
		r.tables.Close()
	}
	if r.watch != nil {
		r.watch.Close()
	}
	r.netns.Close()
}

// Watch calls changed after each change of nftables that this process did not make, until
// ctx ends. What happened since Open is reported too.
func (r *Reader) Watch(ctx context.Context, changed func()) error {
	return r.watch.Run(ctx, func(m netlink.Message) {
		if netlink.IsOwn(m.Port) && m.Type != 0 {
			return
		}
		if name, _ := nft.Writer(m); writes(name) {
			r.wrote.Wake()
		}
		changed()
	})
}

// Written is woken when one of the programs has changed nftables with which kube-proxy writes its
// rules, whoever ran it. Of iptables-legacy nothing is seen.
func (r *Reader) Written() *cell.Topic { return &r.wrote }

// Epoch is another after kube-proxy has been started and has written its rules: the kernel numbers
// rules, and these are written then. In mode nftables they stay for about an hour, in mode iptables
// until kube-proxy writes again. In mode iptables-legacy, and without rules, it is empty.
func (r *Reader) Epoch() (epoch string, err error) {
	for _, family := range families {
		for _, chain := range []nft.Chain{
			{Table: nft.Table{Family: family, Name: "kube-proxy"}, Name: "nat-prerouting"},
			{Table: nft.Table{Family: family, Name: "nat"}, Name: "KUBE-MARK-MASQ"},
		} {
			handles, err := r.tables.Handles(chain)
			if ignoreNotFound(err) != nil {
				return "", fmt.Errorf("the rules of kube-proxy: %w", err)
			}
			for _, handle := range handles {
				epoch += fmt.Sprintf("%s %d ", chain, handle)
			}
		}
	}
	return strings.TrimSpace(epoch), nil
}

// writes says whether a process is kube-proxy, or a program that it runs: nft, iptables-restore,
// ip6tables-restore, or what these are links to. The kernel gives 15 characters of the name.
func writes(process string) bool {
	return process == "kube-proxy" || process == "nft" || strings.Contains(process, "tables-")
}

// families are those of kube-proxy's tables.
var families = []nft.Family{nft.IPv6, nft.IPv4}

var unspecified = map[nft.Family]netip.Addr{nft.IPv6: netip.IPv6Unspecified(), nft.IPv4: netip.IPv4Unspecified()}

func familyOf(a netip.Addr) nft.Family {
	if a.Is4() {
		return nft.IPv4
	}
	return nft.IPv6
}

// readAttempts bounds how often rules are read that change meanwhile.
const readAttempts = 3

// Read answers questions from what the kernel has now. kube-proxy may replace a chain between the
// rule that leads to it and the chain itself being read: then all is read again.
func (r *Reader) Read(questions []Question) (look Look, err error) {
	for range readAttempts {
		if look, err = r.read(questions); err != nil || !look.torn {
			break
		}
	}
	return look, err
}

func (r *Reader) read(questions []Question) (Look, error) {
	look := Look{At: map[Key]Rule{}}
	for _, family := range families {
		var some []Question
		for _, q := range questions {
			if familyOf(q.Addr) == family {
				some = append(some, q)
			}
		}
		for _, read := range []func(*Look, nft.Family, []Question) error{r.readNFTables, r.readIPTables, r.readLegacy} {
			if err := read(&look, family, some); err != nil {
				return Look{}, fmt.Errorf("the rules of kube-proxy: %w", err)
			}
		}
	}
	return look, nil
}

// readNFTables asks kube-proxy's map of Services' addresses.
func (r *Reader) readNFTables(look *Look, family nft.Family, questions []Question) error {
	serviceIPs := nft.Set{Table: nft.Table{Family: family, Name: "kube-proxy"}, Name: "service-ips"}
	var keys []string
	for _, q := range questions {
		keys = append(keys, q.nftKey())
	}
	slices.Sort(keys)
	keys = slices.Compact(keys) // Services that ask for the same
	if len(keys) == 0 {         // only whether there is such a map
		keys = []string{Target{Addr: unspecified[family]}.nftKey()}
	}
	elements, err := r.tables.Lookup(serviceIPs, keys)
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return err
	}
	look.found(NFTables)
	for _, q := range questions {
		e, ok := elements[q.nftKey()]
		if !ok || !q.ownsNFT(e.Verdict.Chain) {
			continue
		}
		rule := look.At[q.Key]
		rule.Translated = true
		if q.Here {
			here, anywhere, err := r.nftHere(look, serviceIPs.Table, e.Verdict.Chain)
			if err != nil {
				return err
			}
			rule.add(here...)
			rule.Anywhere = anywhere
		}
		look.At[q.Key] = rule
	}
	return nil
}

// nftKey is the key in service-ips: address, protocol and port, each padded to four bytes.
func (k Target) nftKey() string {
	b := append(k.Addr.AsSlice(), k.Protocol, 0, 0, 0)
	return string(append(binary.BigEndian.AppendUint16(b, k.Port), 0, 0))
}

// Names of kube-proxy's chains begin so. Those for the traffic policy Local lead to
// endpoints of the node only.
const (
	nftLocal, nftEndpoint    = "local-", "endpoint-"
	nftService               = "service-"
	iptLocal, iptEndpoint    = "KUBE-SVL-", "KUBE-SEP-"
	iptServices              = "KUBE-SERVICES"
	iptService               = "KUBE-SVC-"
	iptNodePorts             = "KUBE-NODEPORTS" // the last rule of KUBE-SERVICES leads there
	iptExternal, iptFirewall = "KUBE-EXT-", "KUBE-FW-"
)

// nftHere are the endpoints to which a chain leads by one for the traffic policy Local, or
// as one. Anywhere: all that comes goes on to the endpoints of all nodes.
func (r *Reader) nftHere(look *Look, table nft.Table, external string) (here []netip.AddrPort, anywhere bool, err error) {
	switch { // of a clusterIP
	case strings.HasPrefix(external, nftLocal):
		here, err = r.nftEndpoints(look, table, external)
		return here, false, err
	case strings.HasPrefix(external, nftService):
		return nil, true, nil
	}
	rules, err := r.tables.Expressions(nft.Chain{Table: table, Name: external})
	look.torn = look.torn || len(rules) == 0
	if err != nil {
		return nil, false, ignoreNotFound(err)
	}
	for _, rule := range rules {
		always := true // it has no condition
		for _, e := range rule {
			v, ok := e.Verdict()
			always = always && (ok || e.Name == "counter")
			if ok && strings.HasPrefix(v.Chain, nftLocal) {
				more, err := r.nftEndpoints(look, table, v.Chain)
				if err != nil {
					return nil, false, err
				}
				here = append(here, more...)
			}
			anywhere = anywhere || ok && always && strings.HasPrefix(v.Chain, nftService)
		}
	}
	return here, anywhere, nil
}

// nftEndpoints are where a chain translates to, itself or by the chains of endpoints that it
// leads to.
func (r *Reader) nftEndpoints(look *Look, table nft.Table, chain string) (endpoints []netip.AddrPort, err error) {
	rules, err := r.tables.Expressions(nft.Chain{Table: table, Name: chain})
	look.torn = look.torn || len(rules) == 0
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	follow := func(v nft.Verdict) error {
		if !strings.HasPrefix(v.Chain, nftEndpoint) || strings.HasPrefix(chain, nftEndpoint) {
			return nil
		}
		more, err := r.nftEndpoints(look, table, v.Chain)
		endpoints = append(endpoints, more...)
		return err
	}
	for _, rule := range rules {
		registers := map[uint32][]byte{}
		for _, e := range rule {
			switch e.Name {
			case "immediate":
				registers[e.U32(unix.NFTA_IMMEDIATE_DREG)] = e.Value(unix.NFTA_IMMEDIATE_DATA)
				if v, ok := e.Verdict(); ok {
					if err := follow(v); err != nil {
						return nil, err
					}
				}
			case "lookup":
				if _, isMap := e.Attributes[unix.NFTA_LOOKUP_DREG]; !isMap {
					continue // sources with affinity
				}
				elements, err := r.tables.Elements(nft.Set{Table: table, Name: e.Str(unix.NFTA_LOOKUP_SET)})
				look.torn = look.torn || len(elements) == 0
				if ignoreNotFound(err) != nil {
					return nil, err
				}
				for _, element := range elements {
					if err := follow(element.Verdict); err != nil {
						return nil, err
					}
					endpoints = appendEndpoint(endpoints, table.Family, []byte(element.Data))
				}
			case "nat":
				addr := registers[e.U32(unix.NFTA_NAT_REG_ADDR_MIN)]
				port := registers[e.U32(unix.NFTA_NAT_REG_PROTO_MIN)]
				endpoints = appendEndpoint(endpoints, table.Family, append(addr[:len(addr):len(addr)], port...))
			}
		}
	}
	return endpoints, nil
}

// appendEndpoint appends an address and the port behind it, if b has them.
func appendEndpoint(all []netip.AddrPort, family nft.Family, b []byte) []netip.AddrPort {
	n := 16
	if family == nft.IPv4 {
		n = 4
	}
	if len(b) < n+2 {
		return all
	}
	addr, _ := netip.AddrFromSlice(b[:n])
	return append(all, netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[n:])))
}

func ignoreNotFound(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// jump is a rule of kube-proxy's in chain KUBE-SERVICES.
type jump struct {
	Target
	to string
}

// readIPTables reads the table nat of iptables-nft, which is one of nftables.
func (r *Reader) readIPTables(look *Look, family nft.Family, questions []Question) error {
	nat := nft.Table{Family: family, Name: "nat"}
	rules, err := r.tables.Expressions(nft.Chain{Table: nat, Name: iptServices})
	if err != nil || len(rules) == 0 {
		return ignoreNotFound(err)
	}
	chain := func(name string) ([]iptRule, error) {
		rules, err := r.tables.Expressions(nft.Chain{Table: nat, Name: name})
		out := make([]iptRule, len(rules))
		for i, rule := range rules {
			out[i] = iptRuleOf(rule, family)
		}
		look.torn = look.torn || len(rules) == 0
		return out, ignoreNotFound(err)
	}
	services := make([]iptRule, len(rules))
	for i, rule := range rules {
		services[i] = iptRuleOf(rule, family)
	}
	return look.iptables(IPTables, services, chain, questions)
}

// readLegacy reads the table nat of iptables-legacy.
func (r *Reader) readLegacy(look *Look, family nft.Family, questions []Question) error {
	var table map[string][]xtables.Entry
	err := netns.Do(r.netns, func() (err error) {
		table, err = xtables.Chains(family == nft.IPv6, "nat")
		return err
	})
	if err != nil {
		return err
	}
	if len(table[iptServices]) == 0 {
		return nil
	}
	chain := func(name string) (out []iptRule, err error) {
		for _, e := range table[name] {
			rule := iptRule{jump: jump{to: e.Jump}}
			if e.Dst.IsSingleIP() {
				rule.Addr = e.Dst.Addr()
			}
			rule.Protocol, rule.Port, rule.always = e.Protocol, e.DstPort, e.Always
			if e.Target == "DNAT" {
				rule.dnat = natRange(family, e.Revision, e.Info)
			}
			out = append(out, rule)
		}
		return out, nil
	}
	services, err := chain(iptServices)
	if err != nil {
		return err
	}
	return look.iptables(Legacy, services, chain, questions)
}

// iptRule is what matters of a rule of iptables'.
type iptRule struct {
	jump
	dnat netip.AddrPort // invalid: it translates nothing
	// always: it matches all packets.
	always bool
}

// iptables answers questions by the rules of chain KUBE-SERVICES and those of others. In mode ipvs
// kube-proxy has a chain of that name too, which leads to none of these.
func (l *Look) iptables(mode Mode, services []iptRule, chain func(string) ([]iptRule, error), questions []Question) error {
	leads := func(to string, prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(to, prefix) })
	}
	to := map[Target]string{}
	for _, s := range services {
		isService := leads(s.to, iptExternal, iptFirewall, iptService, iptLocal)
		if isService || s.to == iptNodePorts {
			l.found(mode)
		}
		if _, shadowed := to[s.Target]; shadowed {
			continue
		}
		if isService {
			to[s.Target] = s.to
		}
	}
	for _, q := range questions {
		first, ok := to[q.Target]
		if !ok || !q.ownsIPT(first) {
			continue
		}
		rule := l.At[q.Key]
		rule.Translated = true
		if q.Here {
			here, anywhere, err := iptHere(first, chain)
			if err != nil {
				return err
			}
			rule.add(here...)
			rule.Anywhere = anywhere
		}
		l.At[q.Key] = rule
	}
	return nil
}

// iptHere follows chains of external traffic to that of the policy Local, and that one to
// the endpoints. Anywhere: all that comes goes on to the endpoints of all nodes.
func iptHere(name string, chain func(string) ([]iptRule, error)) (here []netip.AddrPort, anywhere bool, err error) {
	if strings.HasPrefix(name, iptService) { // of a clusterIP
		return nil, true, nil
	}
	rules, err := chain(name)
	if err != nil {
		return nil, false, err
	}
	for _, r := range rules {
		anywhere = anywhere || r.always && strings.HasPrefix(r.to, iptService)
		if r.dnat.IsValid() {
			here = append(here, r.dnat)
		}
		local := strings.HasPrefix(name, iptLocal)
		if !(!local && (strings.HasPrefix(r.to, iptLocal) || strings.HasPrefix(r.to, iptExternal) && !strings.HasPrefix(name, iptExternal)) ||
			local && strings.HasPrefix(r.to, iptEndpoint)) {
			continue
		}
		more, all, err := iptHere(r.to, chain)
		if err != nil {
			return nil, false, err
		}
		here = append(here, more...)
		anywhere = anywhere || all
	}
	return here, anywhere, nil
}

// Of linux/netfilter/nf_tables_compat.h.
const (
	nftaTargetName, nftaTargetRev, nftaTargetInfo = 1, 2, 3
	nftaMatchName, nftaMatchInfo                  = 1, 3
)

// iptRuleOf reads a rule that iptables-nft has written.
func iptRuleOf(rule []nft.Parsed, family nft.Family) (r iptRule) {
	destination, n := uint32(24), uint32(16)
	if family == nft.IPv4 {
		destination, n = 16, 4
	}
	var loaded func(value []byte) // what the register was loaded with
	r.always = true
	for _, e := range rule {
		r.always = r.always && (e.Name == "immediate" || e.Name == "counter")
		switch e.Name {
		case "meta":
			loaded = nil
			if e.U32(unix.NFTA_META_KEY) == unix.NFT_META_L4PROTO {
				loaded = func(v []byte) { r.Protocol = v[0] }
			}
		case "payload":
			base, offset, length := e.U32(unix.NFTA_PAYLOAD_BASE), e.U32(unix.NFTA_PAYLOAD_OFFSET), e.U32(unix.NFTA_PAYLOAD_LEN)
			loaded = nil
			switch {
			case base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == destination && length == n:
				loaded = func(v []byte) { r.Addr, _ = netip.AddrFromSlice(v) }
			case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && offset == 2 && length == 2:
				loaded = func(v []byte) {
					if len(v) == 2 {
						r.Port = binary.BigEndian.Uint16(v)
					}
				}
			}
		case "cmp":
			if v := e.Value(unix.NFTA_CMP_DATA); loaded != nil && len(v) > 0 && e.U32(unix.NFTA_CMP_OP) == unix.NFT_CMP_EQ {
				loaded(v)
			}
			loaded = nil
		case "match":
			if port, ok := xtables.DstPort(e.Str(nftaMatchName), e.Attributes[nftaMatchInfo]); ok {
				r.Port = port
			}
		case "immediate":
			if v, ok := e.Verdict(); ok {
				r.to = v.Chain
			}
		case "target":
			if e.Str(nftaTargetName) == "DNAT" {
				r.dnat = natRange(family, uint8(e.U32(nftaTargetRev)), e.Attributes[nftaTargetInfo])
			}
		}
	}
	return r
}

// natRange reads where target DNAT translates to (struct nf_nat_range2, and for revision 0
// of IPv4 struct nf_nat_ipv4_multi_range_compat).
func natRange(family nft.Family, revision uint8, info []byte) netip.AddrPort {
	addr, port, n := 4, 36, 16
	switch {
	case family == nft.IPv4 && revision == 0:
		addr, port, n = 8, 16, 4
	case family == nft.IPv4:
		n = 4
	}
	if len(info) < port+2 {
		return netip.AddrPort{}
	}
	a, _ := netip.AddrFromSlice(info[addr : addr+n])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(info[port:]))
}
