package bird

import (
	"net/netip"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/routing"
)

// martians are not routed, whoever says so (RFC 6890, RFC 7454 section 6.1).
// Private and documentation prefixes are not among them: they are routed inside
// a site, and in a lab.
var martians = []netip.Prefix{
	netip.MustParsePrefix("::/8"),      // unspecified, loopback, IPv4-mapped
	netip.MustParsePrefix("fe80::/10"), // link-local
	netip.MustParsePrefix("fec0::/10"), // site-local, RFC 3879
	netip.MustParsePrefix("ff00::/8"),  // multicast
	netip.MustParsePrefix("0.0.0.0/8"), // this network
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"), // link-local
	netip.MustParsePrefix("224.0.0.0/3"),    // multicast, class E, broadcast
}

// renderNever writes the prefixes that no peer may give the node.
func renderNever(c *conf, in routing.Intent) {
	c.add(never)
	for _, f := range families {
		var all list
		for _, ps := range [][]netip.Prefix{martians, in.OnLink, in.Own} {
			for _, p := range ps {
				if f.has(p) {
					all = append(all, match{Prefix: p, Min: p.Bits(), Max: p.Addr().BitLen()})
				}
			}
		}
		c.add("define flock_never%s = [ %s ];\n", f, all)
	}
}

const never = `
# Never taken from a peer, with all that is more specific: what is not routed, the
# subnets of this node's links, its pod CIDRs.
`

// renderImport writes the import side of a channel. Further are statements of
// the protocol's own on what is accepted.
func renderImport(c *conf, i config.Import, f family, further string) {
	if !i.Any() {
		c.add("\t\timport none;\n")
		return
	}
	c.add("\t\timport filter {\n\t\t\tif net ~ flock_never%s then reject;\n", f)
	switch i.Policy {
	case v1alpha1.ImportAll:
	case v1alpha1.ImportPrefixes:
		var wanted list
		for _, m := range i.Prefixes {
			if f.has(m.Prefix) {
				wanted = append(wanted, match(m))
			}
		}
		if len(wanted) == 0 {
			c.add("\t\t\treject;\n\t\t};\n")
			return
		}
		c.add("\t\t\tif !(net ~ [ %s ]) then reject;\n", wanted)
	default:
		c.add("\t\t\tif net.len > 0 then reject;\n")
	}
	c.add(further + "\t\t\taccept;\n\t\t};\n")
	c.add("\t\timport limit %s action %s;\n", number(i.MaxPrefixes), limitAction(i.MaxPrefixesAction))
}

// limitAction is BIRD's word for what happens above a limit.
func limitAction(a v1alpha1.MaxPrefixesAction) symbol {
	switch a {
	case v1alpha1.MaxPrefixesWarn:
		return symbol{"warn"}
	case v1alpha1.MaxPrefixesRestart:
		return symbol{"restart"}
	case v1alpha1.MaxPrefixesDisable:
		return symbol{"disable"}
	}
	return symbol{"block"}
}

// exportable lets pass only what came from the kernel, and never a default route
// (RFC 8212: nothing without a policy).
const exportable = "\t\texport filter {\n\t\t\tif source != RTS_INHERIT || net.len = 0 then reject;\n"

// withoutAnycast rejects the routes to anycast addresses, which are host routes, and those to
// Services' addresses.
const withoutAnycast = "\t\t\tif net.len = %s && krt_metric = %s || krt_metric = %s then reject;\n"

func renderWithoutAnycast(c *conf, f family) {
	c.add(withoutAnycast, number(f.bits()), number(kernel.MetricAnnounced), number(kernel.MetricService))
}

// renderExport writes the export side of a BGP channel. With pools, the routes of
// their addresses get what those say.
func renderExport(c *conf, p config.BGPPeer, f family, pools, shutdown, departing bool) {
	c.add(exportable)
	if departing {
		renderWithoutAnycast(c, f)
	}
	e := p.Export
	renderAttributes(c, "\t\t\t", e, "")
	switch {
	case pools && e.Prepend > 0:
		c.add("\t\t\tif !flock_pools%s(%s, %s) then {\n", f, number(p.LocalAS), boolean(p.Internal()))
		renderPrepend(c, "\t\t\t\t", e.Prepend, number(p.LocalAS))
		c.add("\t\t\t}\n")
	case pools:
		c.add("\t\t\tflock_pools%s(%s, %s);\n", f, number(p.LocalAS), boolean(p.Internal()))
	default:
		renderPrepend(c, "\t\t\t", e.Prepend, number(p.LocalAS))
	}
	if shutdown || departing {
		c.add("\t\t\tbgp_community.add(%s);\n", community(config.GracefulShutdown))
		c.addIf(p.Internal(), "\t\t\tbgp_local_pref = 0;\n")
	}
	c.add("\t\t\taccept;\n\t\t};\n")
}

// renderAttributes writes all but the prepended AS. LocalPreference comes after
// ifInternal.
func renderAttributes(c *conf, indent string, e config.Export, ifInternal string) {
	for _, v := range e.Communities {
		c.add(indent+"bgp_community.add(%s);\n", community(v))
	}
	for _, v := range e.LargeCommunities {
		c.add(indent+"bgp_large_community.add(%s);\n", large(v))
	}
	if e.LocalPreference != nil {
		c.add(indent+ifInternal+"bgp_local_pref = %s;\n", number(*e.LocalPreference))
	}
	if e.MED != nil {
		c.add(indent+"bgp_med = %s;\n", number(*e.MED))
	}
}

func renderPrepend(c *conf, indent string, times int, as term) {
	for range times {
		c.add(indent+"bgp_path.prepend(%s);\n", as)
	}
}
