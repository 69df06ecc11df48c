package bird

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

const (
	// kernelMetric of the routes that BIRD installs is above that of a
	// connected subnet (0, and 256 for IPv6) and below that of a default route
	// from a router advertisement (1024).
	kernelMetric = 300
	// scanTime bounds how long a lost netlink message goes unnoticed.
	scanTime = 10 * time.Second
	// recoveryWait bounds how long BIRD, started again, announces nothing new
	// because one of its peers has not come back.
	recoveryWait = 15 * time.Second
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
	bgp := in.BGP
	if bgp == nil {
		bgp = &config.BGP{RouterID: dummyRouterID, Multipath: 1}
	}
	c.add(header, addr(bgp.RouterID), seconds(recoveryWait), seconds(scanTime))
	c.add(learn, number(routing.Protocol), number(routing.LocalMetric), number(ownPreference))
	renderNever(c, in)
	for _, f := range families {
		renderKernel(c, bgp, f)
	}
	renderBGP(c, bgp, in.Passwords)
	c.add(trailer, digestOf(c.Bytes()))
	return c.Bytes()
}

const header = `# The configuration of BIRD on this node. flock-agent renders it from the node's
# NodeConfig and replaces it when that changes: edit the NodeConfig, not this file.
# "birdc -s bird.ctl show protocols all" in this directory shows what came of it.

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
func renderKernel(c *conf, b *config.BGP, f family) {
	source := b.SourceIPv6
	if f == ipv4 {
		source = b.SourceIPv4
	}
	takes := imports(b, f)
	if takes {
		c.add(fromPeers, f)
		c.addIf(source.IsValid(), "\tkrt_prefsrc = %s;\n", addr(source))
		c.add("\taccept;\n}\n")
	}
	c.add(kernel, f, f, f)
	if takes {
		c.add("\t\texport filter flock_from_peers%s;\n", f)
	} else {
		c.add("\t\texport none;\n")
	}
	// Never without merge paths, scan time or metric: a change of one of them
	// restarts the protocol, and every announcement would be withdrawn for a
	// moment. A limit may change.
	c.add(kernelEnd, number(kernelMetric), number(b.Multipath), seconds(scanTime))
}

// imports tells whether any peer may give the node routes of a family.
func imports(b *config.BGP, f family) bool {
	for _, p := range b.Peers {
		if p.Import.Any() && carries(p, f) {
			return true
		}
	}
	return false
}

const fromPeers = `
# A route whose next hop is on no link becomes none in the kernel, rather than an
# unreachable one that hides the node's own.
filter flock_from_peers%s {
	if source != RTS_BGP || dest != RTD_UNICAST then reject;
`

const kernel = `
protocol kernel kernel%s {
	ipv%s {
		table master%s;
		import filter flock_routes;
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
