package bird

import (
	"time"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

// Timers that no field sets. BIRD's own are an internet router's: it would
// wait 5 s before it connects and 60 to 300 s after an error.
const (
	startupHoldTime = 30 * time.Second
	connectDelay    = 1 * time.Second
	errorWaitMin    = 1 * time.Second
	errorWaitMax    = 30 * time.Second
	errorForget     = 60 * time.Second
)

// renderBGP writes the sessions, and the protocols that they need beside them.
func renderBGP(c *conf, in routing.Intent) {
	renderNextHopTables(c, in.BGP)
	renderAdvertisements(c, in.BGP)
	pools := renderPools(c, in.Pools)
	for _, p := range in.BGP.Peers {
		p.Source = in.Source(p)
		renderPeer(c, in, p, pools)
	}
}

// renderNextHopTables writes tables with the subnets of the node's links, in
// which next hops are looked up that a peer behind other routers names.
func renderNextHopTables(c *conf, b *config.BGP) {
	for _, p := range b.Peers {
		if p.Multihop > 0 && p.Import.Any() {
			c.add(nextHopTables)
			return
		}
	}
}

const nextHopTables = `
ipv6 table onlink6;
ipv4 table onlink4;
protocol direct {
	ipv6 { table onlink6; import all; };
	ipv4 { table onlink4; import all; };
}
`

// renderAdvertisements writes the router advertisements by which an unnumbered
// peer learns the node's link-local address. They offer neither a default route
// nor a prefix.
func renderAdvertisements(c *conf, b *config.BGP) {
	first := true
	for _, p := range b.Peers {
		if p.Addr.IsValid() {
			continue
		}
		c.addIf(first, "\nprotocol radv {\n\tprefix ::/0 { skip; };\n")
		first = false
		c.add(advertisement, interfaceName(p.Interface))
	}
	c.addIf(!first, "}\n")
}

const advertisement = `	interface %s {
		min ra interval 3;
		max ra interval 10;
		default lifetime 0;
	};
`

func renderPeer(c *conf, in routing.Intent, p config.BGPPeer, pools map[family]bool) {
	c.add("\nprotocol bgp %s {\n\tlocal", peerSymbol(p.Name))
	c.addIf(in.BGP.ListenPort != config.DefaultBGPPort, " port %s", number(in.BGP.ListenPort))
	c.add(" as %s;\n", number(p.LocalAS))
	renderNeighbor(c, p)
	c.addIf(p.Disabled, "\tdisabled;\n")
	if p.Password != nil {
		if pw, ok := in.Passwords[*p.Password]; ok {
			c.add("\tpassword %s;\n", secret(pw))
		} else {
			c.addIf(!p.Disabled, "\tdisabled; # its password is not known yet\n")
		}
	}
	c.addIf(p.TTLSecurity, "\tttl security on;\n")
	c.addIf(p.Passive && p.Addr.IsValid(), "\tpassive on;\n")
	c.add(timers, seconds(p.Hold), seconds(p.Keepalive), seconds(startupHoldTime),
		seconds(connectDelay), seconds(p.ConnectRetry),
		seconds(errorWaitMin), seconds(errorWaitMax), seconds(errorForget))
	c.addIf(p.AllowASIn > 0, "\tallow local as %s;\n", number(p.AllowASIn))
	renderRestart(c, p.Restart)
	if p.BFD != nil {
		c.add("\tbfd {")
		renderBFDIntervals(c, *p.BFD)
		c.add(" };\n")
	}
	c.add("\tdebug { states };\n")
	for _, f := range families {
		if carries(p, f) {
			renderChannel(c, in, p, f, pools[f])
		}
	}
	c.add("}\n")
}

const timers = `	hold time %s;
	keepalive time %s;
	startup hold time %s;
	connect delay time %s;
	connect retry time %s;
	error wait time %s, %s;
	error forget time %s;
`

// renderNeighbor writes who the router is and how far away.
func renderNeighbor(c *conf, p config.BGPPeer) {
	if p.Addr.IsValid() {
		c.add("\tneighbor %s", addr(p.Addr))
		c.addIf(p.Port != config.DefaultBGPPort, " port %s", number(p.Port))
	} else {
		c.add("\tneighbor range fe80::/10")
	}
	if p.RemoteAS == 0 {
		c.add(" external;\n")
	} else {
		c.add(" as %s;\n", number(p.RemoteAS))
	}
	c.addIf(!p.Addr.IsValid(), "\tdynamic name %s;\n", quoted{dynamicPrefix(p.Name)})
	c.addIf(p.Interface != "", "\tinterface %s;\n", interfaceName(p.Interface))
	c.addIf(p.Source.IsValid(), "\tsource address %s;\n", addr(p.Source))
	if p.Multihop > 0 {
		c.add("\tmultihop %s;\n", number(p.Multihop))
	} else {
		c.add("\tdirect;\n")
	}
	// RFC 7454 section 7: only a route server hides its AS.
	c.addIf(!p.Internal(), "\tenforce first as on;\n")
}

// dynamicPrefix begins the names of the protocols that BIRD makes for the
// sessions of an unnumbered peer; a number follows.
func dynamicPrefix(name string) string { return "unnumbered_" + word(name) + "_" }

func renderRestart(c *conf, r config.GracefulRestart) {
	switch r.Mode {
	case v1alpha1.GracefulRestartDisabled:
		c.add("\tgraceful restart off;\n")
	case v1alpha1.GracefulRestartAware:
		c.add("\tgraceful restart aware;\n")
	default:
		c.add("\tgraceful restart on;\n\tgraceful restart time %s;\n", seconds(r.Restart))
		c.addIf(r.Stale > 0, "\tlong lived graceful restart on;\n\tlong lived stale time %s;\n", seconds(r.Stale))
	}
}

func renderChannel(c *conf, in routing.Intent, p config.BGPPeer, f family, pools bool) {
	c.add("\tipv%s {\n", f)
	renderImport(c, p.Import, f, sparing)
	renderExport(c, p, f, pools, in.BGP.GracefulShutdown || p.GracefulShutdown, in.Departing)
	c.add("\t\tnext hop self;\n")
	// RFC 8950: the pods' IPv4 needs none on the fabric. With a router that
	// cannot, BIRD falls back to the interface's IPv4 address.
	extended := f == ipv4 && !p.Addr.Is4()
	c.addIf(extended, "\t\textended next hop;\n")
	if p.Multihop > 0 && p.Import.Any() {
		c.add("\t\tigp table onlink%s;\n", f)
		c.addIf(extended, "\t\tigp table onlink6;\n")
	}
	switch {
	case p.AddPathsReceive && p.AddPathsSend:
		c.add("\t\tadd paths on;\n")
	case p.AddPathsReceive:
		c.add("\t\tadd paths rx;\n")
	case p.AddPathsSend:
		c.add("\t\tadd paths tx;\n")
	}
	c.add("\t};\n")
}

// sparing does as a router asks that is about to go (RFC 8326 section 4.2).
const sparing = "\t\t\tif (65535,0) ~ bgp_community then bgp_local_pref = 0;\n"

// carries reports whether a session carries the routes of a family.
func carries(p config.BGPPeer, f family) bool {
	return f == ipv6 && p.IPv6 || f == ipv4 && p.IPv4
}
