package bird

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

// Timers of every BGP session. BIRD's own are an internet router's: it would
// find a dead neighbor after 240 s and wait 60 to 300 s after an error.
const (
	holdTime        = 9 * time.Second // RFC 4271 section 4.2: at least 3 s
	keepaliveTime   = 3 * time.Second // a third of it, RFC 4271 section 4.4
	startupHoldTime = 30 * time.Second
	connectDelay    = 1 * time.Second
	connectRetry    = 5 * time.Second
	errorWaitMin    = 1 * time.Second
	errorWaitMax    = 30 * time.Second
	errorForget     = 60 * time.Second
	restartTime     = 120 * time.Second // RFC 4724: how long the peer keeps our routes while BIRD restarts
	// recoveryWait bounds how long BIRD, started again, announces nothing new
	// because one of its peers has not come back.
	recoveryWait = 15 * time.Second
)

const (
	// kernelMetric of the routes that BIRD installs is above that of a
	// connected subnet (0, and 256 for IPv6) and below that of a default route
	// from a router advertisement (1024).
	kernelMetric = 300
	// scanTime bounds how long a lost netlink message goes unnoticed.
	scanTime = 10 * time.Second
	// ecmpLimit is the number of upstreams that traffic is spread over.
	ecmpLimit = 16
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
	routerID := dummyRouterID
	if in.BGP != nil {
		routerID = in.BGP.RouterID
	}
	c.add(header, addr(routerID), seconds(recoveryWait), seconds(scanTime))
	c.add(learn, number(routing.Protocol), number(routing.LocalMetric), number(ownPreference))
	for _, k := range families {
		c.add(kernel, k, k, k, k, number(kernelMetric), number(ecmpLimit), seconds(scanTime))
	}
	if in.BGP != nil {
		for _, p := range in.BGP.Peers {
			renderPeer(c, in.BGP, p)
		}
	}
	c.add(trailer, digestOf(c.Bytes()))
	return c.Bytes()
}

// family is a term: the digit that ends a family's names in BIRD.
type family uint8

const (
	ipv6 family = 6
	ipv4 family = 4
)

var families = []family{ipv6, ipv4}

func (f family) term() string { return string('0' + rune(f)) }

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

const kernel = `
protocol kernel kernel%s {
	ipv%s {
		table master%s;
		import filter flock_routes;
		export none;
	};
	# Pods keep their routes while BIRD is away.
	learn;
	persist;
	graceful restart;
	# IPv%s routes from peers, where they are asked for: never above a connected subnet.
	metric %s;
	merge paths on limit %s;
	scan time %s;
}
`

func renderPeer(c *conf, b *config.BGP, p config.BGPPeer) {
	c.add(peer, peerSymbol(p),
		number(b.LocalAS), addr(p.Addr), number(p.RemoteAS),
		seconds(holdTime), seconds(keepaliveTime), seconds(startupHoldTime),
		seconds(connectDelay), seconds(connectRetry),
		seconds(errorWaitMin), seconds(errorWaitMax), seconds(errorForget),
		seconds(restartTime))
	for _, f := range families {
		c.add(channel, f)
		if f == ipv4 && p.Addr.Is6() {
			// RFC 8950: the pods' IPv4 needs none on the fabric. With a peer
			// that cannot, BIRD falls back to the interface's IPv4 address.
			c.add("\t\textended next hop;\n")
		}
		c.add("\t};\n")
	}
	c.add("}\n")
}

const peer = `
protocol bgp %s {
	local as %s;
	neighbor %s as %s;
	direct;
	hold time %s;
	keepalive time %s;
	startup hold time %s;
	connect delay time %s;
	connect retry time %s;
	error wait time %s, %s;
	error forget time %s;
	graceful restart on;
	graceful restart time %s;
	debug { states };
`

// Only what came from the kernel is announced, and never a default route
// (RFC 8212: nothing without a policy).
const channel = `	ipv%s {
		import none;
		export where source = RTS_INHERIT && net.len > 0;
		next hop self;
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
