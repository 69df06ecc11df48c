// Package survey sees what in a node's kernel keeps flock from working though all of flock's own
// state is as it should be: routes that win over flock's, firewalls, settings, and what another
// network plugin left behind. It changes nothing: each finding says what to do.
package survey

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/xtables"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// Snapshot is what matters of a node's kernel.
type Snapshot struct {
	Links []rtnl.Link
	Addrs []rtnl.Addr
	// Own are flock's routes. Foreign are routes of other programs that could win over them: all
	// that lead nowhere, and those that the kernel takes in place of one of flock's.
	Own, Foreign []rtnl.Route
	// Rules are the routing policy's. Tables are those other than main in which the kernel
	// finds the way to pods' addresses that it does not find in main.
	Rules  []rtnl.Rule
	Tables map[netip.Prefix]uint32
	// Qdiscs are those of flock's links that are not the kernel's own, and those of uplinks that
	// are there for programs.
	Qdiscs []rtnl.Qdisc
	// Programs are the links of flock's and the uplinks with programs of BPF (tcx).
	Programs []string
	// Connect says that programs of BPF may change where pods' connections lead.
	Connect bool
	// Uplinks are the links that default routes lead to, by index.
	Uplinks map[int]bool
	// Forward are the chains that see forwarded packets, before, in or after routing, but
	// for flock's.
	Forward []Chain
	// Legacy are those of iptables-legacy.
	Legacy []xtables.Chain
	// Chains are those without a hook, which others jump to. LegacyChains are iptables-legacy's.
	Chains       []nft.Chain
	LegacyChains []LegacyChain
	// Left are routes that only another network plugin makes.
	Left        []rtnl.Route
	RPFilterAll int // net.ipv4.conf.all.rp_filter
}

// LegacyChain is one of iptables-legacy's that users have made.
type LegacyChain struct{ Tool, Table, Name string }

func (c LegacyChain) String() string { return fmt.Sprintf("%s -t %s %s", c.Tool, c.Table, c.Name) }

// Chain is a base chain at the hook forward with its rules, and those of all chains of its
// table, to which they may jump; all as [nft.Rule.Definition] has them.
type Chain struct {
	nft.BaseChain
	Rules, All []string
}

// drops says whether what no rule accepts is dropped.
func (c Chain) drops() bool {
	return c.Drops || len(c.Rules) > 0 && ends.MatchString(c.Rules[len(c.Rules)-1])
}

// Finding is one thing that is in flock's way.
type Finding struct {
	// Breaks: pods are not reachable, or not announced, because of it. Else it is a risk.
	Breaks bool
	// Object is what was found, as ip(8), nft(8) or sysctl(8) name it.
	Object string
	// Text says what follows from it, Remedy is a command that removes it.
	Text, Remedy string
}

func (f Finding) String() string {
	return fmt.Sprintf("%s: %s; to remove it: %s", f.Object, f.Text, f.Remedy)
}

// Findings are what is in flock's way, in a fixed order.
func (s Snapshot) Findings() (all []Finding) {
	all = append(all, s.shadows()...)
	all = append(all, s.policies()...)
	all = append(all, s.overlaps()...)
	all = append(all, s.taken()...)
	all = append(all, s.firewalls()...)
	all = append(all, s.attached()...)
	all = append(all, s.settings()...)
	all = append(all, s.proxy()...)
	all = append(all, s.leftovers()...)
	return append(all, s.leftRules()...)
}

// shadows are routes to the same prefix as one of flock's that the kernel prefers: packets take
// them, and BIRD, which has one route for a prefix, does not announce flock's. The route that
// the kernel itself makes for an address is left to taken, which names its cause: it comes
// some time after the address, and goes with it.
func (s Snapshot) shadows() (all []Finding) {
	const kernelProtocol = 2 // RTPROT_KERNEL
	taken := map[netip.Addr]bool{}
	for _, a := range s.takenAddrs() {
		taken[a.Prefix.Addr()] = true
	}
	for _, own := range s.Own {
		i := slices.IndexFunc(s.Foreign, func(r rtnl.Route) bool {
			if r.Proto == kernelProtocol && r.Dst.IsSingleIP() && taken[r.Dst.Addr()] {
				return false
			}
			return r.Proto != kernel.RouteProtocol && r.Dst == own.Dst && r.Metric < own.Metric
		})
		if i < 0 || slices.ContainsFunc(all, func(f Finding) bool { return f.Object == route(s.Foreign[i]) }) {
			continue
		}
		r := s.Foreign[i]
		f := Finding{Breaks: true, Object: route(r), Remedy: remedy(r)}
		switch {
		case own.Type == rtnl.Unreachable:
			f.Text = fmt.Sprintf("a route of another program wins over the summary %v: BIRD does not announce it, and no router sends packets to the node's pods", own.Dst)
		case own.Link != 0 && own.Link == s.service():
			f.Text = fmt.Sprintf("a route of another program wins over the one of the Service address %v: it is not announced", own.Dst)
		default:
			f.Text = fmt.Sprintf("a route of another program wins over the one to the pod with %v: packets take it, and the address is not announced", own.Dst.Addr())
		}
		all = append(all, f)
	}
	return all
}

// service is the index of the link that the routes to Services' addresses are on, 0 if there
// is none.
func (s Snapshot) service() int {
	for _, l := range s.Links {
		if l.Name == kernel.ServiceLink {
			return l.Index
		}
	}
	return 0
}

// policies are rules of the routing policy that keep packets from flock's routes, which are in
// the main table.
func (s Snapshot) policies() (all []Finding) {
	for _, ipv6 := range []bool{true, false} {
		option := "-4"
		if ipv6 {
			option = "-6"
		}
		var main uint32 // the priority of the rule that leads everything to the main table
		found := false
		for _, r := range s.Rules {
			if r.IPv6 == ipv6 && !found && r.Action == rtnl.RuleToTable && r.Table == mainTable && matchesAll(r) {
				main, found = r.Priority, true
			}
		}
		if !found && slices.ContainsFunc(s.Rules, func(r rtnl.Rule) bool { return r.IPv6 == ipv6 }) {
			all = append(all, Finding{
				Breaks: true, Object: "ip " + option + " rule",
				Text:   "no rule leads all packets to the main table, which has the routes to pods: no packet reaches them",
				Remedy: fmt.Sprintf("ip %s rule add priority 32766 table main", option),
			})
		}
		for _, r := range s.Rules {
			if r.IPv6 != ipv6 || found && r.Priority >= main || r.Selective || r.Table == localTable || r.Table == mainTable ||
				r.Action == rtnl.RuleGoto || r.Action == rtnl.RuleNop || r.In != "" && !kernel.IsLink(r.In) || r.Out != "" {
				continue
			}
			f := Finding{Breaks: true, Object: fmt.Sprintf("ip %s rule of priority %d", option, r.Priority), Remedy: fmt.Sprintf("ip %s rule del priority %d", option, r.Priority)}
			pods, ok := s.podsOf(r)
			switch {
			case r.Action != rtnl.RuleToTable && ok:
				f.Text = fmt.Sprintf("packets of or to %v match it, and are dropped or refused", pods)
			case r.Action == rtnl.RuleToTable && !r.Src.IsValid() && r.In == "" && s.leadsAway(r):
				f.Text = fmt.Sprintf("packets to %v take its table %d, not the main table, which has the routes to pods", pods, r.Table)
			default:
				continue
			}
			all = append(all, f)
		}
	}
	return all
}

// mainTable and localTable are RT_TABLE_MAIN and RT_TABLE_LOCAL.
const mainTable, localTable = 254, 255

// preRouting is NF_INET_PRE_ROUTING.
const preRouting = 0

func matchesAll(r rtnl.Rule) bool {
	return !r.Selective && !r.Src.IsValid() && !r.Dst.IsValid() && r.In == "" && r.Out == ""
}

// podsOf is one of flock's prefixes that a rule matches packets of or to.
func (s Snapshot) podsOf(r rtnl.Rule) (netip.Prefix, bool) {
	for _, own := range s.Own {
		src := !r.Src.IsValid() || r.Src.Overlaps(own.Dst)
		dst := !r.Dst.IsValid() || r.Dst.Overlaps(own.Dst)
		if own.Dst.Addr().Is6() == r.IPv6 && (r.Src.IsValid() && src || dst && !r.Src.IsValid()) {
			return own.Dst, true
		}
	}
	return netip.Prefix{}, false
}

// leadsAway says whether the kernel finds the way to a pod in the rule's table.
func (s Snapshot) leadsAway(r rtnl.Rule) bool {
	for p, table := range s.Tables {
		if table == r.Table && p.Addr().Is6() == r.IPv6 && (!r.Dst.IsValid() || r.Dst.Overlaps(p)) {
			return true
		}
	}
	return false
}

// taken are addresses of pods that the node has itself: packets to the pod end at the node.
func (s Snapshot) taken() (all []Finding) {
	names := map[int]string{}
	for _, l := range s.Links {
		names[l.Index] = l.Name
	}
	for _, a := range s.takenAddrs() {
		name := names[a.Link]
		if name == "" { // the link has come since
			continue
		}
		all = append(all, Finding{
			Breaks: true, Object: fmt.Sprintf("address %v dev %s", a.Prefix, name),
			Text:   "it is a pod's address: the node answers in the place of the pod",
			Remedy: fmt.Sprintf("ip address del %v dev %s", a.Prefix, name),
		})
	}
	return all
}

// takenAddrs are the addresses of pods that the node has.
func (s Snapshot) takenAddrs() (all []rtnl.Addr) {
	pods := map[netip.Addr]bool{}
	for _, own := range s.Own {
		// The node may well have a Service's address: kube-proxy puts it on a link (IPVS).
		if own.Type == rtnl.Unicast && own.Dst.IsSingleIP() && (own.Link == 0 || own.Link != s.service()) {
			pods[own.Dst.Addr()] = true
		}
	}
	for _, a := range s.Addrs {
		if pods[a.Prefix.Addr()] {
			all = append(all, a)
		}
	}
	return all
}

// attached are what other programs attached to pods' links and uplinks: XDP programs, queueing
// disciplines and programs of BPF, which see packets outside of nftables; and programs that
// see connections before there is a packet.
func (s Snapshot) attached() (all []Finding) {
	links := map[int]rtnl.Link{}
	for _, l := range s.Links {
		links[l.Index] = l
		if l.XDP && (kernel.IsLink(l.Name) || s.Uplinks[l.Index]) {
			all = append(all, Finding{
				Object: "XDP program on " + l.Name,
				Text:   programSees(l.Name),
				Remedy: fmt.Sprintf("ip link set %s xdp off", l.Name),
			})
		}
	}
	for _, q := range s.Qdiscs {
		name, where := links[q.Link].Name, "root"
		if q.Kind == "clsact" || q.Kind == "ingress" {
			where = q.Kind
		}
		if !kernel.IsLink(name) {
			all = append(all, Finding{
				Object: fmt.Sprintf("queueing discipline %s on %s", q.Kind, name),
				Text:   "it is a hook for programs, which " + seePackets,
				Remedy: fmt.Sprintf("if they are not meant to be there (tc filter show dev %[1]s ingress, and egress): tc qdisc del dev %[1]s clsact", name),
			})
			continue
		}
		all = append(all, Finding{
			Object: fmt.Sprintf("queueing discipline %s on %s", q.Kind, name),
			Text:   "another program delays, drops or redirects packets of the pod",
			Remedy: fmt.Sprintf("if it is not meant to be there: tc qdisc del dev %s %s", name, where),
		})
	}
	for _, name := range s.Programs {
		all = append(all, Finding{
			Object: "BPF program on " + name, Text: programSees(name),
			Remedy: fmt.Sprintf("bpftool net show dev %s names it; it goes when its owner's pins in /sys/fs/bpf are removed, and at a reboot", name),
		})
	}
	if s.Connect {
		all = append(all, Finding{
			Object: "BPF program at connect(2)",
			Text:   "it may lead connections of pods to Services past kube-proxy: where the network plugin that it is of has ended, to pods that are no more",
			Remedy: "bpftool cgroup tree names it; it goes when its owner's pins in /sys/fs/bpf are removed, and at a reboot",
		})
	}
	return all
}

// seePackets is what programs on an uplink may do.
const seePackets = "see all packets of the uplink before flock's tables and the routes, and may drop or redirect them: of a firewall, or left by another network plugin"

// programSees says what a program on a link may do.
func programSees(link string) string {
	if kernel.IsLink(link) {
		return "it sees the packets of the pod before flock's source guard and network policies, and may drop or redirect them"
	}
	return "it may " + seePackets
}

func route(r rtnl.Route) string {
	return fmt.Sprintf("%v proto %s metric %d", r, protocol(r.Proto), r.Metric)
}

func remedy(r rtnl.Route) string {
	return fmt.Sprintf("ip route del %v proto %s metric %d", r, protocol(r.Proto), r.Metric)
}

// protocol is what ip(8) calls a route's protocol (iproute2's rt_protos).
func protocol(p uint8) string {
	names := map[uint8]string{2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird", 16: "dhcp", 186: "bgp", 188: "ospf"}
	if name, ok := names[p]; ok {
		return name
	}
	return fmt.Sprint(p)
}

// overlaps are pod CIDRs that have addresses of the node's own links in them: a pod may get the
// address of another node, and packets to the node's neighbours end at the node.
func (s Snapshot) overlaps() (all []Finding) {
	names := map[int]string{}
	for _, l := range s.Links {
		if !l.Loopback && !kernel.IsLink(l.Name) {
			names[l.Index] = l.Name
		}
	}
	for _, own := range s.Own {
		if own.Type != rtnl.Unreachable {
			continue
		}
		for _, a := range s.Addrs {
			subnet := a.Prefix.Masked()
			if names[a.Link] == "" || a.Prefix.Addr().IsLinkLocalUnicast() || subnet.IsSingleIP() || !subnet.Overlaps(own.Dst) {
				continue
			}
			all = append(all, Finding{
				Breaks: true, Object: fmt.Sprintf("address %v dev %s", a.Prefix, names[a.Link]),
				Text:   fmt.Sprintf("the link's subnet overlaps the pod CIDR %v: a pod may get the address of another machine on the link, and that machine is cut off", own.Dst),
				Remedy: "give the node a pod CIDR outside of the subnet (spec.podCIDRs of its NodeConfig)",
			})
		}
	}
	return all
}

// ends matches a rule that drops or rejects whatever comes to it.
var ends = regexp.MustCompile(`^(\[(counter|log)[^]]*\])*(\[reject[^]]*\]|\[immediate [^]]*=0/\])$`)

// matchesAddress finds the values that a rule compares source and destination addresses with:
// those at these offsets in the IP header.
var matchesAddress = regexp.MustCompile(`\[payload[^]]* 3=000000(?:0c|10|08|18)[^]]*\](?:\[bitwise[^]]*\])?\[cmp[^]]* 3=([0-9a-f]{2})`)

// knowsPods says whether a rule names flock's links, or addresses that begin as those of a pod
// CIDR do. Whoever wrote it is taken to have thought of pods.
func (s Snapshot) knowsPods(rule string) bool {
	if strings.Contains(rule, fmt.Sprintf("%x", kernel.LinkPrefix)) {
		return true
	}
	for _, m := range matchesAddress.FindAllStringSubmatch(rule, -1) {
		if s.isPodNet(m[1]) {
			return true
		}
	}
	return false
}

// isPodNet says whether a pod CIDR begins with a byte, in hexadecimal.
func (s Snapshot) isPodNet(first string) bool {
	return slices.ContainsFunc(s.Own, func(own rtnl.Route) bool {
		return own.Type == rtnl.Unreachable && first == fmt.Sprintf("%02x", own.Dst.Addr().AsSlice()[0])
	})
}

// legacyKnowsPods is knowsPods for a rule of iptables-legacy.
func (s Snapshot) legacyKnowsPods(r xtables.Rule) bool {
	for _, link := range []string{r.In, r.Out} {
		if strings.HasPrefix(link, kernel.LinkPrefix) {
			return true
		}
	}
	for _, p := range []netip.Prefix{r.Src, r.Dst} {
		if p.IsValid() && s.isPodNet(fmt.Sprintf("%02x", p.Addr().AsSlice()[0])) {
			return true
		}
	}
	return false
}

const firewall = "a firewall drops forwarded packets that none of its rules accepts, and none of them names the links or the addresses of pods: pods may be unreachable from outside of the node, and from each other"

// cutsOff matches a rule that drops or rejects all packets to or from flock's links.
var cutsOff = regexp.MustCompile(`^\[meta [^]]*\]\[cmp [^]]*3=` + fmt.Sprintf("%x", kernel.LinkPrefix) + `[^]]*\](\[(counter|log)[^]]*\])*(\[reject[^]]*\]|\[immediate [^]]*=0/\])$`)

// firewalls are chains that drop what they do not know, and do not know pods, and rules
// that cut pods off.
func (s Snapshot) firewalls() (all []Finding) {
	for _, c := range s.Forward {
		if slices.ContainsFunc(c.Rules, cutsOff.MatchString) {
			all = append(all, Finding{
				Breaks: true, Object: "chain " + c.String(),
				Text:   "one of its rules drops all packets of pods",
				Remedy: fmt.Sprintf("look for it with: nft -a list chain %v; and delete it with: nft delete rule %v handle HANDLE", c.Chain, c.Chain),
			})
			continue
		}
		if !c.drops() || c.Table.Family != nft.NetDev && slices.ContainsFunc(c.All, s.knowsPods) {
			continue
		}
		f := Finding{Breaks: true, Object: "chain " + c.String()}
		f.Text = firewall
		if c.Table.Family == nft.NetDev {
			f.Text = fmt.Sprintf("it drops packets of pods: it is on %s", strings.Join(c.Devices, ", "))
			f.Remedy = fmt.Sprintf("nft delete chain %v", c.Chain)
			all = append(all, f)
			continue
		}
		if c.Table.Name == "filter" && c.Name == "FORWARD" { // of iptables
			tool := "iptables"
			if c.Table.Family == nft.IPv6 {
				tool = "ip6tables"
			}
			f.Remedy = fmt.Sprintf("%[1]s -I FORWARD -i %[2]s+ -j ACCEPT; %[1]s -I FORWARD -o %[2]s+ -j ACCEPT", tool, kernel.LinkPrefix)
		} else if c.Hook == preRouting { // it does not know where a packet goes
			rules := []string{fmt.Sprintf(`insert rule %v iifname "%s*" accept`, c.Chain, kernel.LinkPrefix)}
			for _, own := range s.Own {
				family, keyword := nft.IPv4, "ip"
				if own.Dst.Addr().Is6() {
					family, keyword = nft.IPv6, "ip6"
				}
				if own.Type == rtnl.Unreachable && (c.Table.Family == nft.Inet || c.Table.Family == family) {
					rules = append(rules, fmt.Sprintf("insert rule %v %s daddr %v accept", c.Chain, keyword, own.Dst))
				}
			}
			f.Remedy = fmt.Sprintf("nft '%s'", strings.Join(rules, "; "))
		} else {
			f.Remedy = fmt.Sprintf(`nft 'insert rule %[1]s iifname "%[2]s*" accept; insert rule %[1]s oifname "%[2]s*" accept'`, c.Chain.String(), kernel.LinkPrefix)
		}
		all = append(all, f)
	}
	for _, c := range s.Legacy {
		if c.Drops && !slices.ContainsFunc(c.Rules, s.legacyKnowsPods) {
			accept := fmt.Sprintf("%s -t %s -I FORWARD", c.Tool(), c.Table)
			all = append(all, Finding{
				Breaks: true, Object: "chain " + c.String(), Text: firewall,
				Remedy: fmt.Sprintf("%[1]s -i %[2]s+ -j ACCEPT; %[1]s -o %[2]s+ -j ACCEPT", accept, kernel.LinkPrefix),
			})
		}
	}
	return all
}

// settings are those of links that are not flock's to change.
func (s Snapshot) settings() (all []Finding) {
	if s.RPFilterAll != 0 {
		all = append(all, Finding{
			Object: fmt.Sprintf("net.ipv4.conf.all.rp_filter=%d", s.RPFilterAll),
			Text:   "the kernel checks the source of pods' packets by its routes: answers from an anycast address are dropped once the address is withdrawn. flock's source guard does that check",
			Remedy: "sysctl -w net.ipv4.conf.all.rp_filter=0, and rp_filter on the uplinks instead",
		})
	}
	for _, l := range s.Links {
		if !s.Uplinks[l.Index] || kernel.IsLink(l.Name) {
			continue
		}
		if l.IPv4.Forwarding == 0 {
			all = append(all, Finding{
				Breaks: true, Object: fmt.Sprintf("net.ipv4.conf.%s.forwarding=0", l.Name),
				Text:   "IPv4 packets to pods that come in by this uplink are dropped",
				Remedy: fmt.Sprintf("sysctl -w net.ipv4.conf.%s.forwarding=1", l.Name),
			})
		}
		if len(s.Uplinks) > 1 && max(uint32(s.RPFilterAll), l.IPv4.RPFilter) == 1 {
			all = append(all, Finding{
				Object: fmt.Sprintf("net.ipv4.conf.%s.rp_filter=%d", l.Name, l.IPv4.RPFilter),
				Text:   "the node has several uplinks: IPv4 packets are dropped that come in by another one than the way back",
				Remedy: fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2", l.Name),
			})
		}
	}
	return all
}

// others are network plugins, by how the names of their links on the host begin.
var others = []struct{ prefix, plugin string }{
	{"cali", "Calico"}, {"vxlan.calico", "Calico"}, {"tunl0", "Calico"}, {"cilium_", "Cilium"}, {"lxc", "Cilium"},
	{"flannel.", "Flannel"}, {"cni0", "Flannel"}, {"weave", "Weave Net"}, {"kube-bridge", "kube-router"},
	{"antrea-", "Antrea"}, {"ovn-k8s-", "OVN-Kubernetes"}, {"coil", "Coil"},
}

// ipvsLink is kube-proxy's in its mode IPVS, with the addresses of all Services.
const ipvsLink = "kube-ipvs0"

// proxy is a kube-proxy in a mode that takes packets past what flock has for them.
func (s Snapshot) proxy() []Finding {
	if !slices.ContainsFunc(s.Links, func(l rtnl.Link) bool { return l.Name == ipvsLink }) {
		return nil
	}
	return []Finding{{
		Object: "link " + ipvsLink,
		Text:   "kube-proxy is in mode IPVS: packets to Services pass no network policy on this node, and it announces no Service",
		Remedy: "set mode nftables in the configuration of kube-proxy, and then: kube-proxy --cleanup",
	}}
}

// chainsOf are network plugins, by how the names of their chains begin.
var chainsOf = []struct {
	plugin   string
	prefixes []string
}{
	{"Calico", []string{"cali-"}}, {"Cilium", []string{"CILIUM_", "OLD_CILIUM_"}}, {"Flannel", []string{"FLANNEL-"}},
	{"kube-router", []string{"KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"}}, {"Weave Net", []string{"WEAVE-"}}, {"Antrea", []string{"ANTREA-"}},
}

// routers are network plugins, by the protocol number of the routes that they make.
var routers = []struct {
	protocol uint8
	plugin   string
}{{17, "kube-router"}, {80, "Calico"}}

// leftRules are chains of other network plugins, one of each plugin and program that shows it.
func (s Snapshot) leftRules() (all []Finding) {
	seen := map[string]bool{}
	look := func(object, tool, name string) {
		for _, o := range chainsOf {
			if !slices.ContainsFunc(o.prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) || seen[o.plugin+tool] {
				continue
			}
			seen[o.plugin+tool] = true
			all = append(all, Finding{
				Object: "chain " + object,
				Text:   fmt.Sprintf("it is %s's, which nobody changes any more: where a pod gets an address that one of %[1]s's had, its rules may drop or masquerade the packets", o.plugin),
				Remedy: fmt.Sprintf(`where no pod of %s's runs here any more: %s-save | grep -v -e %s | %[2]s-restore`, o.plugin, tool, strings.Join(o.prefixes, " -e ")),
			})
		}
	}
	for _, c := range s.Chains {
		switch c.Table.Family {
		case nft.IPv4:
			look(c.String(), "iptables", c.Name)
		case nft.IPv6:
			look(c.String(), "ip6tables", c.Name)
		}
	}
	for _, c := range s.LegacyChains {
		look(c.String(), c.Tool, c.Name)
	}
	names := map[int]string{}
	for _, l := range s.Links {
		names[l.Index] = l.Name
	}
	for _, o := range routers {
		var routes []rtnl.Route
		for _, r := range s.Left {
			if r.Proto != o.protocol {
				continue
			}
			// Of IPv4 there is one route for a prefix and metric: it took the kernel's place.
			i := slices.IndexFunc(s.Addrs, func(a rtnl.Addr) bool { return a.Prefix.Addr().Is4() && a.Prefix.Masked() == r.Dst })
			if i < 0 || r.Metric != 0 {
				routes = append(routes, r)
				continue
			}
			all = append(all, Finding{
				Object: route(r),
				Text:   fmt.Sprintf("%s put it in the place of the kernel's route to the subnet of %s: packets to its neighbors take a way round, and there is none without this route", o.plugin, names[s.Addrs[i].Link]),
				Remedy: fmt.Sprintf("ip route replace %v dev %s proto kernel scope link src %v", r.Dst, names[s.Addrs[i].Link], s.Addrs[i].Prefix.Addr()),
			})
		}
		if len(routes) > 0 {
			all = append(all, Finding{
				Object: fmt.Sprintf("%d route(s) of protocol %d, such as %v", len(routes), o.protocol, routes[0]),
				Text:   fmt.Sprintf("they are %s's, which withdraws none any more: they win over what the router knows, also where an address or a prefix has moved", o.plugin),
				Remedy: fmt.Sprintf("ip -4 route flush proto %d; ip -6 route flush proto %[1]d", o.protocol),
			})
		}
	}
	return all
}

// leftovers are links of other network plugins that are up.
func (s Snapshot) leftovers() (all []Finding) {
	seen := map[string]bool{}
	for _, l := range s.Links {
		for _, o := range others {
			if !strings.HasPrefix(l.Name, o.prefix) || !l.Up || seen[o.plugin] {
				continue
			}
			seen[o.plugin] = true
			all = append(all, Finding{
				Object: "link " + l.Name,
				Text:   fmt.Sprintf("it is %s's: its pods on this node are not flock's, and what it left may win over flock's routes and rules", o.plugin),
				Remedy: fmt.Sprintf("where no pod of %s's runs here any more: ip link del %s", o.plugin, l.Name),
			})
		}
	}
	return all
}
