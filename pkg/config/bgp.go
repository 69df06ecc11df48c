package config

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Defaults of BGP. Each is the practice of data centre fabrics where the RFC
// leaves the choice; the RFC is named where it decides.
const (
	DefaultBGPPort      = 179
	DefaultHold         = 9 * time.Second
	DefaultConnectRetry = 5 * time.Second
	DefaultMultipath    = 16
	DefaultBFDInterval  = 100 * time.Millisecond
	DefaultBFDMultiply  = 3
	DefaultRestart      = 120 * time.Second
	DefaultMaxPrefixes  = 10000
)

// BGP is the node as a BGP speaker.
type BGP struct {
	LocalAS  uint32
	RouterID netip.Addr // IPv4
	Peers    []BGPPeer  // in the order given, names unique
	// ListenPort is the TCP port that the node listens on.
	ListenPort uint16
	// Multipath is how many equal routes are used at once, at least 1.
	Multipath int
	Sources   Sources
	// GracefulShutdown: every peer is to prefer other paths (RFC 8326).
	GracefulShutdown bool
}

// Sources are addresses that the node sends from on learned routes; invalid: the
// kernel chooses.
type Sources struct{ IPv6, IPv4 netip.Addr }

// BGPPeer is one router. Every default is in place.
type BGPPeer struct {
	Name string // [a-z][a-z0-9-]*
	// Addr of the router, without zone; invalid where Interface alone says
	// where it is.
	Addr netip.Addr
	// Interface towards the router; never "" where Addr is link-local or invalid.
	Interface string
	LocalAS   uint32
	RemoteAS  uint32     // 0: any but LocalAS
	Source    netip.Addr // of the session; invalid: that of the link
	Port      uint16
	Multihop  uint8 // hops to the router; 0: it is on the link
	// TTLSecurity is GTSM (RFC 5082).
	TTLSecurity bool
	// Password is where the TCP MD5 password is; nil for none.
	Password *SecretRef

	IPv6, IPv4 bool // the families of the session, at least one

	Hold, Keepalive, ConnectRetry time.Duration // whole seconds

	BFD              *BFD // nil if off
	Restart          GracefulRestart
	GracefulShutdown bool // RFC 8326

	Export Export
	Import Import
	// AllowASIn is how often LocalAS may stand in the path of a route from the router.
	AllowASIn uint8

	AddPathsReceive, AddPathsSend bool // RFC 7911
	Passive, Disabled             bool
}

// Internal reports whether the router is of the node's AS.
func (p BGPPeer) Internal() bool { return p.RemoteAS == p.LocalAS }

// SecretRef is a key of a Secret in flock's namespace.
type SecretRef struct{ Name, Key string }

// BFD is the detection of a dead path (RFC 5880).
type BFD struct {
	Receive, Transmit time.Duration // whole milliseconds
	Multiplier        uint8
}

// GracefulRestart is RFC 4724 and, with Stale, RFC 9494.
type GracefulRestart struct {
	Mode    v1alpha1.GracefulRestartMode
	Restart time.Duration // whole seconds
	Stale   time.Duration // whole seconds; 0: none
}

// Export is what goes with announced routes.
type Export struct {
	Communities      []Community
	LargeCommunities []LargeCommunity
	LocalPreference  *uint32 // nil for the default of 100; internal peers only
	MED              *uint32 // nil for none
	Prepend          int
}

// Community is one of RFC 1997.
type Community struct{ High, Low uint16 }

// LargeCommunity is one of RFC 8092.
type LargeCommunity struct{ Global, Local1, Local2 uint32 }

// GracefulShutdown is the community that asks to prefer other paths (RFC 8326).
var GracefulShutdown = Community{65535, 0}

// wellKnown are the communities with a name (IANA's registry).
var wellKnown = map[string]Community{
	"graceful-shutdown":   GracefulShutdown,
	"blackhole":           {65535, 666},   // RFC 7999
	"no-export":           {65535, 65281}, // RFC 1997
	"no-advertise":        {65535, 65282},
	"no-export-subconfed": {65535, 65283},
	"no-peer":             {65535, 65284}, // RFC 3765
}

func parseBGP(path *field.Path, b *v1alpha1.BGP, errs *field.ErrorList) *BGP {
	out := &BGP{
		LocalAS:          parseAS(path.Child("localAS"), b.LocalAS, errs),
		RouterID:         parseRouterID(path.Child("routerID"), b.RouterID, errs),
		ListenPort:       DefaultBGPPort,
		Multipath:        int(orDefault(b.Multipath, DefaultMultipath)),
		Sources:          parseSources(path.Child("sourceAddresses"), b.SourceAddresses, errs),
		GracefulShutdown: b.GracefulShutdown,
	}
	if b.ListenPort != 0 {
		between(path.Child("listenPort"), int64(b.ListenPort), 1, 65535, errs)
		out.ListenPort = uint16(b.ListenPort)
	}
	between(path.Child("multipath"), int64(out.Multipath), 1, 64, errs)
	if len(b.Peers) == 0 {
		*errs = append(*errs, field.Required(path.Child("peers"), "name at least one router, or leave spec.bgp out"))
	}
	names := map[string]bool{}
	for i, p := range b.Peers {
		at := path.Child("peers").Index(i)
		if names[p.Name] {
			*errs = append(*errs, field.Duplicate(at.Child("name"), p.Name))
		}
		names[p.Name] = true
		out.Peers = append(out.Peers, parsePeer(at, out.LocalAS, p, errs))
	}
	return out
}

func parseRouterID(path *field.Path, s string, errs *field.ErrorList) netip.Addr {
	id, err := netip.ParseAddr(s)
	if err != nil || !id.Is4() || id.IsUnspecified() {
		*errs = append(*errs, field.Invalid(path, s, "must be four decimal numbers, as in 192.0.2.1, and not 0.0.0.0 (RFC 6286)"))
	}
	return id
}

func parseSources(path *field.Path, s *v1alpha1.SourceAddresses, errs *field.ErrorList) Sources {
	if s == nil {
		return Sources{}
	}
	return Sources{
		IPv6: parseSource(path.Child("ipv6"), s.IPv6, netip.Addr.Is6, errs),
		IPv4: parseSource(path.Child("ipv4"), s.IPv4, netip.Addr.Is4, errs),
	}
}

// parseSource reads an address of the node itself; "" is none.
func parseSource(path *field.Path, s string, is func(netip.Addr) bool, errs *field.ErrorList) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !is(a) || netaddr.UnroutableReason(a) != "" {
		*errs = append(*errs, field.Invalid(path, s, "must be an address of the node of that family that others can reach, as in 2001:db8::11 or 192.0.2.11"))
	}
	return a
}

// ValidAS reports whether a speaker may have that AS: the reserved ones are 0 (RFC
// 7607), 23456 (RFC 6793), 65535 and 4294967295 (RFC 7300).
func ValidAS(as v1alpha1.ASNumber) bool {
	return as >= 1 && as <= 4294967294 && as != 23456 && as != 65535
}

func parseAS(path *field.Path, as v1alpha1.ASNumber, errs *field.ErrorList) uint32 {
	if !ValidAS(as) {
		*errs = append(*errs, field.Invalid(path, int64(as), "must be between 1 and 4294967294 and not 23456 or 65535, which are reserved (RFC 7607, 6793, 7300)"))
		return 0
	}
	return uint32(as)
}

// between refuses a number outside low to high.
func between(path *field.Path, n, low, high int64, errs *field.ErrorList) {
	if n < low || n > high {
		*errs = append(*errs, field.Invalid(path, n, fmt.Sprintf("must be between %d and %d", low, high)))
	}
}

// oneOf refuses a word that is not among allowed, the first of which may stand
// for none.
func oneOf[T comparable](path *field.Path, word T, errs *field.ErrorList, allowed ...T) {
	if slices.Contains(allowed, word) {
		return
	}
	var none T
	var names []string
	for _, a := range allowed {
		if a != none {
			names = append(names, fmt.Sprint(a))
		}
	}
	*errs = append(*errs, field.NotSupported(path, fmt.Sprint(word), names))
}

func orDefault[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
