package proxytest

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strings"
)

// Port is one port of a Service at one of its external addresses.
type Port struct {
	// Name is "namespace/name:port"; of a port without a name, "namespace/name:".
	Name string
	// Addr is an address of a load balancer, or an external IP.
	Addr     netip.Addr
	Protocol string // "tcp", "udp", "sctp"
	Port     uint16
	// Local is externalTrafficPolicy: Local.
	Local bool
	// Affinity is sessionAffinity: ClientIP.
	Affinity bool
	// Here are the endpoints on the node, Elsewhere those of other nodes.
	Here, Elsewhere []netip.AddrPort
}

func (p Port) all() []netip.AddrPort {
	return append(append([]netip.AddrPort{}, p.Here...), p.Elsewhere...)
}

// hash is what kube-proxy makes names of chains with.
func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base32.StdEncoding.EncodeToString(sum[:])
}

// family is what differs between IPv4 and IPv6.
type family struct {
	ip, addr string
	pods     netip.Prefix
}

func familyOf(pods netip.Prefix) family {
	if pods.Addr().Is4() {
		return family{"ip", "ipv4_addr", pods}
	}
	return family{"ip6", "ipv6_addr", pods}
}

// NFTables is input of nft -f that makes table kube-proxy of the family of pods, the cluster's
// pod CIDR, what kube-proxy in mode nftables makes it.
func NFTables(pods netip.Prefix, ports ...Port) string {
	f := familyOf(pods)
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("table %s kube-proxy { }\ndelete table %[1]s kube-proxy\ntable %[1]s kube-proxy {", f.ip)
	line("set cluster-ips { type %s; }", f.addr)
	line("set hairpin-connections { type %s . %[1]s . inet_proto . inet_service; }", f.addr)
	line("chain reject-chain { reject; }")
	serviceIPs, noEndpoints, hairpins := []string{}, []string{}, []string{}
	for _, p := range ports {
		base := strings.ReplaceAll(p.Name, ":", "/"+p.Protocol+"/")
		chain := func(prefix string) string { return prefix + "-" + hash(base)[:8] + "-" + base }
		key := fmt.Sprintf("%v . %s . %d", p.Addr, p.Protocol, p.Port)
		if len(p.all()) > 0 {
			serviceIPs = append(serviceIPs, key+" : goto "+chain("external"))
		}
		switch {
		case len(p.all()) == 0:
			noEndpoints = append(noEndpoints, key+" : goto reject-chain")
		case p.Local && len(p.Here) == 0:
			noEndpoints = append(noEndpoints, key+" : drop")
		}
		for _, e := range p.Here {
			hairpins = append(hairpins, fmt.Sprintf("%v . %[1]v . %s . %d", e.Addr(), p.Protocol, e.Port()))
		}
		if len(p.all()) == 0 {
			continue
		}
		endpointChain := func(e netip.AddrPort) string {
			name := base + "__" + strings.ReplaceAll(e.Addr().String(), ":", ".") + "/" + fmt.Sprint(e.Port())
			return "endpoint-" + hash(name)[:8] + "-" + name
		}
		if p.Affinity {
			for _, e := range p.all() {
				set := strings.Replace(endpointChain(e), "endpoint-", "affinity-", 1)
				line("set %s { type %s; flags dynamic,timeout; timeout 3h; }", set, f.addr)
				line("chain %s { update @%s { %s saddr }; meta l4proto %s dnat to %v; }", endpointChain(e), set, f.ip, p.Protocol, e)
			}
		}
		policy := func(prefix string, endpoints []netip.AddrPort) {
			if len(endpoints) == 0 {
				return
			}
			line("chain %s {", chain(prefix))
			var elements []string
			for i, e := range endpoints {
				if p.Affinity {
					line("%s saddr @%s goto %s", f.ip, strings.Replace(endpointChain(e), "endpoint-", "affinity-", 1), endpointChain(e))
					elements = append(elements, fmt.Sprintf("%d : goto %s", i, endpointChain(e)))
				} else {
					elements = append(elements, fmt.Sprintf("%d : %v . %d", i, e.Addr(), e.Port()))
				}
			}
			switch {
			case p.Affinity:
				line("numgen random mod %d vmap { %s }", len(endpoints), strings.Join(elements, ", "))
			case len(endpoints) == 1:
				line("meta l4proto %s dnat to %v", p.Protocol, endpoints[0])
			default:
				line("meta l4proto %s dnat %s addr . port to numgen random mod %d map { %s }", p.Protocol, f.ip, len(endpoints), strings.Join(elements, ", "))
			}
			line("}")
		}
		policy("service", p.all())
		if p.Local {
			policy("local", p.Here)
		}
		const masquerade = "mark set mark or 0x4000"
		line("chain %s {", chain("external"))
		switch {
		case !p.Local:
			line("%s\ngoto %s", masquerade, chain("service"))
		default:
			line("%s saddr %v goto %s", f.ip, f.pods, chain("service"))
			line("fib saddr type local %s", masquerade)
			line("fib saddr type local goto %s", chain("service"))
			if len(p.Here) > 0 {
				line("goto %s", chain("local"))
			}
		}
		line("}")
	}
	mapOf := func(name, kind string, elements []string) {
		line("map %s { type %s : verdict", name, kind)
		if len(elements) > 0 {
			line("elements = { %s }", strings.Join(elements, ", "))
		}
		line("}")
	}
	kind := f.addr + " . inet_proto . inet_service"
	mapOf("no-endpoint-services", kind, noEndpoints)
	mapOf("service-ips", kind, serviceIPs)
	line("chain service-endpoints-check { %s daddr . meta l4proto . th dport vmap @no-endpoint-services; }", f.ip)
	line("chain services { %s daddr . meta l4proto . th dport vmap @service-ips; }", f.ip)
	line("chain masquerading {\nmark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random")
	line("ct status dnat %s saddr . %[1]s daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random\n}", f.ip)
	for _, hook := range []string{"input", "forward", "output"} {
		line("chain filter-%s { type filter hook %[1]s priority filter; ct state new jump service-endpoints-check; }", hook)
	}
	line("chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }")
	line("chain nat-output { type nat hook output priority -100; jump services; }")
	line("chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }\n}")
	for _, e := range hairpins {
		line("add element %s kube-proxy hairpin-connections { %s }", f.ip, e)
	}
	return b.String()
}

// IPTables is input of iptables-restore, or of ip6tables-restore for a pod CIDR of IPv6, that
// makes the tables filter and nat what kube-proxy in mode iptables makes them.
func IPTables(pods netip.Prefix, ports ...Port) string {
	f := familyOf(pods)
	var filter, nat, chains []string
	rule := func(to *[]string, format string, args ...any) { *to = append(*to, "-A "+fmt.Sprintf(format, args...)) }
	chain := func(name string) string {
		chains = append(chains, name)
		return name
	}
	comment := func(s string) string { return fmt.Sprintf(`-m comment --comment "%s"`, s) }
	for _, p := range ports {
		p.Name = strings.TrimSuffix(p.Name, ":")
		id := hash(p.Name + p.Protocol)[:16]
		single := netip.PrefixFrom(p.Addr, p.Addr.BitLen())
		to := fmt.Sprintf("-m %s -p %[1]s -d %v --dport %d", p.Protocol, single, p.Port)
		switch {
		case len(p.all()) == 0:
			rule(&filter, `KUBE-EXTERNAL-SERVICES %s %s -j REJECT`, comment(p.Name+" has no endpoints"), to)
			continue
		case p.Local && len(p.Here) == 0:
			rule(&filter, `KUBE-EXTERNAL-SERVICES %s %s -j DROP`, comment(p.Name+" has no local endpoints"), to)
		}
		ext, svc := chain("KUBE-EXT-"+id), chain("KUBE-SVC-"+id)
		rule(&nat, "KUBE-SERVICES %s %s -j %s", comment(p.Name+" loadbalancer IP"), to, ext)
		local := ""
		if p.Local {
			rule(&nat, "%s %s -s %v -j %s", ext, comment("pod traffic for "+p.Name+" external destinations"), f.pods, svc)
			rule(&nat, "%s %s -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ", ext, comment("masquerade LOCAL traffic for "+p.Name+" external destinations"))
			rule(&nat, "%s %s -m addrtype --src-type LOCAL -j %s", ext, comment("route LOCAL traffic for "+p.Name+" external destinations"), svc)
			if len(p.Here) > 0 {
				local = chain("KUBE-SVL-" + id)
				rule(&nat, "%s -j %s", ext, local)
			}
		} else {
			rule(&nat, "%s %s -j KUBE-MARK-MASQ", ext, comment("masquerade traffic for "+p.Name+" external destinations"))
			rule(&nat, "%s -j %s", ext, svc)
		}
		sep := func(e netip.AddrPort) string { return "KUBE-SEP-" + hash(p.Name + p.Protocol + e.String())[:16] }
		spread := func(from string, endpoints []netip.AddrPort) {
			if p.Affinity {
				for _, e := range endpoints {
					rule(&nat, "%s %s -m recent --name %s --rcheck --seconds 10800 --reap -j %[3]s", from, comment(p.Name+" -> "+e.String()), sep(e))
				}
			}
			for i, e := range endpoints {
				random := ""
				if left := len(endpoints) - i; left > 1 {
					random = fmt.Sprintf("-m statistic --mode random --probability %.10f ", 1/float64(left))
				}
				rule(&nat, "%s %s %s-j %s", from, comment(p.Name+" -> "+e.String()), random, sep(e))
			}
		}
		spread(svc, p.all())
		if local != "" {
			spread(local, p.Here)
		}
		for _, e := range p.all() {
			c := chain(sep(e))
			rule(&nat, "%s %s -s %v -j KUBE-MARK-MASQ", c, comment(p.Name), e.Addr())
			recent := ""
			if p.Affinity {
				recent = fmt.Sprintf("-m recent --name %s --set ", c)
			}
			rule(&nat, "%s %s %s-m %s -p %[4]s -j DNAT --to-destination %v", c, comment(p.Name), recent, p.Protocol, e)
		}
	}
	var b strings.Builder
	line := func(s string) { b.WriteString(s + "\n") }
	table := func(name string, builtin, own []string) {
		line("*" + name)
		for _, c := range builtin {
			line(":" + c + " ACCEPT [0:0]")
		}
		for _, c := range own {
			line(":" + c + " - [0:0]")
		}
	}
	table("filter", []string{"INPUT", "FORWARD", "OUTPUT"}, []string{"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD"})
	new := "-m conntrack --ctstate NEW"
	line("-A INPUT " + new + " -j KUBE-EXTERNAL-SERVICES")
	line("-A FORWARD -j KUBE-FORWARD")
	line("-A FORWARD " + new + " -j KUBE-SERVICES")
	line("-A FORWARD " + new + " -j KUBE-EXTERNAL-SERVICES")
	line("-A OUTPUT " + new + " -j KUBE-SERVICES")
	line("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP")
	line("-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT")
	line("-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	for _, r := range filter {
		line(r)
	}
	line("COMMIT")
	table("nat", []string{"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}, append([]string{"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"}, chains...))
	line("-A PREROUTING -j KUBE-SERVICES")
	line("-A OUTPUT -j KUBE-SERVICES")
	line("-A POSTROUTING -j KUBE-POSTROUTING")
	line("-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN")
	line("-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0")
	line("-A KUBE-POSTROUTING -j MASQUERADE --random-fully")
	line("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000")
	for _, r := range nat {
		line(r)
	}
	line("-A KUBE-SERVICES " + comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain") + " -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
	line("COMMIT")
	return b.String()
}
