package bird

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/routing"
)

const (
	// kernelMetric of the routes that BIRD installs is above that of a
	// connected subnet (0, and 256 for IPv6) and below that of a default route
	// from a router advertisement (1024).
	kernelMetric = 300
	// scanTime bounds how long a lost netlink message goes unnoticed.
	scanTime = 10 * time.Second
	// recoveryWait bounds how long BIRD, started again, announces and withdraws
	// nothing because one of its peers has not come back. A peer that comes later
	// drops the node's routes for a moment. BIRD, FRR and GoBGP were seen back after
	// 1, 3 and 6 s; where the router opens the session, GoBGP after 10 s.
	recoveryWait        = 7 * time.Second
	recoveryWaitPassive = 15 * time.Second
	// ownPreference puts flock's routes above what any peer says (BGP 100,
	// OSPF 150), so that an anycast address which also another node announces
	// stays local and stays announced.
	ownPreference = 200
)

// dummyRouterID stands in where no protocol needs one: the IPv4 dummy address
// of RFC 7600.
var dummyRouterID = netip.AddrFrom4([4]byte{192, 0, 0, 8})

// Render writes the whole configuration of BIRD for in. Its last line defines
// flock_config as the digest of what stands above it, by which an Applier asks
// the daemon what it has loaded.
func Render(in routing.Intent) []byte {
	c := new(conf)
	c.add(header, addr(routerID(in)), seconds(recoveryTime(in)), seconds(scanTime))
	c.add(learn, number(kernel.RouteProtocol), number(kernel.MetricLocal), number(ownPreference))
	renderNever(c, in)
	for _, f := range families {
		renderKernel(c, in, f)
	}
	renderBFD(c, in)
	if in.BGP != nil {
		renderBGP(c, in)
	}
	if in.OSPF != nil {
		renderOSPF(c, in)
	}
	c.add(trailer, digestOf(c.Bytes()))
	return c.Bytes()
}

// routerID is BIRD's own. A protocol that has another says so itself.
func routerID(in routing.Intent) netip.Addr {
	switch {
	case in.BGP != nil:
		return in.BGP.RouterID
	case in.OSPF != nil:
		return in.OSPF.RouterID
	}
	return dummyRouterID
}

// recoveryTime is longer where the node cannot open all sessions itself.
func recoveryTime(in routing.Intent) time.Duration {
	if in.OSPF != nil || in.BGP != nil && slices.ContainsFunc(in.BGP.Peers, func(p config.BGPPeer) bool { return p.Passive || !p.Addr.IsValid() }) {
		return recoveryWaitPassive
	}
	return recoveryWait
}

const header = `# The configuration of BIRD on this node. flock-agent renders it from the node's
# NodeConfig and replaces it when that changes: edit the NodeConfig, not this file.
# "birdc -s bird.ctl show protocols all" in this directory shows its state.

log stderr all;
router id %s;
timeformat base iso long ms;
timeformat log iso long ms;
timeformat protocol iso long ms;
timeformat route iso long ms;

# A start of BIRD with -R is announced as a restart (RFC 4724): peers keep the
# node's routes meanwhile, and those in the kernel stay until all peers have
# answered, or so many seconds have passed.
graceful restart wait %s;

protocol device {
	scan time %s;
}
`

const learn = `
# What is announced comes from the kernel: routes that the agent has installed
# with its own protocol number. Routes of flock that stay on the node, those of
# single pods, bear the metric that is refused here.
filter flock_routes {
	if krt_source != %s then reject;
	if krt_metric = %s then reject;
	preference = %s;
	accept;
}
`

// renderKernel writes what couples BIRD with the kernel's routes of a family.
func renderKernel(c *conf, in routing.Intent, f family) {
	multipath := config.DefaultMultipath
	if in.BGP != nil {
		multipath = in.BGP.Multipath
	}
	c.add("\nprotocol kernel kernel%s {\n\tipv%s {\n\t\ttable master%s;\n\t\timport filter flock_routes;\n"+keepFiltered, f, f, f)
	bgp := in.BGP != nil && slices.ContainsFunc(in.BGP.Peers, func(p config.BGPPeer) bool { return p.Import.Any() && carries(p, f) })
	ospf := in.OSPF != nil && in.OSPF.Import.Any() && speaks(in.OSPF, f)
	if bgp || ospf {
		// A route with a next hop on no link is not installed in the kernel.
		// Otherwise it would be an unreachable route that hides the node's own.
		c.add("\t\texport filter {\n\t\t\tif dest != RTD_UNICAST then reject;\n")
		if bgp {
			c.add("\t\t\tif source = RTS_BGP then {%s accept; }\n", preferredSource(in.BGP.Sources, f))
		}
		if ospf {
			c.add("\t\t\tif source ~ [ RTS_OSPF, RTS_OSPF_IA, RTS_OSPF_EXT1, RTS_OSPF_EXT2 ] then {%s accept; }\n", preferredSource(in.OSPF.Sources, f))
		}
		c.add("\t\t\treject;\n\t\t};\n")
	} else {
		c.add("\t\texport none;\n")
	}
	// Never without merge paths, scan time or metric: a change of one of them
	// restarts the protocol, and every announcement would be withdrawn for a
	// moment. A limit may change.
	c.add(kernelEnd, number(kernelMetric), number(multipath), seconds(scanTime))
}

// preferredSource is the statement that makes the node send from its address of
// the family, or none.
func preferredSource(s config.Sources, f family) term {
	a := s.IPv6
	if f == ipv4 {
		a = s.IPv4
	}
	if !a.IsValid() {
		return symbol{}
	}
	return symbol{" krt_prefsrc = " + addr(a).term() + ";"}
}

// keepFiltered holds BIRD off freed memory. What it learns from the kernel points
// at the prefix in its table, also what the filter refuses; without this the table
// frees a prefix that has only such routes, after a while. Once one of them comes
// to be looked at again, as when the route to an anycast address goes and the one
// beside it stays, BIRD withdraws whatever it finds there instead: another
// address, or it ends with "unknown network type" (2.0.12 to 2.19.2).
const keepFiltered = `		# Else BIRD uses memory that it has freed: never without.
		import keep filtered;
`

const kernelEnd = `	};
	# Pods keep their routes while BIRD is away.
	learn;
	# A thousand addresses come or go at once, and none of it is left to the scan.
	netlink rx buffer 16777216;
	persist;
	graceful restart;
	# Routes from peers lose against a connected subnet.
	metric %s;
	merge paths on limit %s;
	scan time %s;
}
`

const (
	digestSymbol = "flock_config"
	trailer      = "\ndefine " + digestSymbol + " = \"%s\";\n"
)

type digest [sha256.Size]byte

func (d digest) term() string { return hex.EncodeToString(d[:]) }

func digestOf(conf []byte) digest { return sha256.Sum256(conf) }

// digestIn is the digest that BIRD knows conf by; "" if it has none.
func digestIn(conf []byte) string {
	end := len(conf) - len(trailer) + len("%s") - hex.EncodedLen(sha256.Size)
	if end < 0 {
		return ""
	}
	return digestOf(conf[:end]).term()
}
