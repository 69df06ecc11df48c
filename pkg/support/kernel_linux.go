package support

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// feature is something of the kernel that flock uses.
type feature struct {
	name    string
	config  string // the option that a kernel is built with for it
	since   string // the version that has it first; empty: older than any that matters
	without string
	breaks  bool
	// expression is the one of nf_tables that it is about, as nft's debug output names it.
	expression string
	try        func(k *trial) error
}

// trial is a network namespace in which features are tried.
type trial struct {
	netns  *os.File
	routes *rtnl.Conn
	tables *nft.Conn
}

// errNoLink is an error of trials that need a link which could not be made.
var errNoLink = errors.New("it needs veth, which is missing")

var (
	inetTable = nft.Table{Family: nft.Inet, Name: "flock-trial"}
	forward   = nft.Chain{Table: inetTable, Name: "forward", Hook: unix.NF_INET_FORWARD}
	natChain  = nft.Chain{Table: inetTable, Name: "nat", Hook: unix.NF_INET_POST_ROUTING, Priority: 100, NAT: true}
	dstChain  = nft.Chain{Table: inetTable, Name: "dst", Hook: unix.NF_INET_PRE_ROUTING, Priority: -100, NAT: true}
)

// rule tries a rule of some expressions in a chain.
func rule(chain nft.Chain, rule nft.Rule, sets ...nft.Set) func(*trial) error {
	return func(k *trial) error {
		b := &nft.Batch{}
		b.AddTable(chain.Table)
		for _, s := range sets {
			b.AddSet(s)
		}
		b.AddChain(chain)
		b.AddRules(chain, rule)
		return k.commit(b, chain.Table)
	}
}

func set(s nft.Set) func(*trial) error {
	return func(k *trial) error {
		b := &nft.Batch{}
		b.AddTable(s.Table)
		b.AddSet(s)
		return k.commit(b, s.Table)
	}
}

// commit carries out a batch that makes a table, and deletes the table.
func (k *trial) commit(b *nft.Batch, t nft.Table) error {
	if k.tables == nil {
		return unix.EPROTONOSUPPORT
	}
	if err := k.tables.Commit(b); err != nil {
		return err
	}
	undo := &nft.Batch{}
	undo.DelTable(t)
	return k.tables.Commit(undo)
}

// nexthop tries a nexthop on a link of the namespace, and a group of it.
func nexthop(resilient *rtnl.Resilient) func(*trial) error {
	return func(k *trial) error {
		link, err := k.link()
		if err != nil {
			return err
		}
		single := rtnl.Nexthop{ID: 1, Link: link, IPv6: true}
		group := rtnl.Nexthop{ID: 2, Group: []rtnl.NexthopMember{{ID: 1, Weight: 1}}, Resilient: resilient}
		return errors.Join(k.routes.Do(rtnl.NewNexthop(single), rtnl.NewNexthop(group), rtnl.DelNexthop(2), rtnl.DelNexthop(1))...)
	}
}

// link is the index of a veth that is up.
func (k *trial) link() (int, error) {
	const name = "trial"
	if l, err := k.routes.LinkByName(name); err == nil {
		return l.Index, nil
	}
	if err := errors.Join(k.routes.Do(rtnl.NewVeth(rtnl.VethPair{Name: name, PeerName: name + "-peer", MAC: [6]byte{2, 0, 0, 0, 0, 1}, PeerMAC: [6]byte{2, 0, 0, 0, 0, 2}, PeerNetns: k.netns}))...); err != nil {
		return 0, fmt.Errorf("%w: %w", errNoLink, err)
	}
	for _, name := range []string{name, name + "-peer"} {
		l, err := k.routes.LinkByName(name)
		if err != nil {
			return 0, err
		}
		if err := errors.Join(k.routes.Do(rtnl.SetLink(l.Index, rtnl.LinkChange{Up: new(true)}))...); err != nil {
			return 0, err
		}
	}
	l, err := k.routes.LinkByName(name)
	return l.Index, err
}

var (
	plainSet    = nft.Set{Table: inetTable, Name: "plain", Key: []nft.Field{nft.IPv6Addr}}
	dynamicSet  = nft.Set{Table: inetTable, Name: "dynamic", Key: []nft.Field{nft.IPv6Addr}, Dynamic: true, Size: 16, Timeout: time.Minute}
	countedSet  = nft.Set{Table: inetTable, Name: "counted", Key: []nft.Field{nft.IPv6Addr}, Counters: true}
	limitedSet  = nft.Set{Table: inetTable, Name: "limited", Key: []nft.Field{nft.IPv6Addr}, Limit: 5}
	intervalSet = nft.Set{Table: inetTable, Name: "interval", Key: []nft.Field{nft.IPv6Addr, nft.InetPort}, Interval: true}
	verdictMap  = nft.Set{Table: inetTable, Name: "verdicts", Key: []nft.Field{nft.IPv6Addr}, Verdicts: true}
)

// source loads the source address, so that what follows has something in register 1.
var source = nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 8, 16, nft.Reg1)

const (
	noPods     = "no pod can be wired"
	noPolicies = "pods start without the protection that they should have, or not at all"
	noPorts    = "host ports do not work"
	noNAT      = "host ports do not work, and addresses of Services wait for kube-proxy"
)

// features are all that flock uses and that a kernel may lack.
var features = []feature{
	{name: "IPv6", config: "CONFIG_IPV6, and no ipv6.disable=1 on its command line", without: noPods, breaks: true, try: func(*trial) error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}},
	{name: "links of kind veth", config: "CONFIG_VETH", without: noPods, breaks: true, try: func(k *trial) error {
		_, err := k.link()
		return err
	}},
	{name: "nexthop groups", since: "5.3", without: "no pod gets an anycast address", breaks: true, try: nexthop(nil)},
	{
		name: "resilient nexthop groups", since: resilientKernel, without: "connections to an anycast address may move to another pod of the node when one comes or goes",
		try: nexthop(&rtnl.Resilient{Buckets: 8, Idle: time.Second}),
	},
	{name: "nf_tables", config: "CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET", without: noPolicies, breaks: true, expression: "immediate", try: rule(forward, nft.Rule{nft.Accept})},
	{name: "nf_tables for ARP", config: "CONFIG_NF_TABLES_ARP", without: "a pod can answer ARP for the address of another", breaks: true, try: func(k *trial) error {
		table := nft.Table{Family: nft.ARP, Name: "flock-trial"}
		return rule(nft.Chain{Table: table, Name: "in", Hook: 0}, nft.Rule{nft.Accept})(k)
	}},
	{name: "sets of nf_tables with a counter for each element", since: oldestKernel, without: noPolicies, breaks: true, try: set(countedSet)},
	{name: "sets of nf_tables with a limit for each element", since: oldestKernel, without: noPolicies, breaks: true, try: set(limitedSet)},
	{name: "sets of nf_tables with intervals of several fields", since: "5.6", without: noPolicies, breaks: true, try: set(intervalSet)},
	{name: "maps of nf_tables", without: noPolicies, breaks: true, expression: "lookup", try: rule(forward, nft.Rule{source, nft.Map(verdictMap)}, verdictMap)},
	{name: "dynamic sets of nf_tables", without: noPolicies, breaks: true, expression: "dynset", try: rule(forward, nft.Rule{source, nft.Remember(dynamicSet)}, dynamicSet)},
	{
		name: "rules of nf_tables on packets' fields", without: noPolicies, breaks: true, expression: "payload",
		try: rule(forward, nft.Rule{source, nft.Mask(0xff, 0xff, 0xff, 0xff), nft.Equal(0x20, 1, 0xd, 0xb8), nft.In(plainSet), nft.Accept}, plainSet),
	},
	{name: "rules of nf_tables on bits", without: noPolicies, breaks: true, expression: "bitwise", try: rule(forward, nft.Rule{nft.Meta(unix.NFT_META_MARK, nft.Reg1), nft.Bits(1, 0), nft.EqualNative(1), nft.Accept})},
	{name: "rules of nf_tables on numbers", without: noPolicies, breaks: true, expression: "cmp", try: rule(forward, nft.Rule{nft.Meta(unix.NFT_META_L4PROTO, nft.Reg1), nft.Equal(6), nft.Accept})},
	{name: "rules of nf_tables on links and marks", without: noPolicies, breaks: true, expression: "meta", try: rule(forward, nft.Rule{nft.Meta(unix.NFT_META_IIFNAME, nft.Reg1), nft.Accept})},
	{name: "counters of nf_tables", without: noPolicies, breaks: true, expression: "counter", try: rule(forward, nft.Rule{nft.CountHere})},
	{name: "named counters of nf_tables", config: "CONFIG_NFT_OBJREF", without: noPolicies, breaks: true, expression: "objref", try: func(k *trial) error {
		c := nft.Counter{Table: inetTable, Name: "named"}
		b := &nft.Batch{}
		b.AddTable(inetTable)
		b.AddCounter(c)
		b.AddChain(forward)
		b.AddRules(forward, nft.Rule{nft.To(c)})
		return k.commit(b, inetTable)
	}},
	{name: "limits of nf_tables", config: "CONFIG_NFT_LIMIT", without: noPolicies, breaks: true, expression: "limit", try: rule(forward, nft.Rule{nft.Limit(5, 5), nft.Accept})},
	{name: "connection tracking in nf_tables", config: "CONFIG_NF_CONNTRACK and CONFIG_NFT_CT", without: noPolicies, breaks: true, expression: "ct", try: rule(forward, nft.Rule{nft.Ct(unix.NFT_CT_STATE, nft.Reg1), nft.Accept})},
	{
		name: "marks of connections in nf_tables", config: "CONFIG_NF_CONNTRACK_MARK", without: noPolicies, breaks: true, expression: "ct",
		try: rule(forward, nft.Rule{nft.Meta(unix.NFT_META_MARK, nft.Reg1), nft.SetCt(unix.NFT_CT_MARK)}),
	},
	{name: "rejects of nf_tables", config: "CONFIG_NFT_REJECT", without: "clients of a denied port wait in place of being refused, and the service guard does not work", breaks: true, expression: "reject", try: rule(forward, nft.Rule{nft.Reject(unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED)})},
	{name: "the log of nf_tables", config: "CONFIG_NFT_LOG and CONFIG_NETFILTER_NETLINK_LOG", without: "namespaces get no log of what is denied", expression: "log", try: rule(forward, nft.Rule{nft.Log(1, "trial", 64)})},
	{name: "lookups of routes in nf_tables", config: "CONFIG_NFT_FIB_INET", without: noPorts, expression: "fib", try: rule(dstChain, nft.Rule{nft.DestinationType, nft.Accept})},
	{name: "destination NAT in nf_tables", config: "CONFIG_NFT_NAT", without: noNAT, expression: "nat", try: rule(dstChain, nft.Rule{
		nft.Meta(unix.NFT_META_NFPROTO, nft.Reg1), nft.Equal(unix.NFPROTO_IPV6), source, nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, nft.Word(4)), nft.DNAT(unix.NFPROTO_IPV6),
	})},
	{name: "masquerading in nf_tables", config: "CONFIG_NFT_MASQ", without: noPorts, expression: "masq", try: rule(natChain, nft.Rule{nft.Masquerade})},
	{name: "TCP MD5 signatures", config: "CONFIG_TCP_MD5SIG", without: "BGP sessions with a password stay down", try: func(*trial) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// struct tcp_md5sig: an address of 128 bytes, flags, the length of the key at 130, …
		signature := make([]byte, 216)
		signature[0] = unix.AF_INET
		copy(signature[4:], []byte{192, 0, 2, 1})
		signature[130] = 3
		copy(signature[136:], "key")
		return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, string(signature))
	}},
}

// Kernel tries the kernel of this machine. An error says that it could not be tried;
// CAP_SYS_ADMIN and CAP_NET_ADMIN are needed. It takes some milliseconds.
func Kernel() ([]Finding, error) {
	return tryKernel(func(f feature, k *trial) error { return f.try(k) })
}

func tryKernel(try func(feature, *trial) error) (all []Finding, err error) {
	own, err := netns.New()
	if errors.Is(err, unix.EINVAL) {
		return []Finding{finding(feature{name: "network namespaces", config: "CONFIG_NET_NS", without: noPods, breaks: true}, err)}, nil
	}
	if err != nil {
		return nil, err
	}
	defer own.Close()
	err = netns.Do(own, func() error {
		k := &trial{netns: own}
		var err error
		if k.routes, err = rtnl.Dial(); err != nil {
			return err
		}
		defer k.routes.Close()
		if k.tables, err = nft.Dial(); err == nil {
			defer k.tables.Close()
		} else if !missing(err) {
			return err
		}
		for _, f := range features {
			err := try(f, k)
			switch {
			case err == nil, errors.Is(err, errNoLink) && f.name != "links of kind veth":
			case missing(err):
				all = append(all, finding(f, err))
			default:
				return fmt.Errorf("cannot try whether the kernel has %s: %w", f.name, err)
			}
		}
		return nil
	})
	return all, err
}

// missing says whether a kernel answers so where it lacks what it was asked for.
func missing(err error) bool {
	for _, e := range []error{
		unix.EOPNOTSUPP, unix.ENOENT, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EINVAL, unix.ENOPROTOOPT, unix.ENOSYS,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func finding(f feature, err error) Finding {
	release := Release()
	needed := f.name
	var where []string
	if f.since != "" {
		where = append(where, "Linux "+f.since+" or newer")
	}
	if f.config != "" {
		where = append(where, "a kernel with "+f.config)
	}
	remedy := "run " + strings.Join(where, ", ")
	if len(where) == 0 {
		remedy = "run a kernel of your distribution, or load its module"
	} else if f.config != "" {
		remedy += ", or load its module"
	}
	return Finding{
		Breaks: f.breaks, Object: "kernel", Found: fmt.Sprintf("Linux %s that answers %q", release, err.Error()), Needed: needed,
		Without: f.without, Remedy: remedy,
	}
}

// Release is that of the running kernel, as uname -r shows it; empty if it is not known.
func Release() string {
	content, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}

// Expressions are those of nf_tables that Kernel tries, as nft's debug output names them.
func Expressions() (names []string) {
	for _, f := range features {
		if f.expression != "" {
			names = append(names, f.expression)
		}
	}
	return names
}
