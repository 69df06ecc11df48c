package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

func parsePeer(at *field.Path, nodeAS uint32, p v1alpha1.BGPPeer, errs *field.ErrorList) BGPPeer {
	out := BGPPeer{
		Name:             p.Name,
		Interface:        p.Interface,
		LocalAS:          nodeAS,
		Port:             DefaultBGPPort,
		TTLSecurity:      p.TTLSecurity,
		GracefulShutdown: p.GracefulShutdown,
		Passive:          p.Passive,
		Disabled:         p.Disabled,
	}
	if !isPeerName(p.Name) {
		*errs = append(*errs, field.Invalid(at.Child("name"), p.Name, "must be lower-case letters, digits and dashes, begin with a letter and be at most 32 long"))
	}
	parseWhere(at, p, &out, errs)
	parseWho(at, p, &out, errs)
	out.IPv6, out.IPv4 = parseFamilies(at.Child("families"), p.Families, errs)
	parseTimers(at.Child("timers"), p.Timers, &out, errs)
	out.BFD = parseBFD(at.Child("bfd"), p.BFD, errs)
	if out.BFD != nil && out.Multihop != 0 && !out.Source.IsValid() {
		*errs = append(*errs, field.Required(at.Child("sourceAddress"), "bfd over several hops needs it (RFC 5883)"))
	}
	out.Restart = parseRestart(at.Child("gracefulRestart"), p.GracefulRestart, errs)
	out.Export = parseExport(at.Child("export"), p.Export, out.Internal(), errs)
	if out.Internal() && out.Export.Prepend > 0 {
		*errs = append(*errs, field.Forbidden(at.Child("export", "prepend"), "it is for peers of another AS only: one of the node's own would take the path for a loop (RFC 4271 section 9.1.2): use localPreference"))
	}
	out.Import = parseImport(at.Child("import"), p.Import, errs)
	between(at.Child("allowASIn"), int64(p.AllowASIn), 0, 10, errs)
	out.AllowASIn = uint8(p.AllowASIn)
	if p.AllowASIn > 0 && p.Import == nil {
		*errs = append(*errs, field.Forbidden(at.Child("allowASIn"), "without import the node takes no route from this router: set import too, or leave this out"))
	}
	if ref := p.PasswordSecretRef; ref != nil {
		out.Password = parseSecretRef(at.Child("passwordSecretRef"), ref, errs)
	}
	oneOf(at.Child("addPaths"), p.AddPaths, errs, "", v1alpha1.AddPathsOff, v1alpha1.AddPathsReceive, v1alpha1.AddPathsSend, v1alpha1.AddPathsBoth)
	out.AddPathsReceive = p.AddPaths == v1alpha1.AddPathsReceive || p.AddPaths == v1alpha1.AddPathsBoth
	out.AddPathsSend = p.AddPaths == v1alpha1.AddPathsSend || p.AddPaths == v1alpha1.AddPathsBoth
	return out
}

// parseWhere reads how the router is reached.
func parseWhere(at *field.Path, p v1alpha1.BGPPeer, out *BGPPeer, errs *field.ErrorList) {
	if p.Interface != "" && !isInterfaceName(p.Interface) {
		*errs = append(*errs, field.Invalid(at.Child("interface"), p.Interface, notAnInterface))
	}
	if p.Address == "" {
		if p.Interface == "" {
			*errs = append(*errs, field.Required(at.Child("address"), "name the router's address, or for unnumbered peering the interface towards it"))
		}
		if p.Port != 0 || p.SourceAddress != "" || p.Multihop != 0 {
			*errs = append(*errs, field.Forbidden(at, "without address the session is between the link-local addresses and the router opens it: leave out port, sourceAddress and multihop"))
		}
		return
	}
	addr, err := netip.ParseAddr(p.Address)
	if err != nil || addr.Zone() != "" || addr.Is4In6() || !ofOneHost(addr) {
		*errs = append(*errs, field.Invalid(at.Child("address"), p.Address, "not an IP address of a router: want an address as in 2001:db8::1 or 192.0.2.1; for a link-local one set interface in place of a %zone"))
		return
	}
	out.Addr = addr
	if addr.Is6() && addr.IsLinkLocalUnicast() && p.Interface == "" {
		*errs = append(*errs, field.Required(at.Child("interface"), "a link-local address needs its interface"))
	}
	if p.SourceAddress != "" {
		out.Source, err = netip.ParseAddr(p.SourceAddress)
		if err != nil || out.Source.Zone() != "" || out.Source.Is4In6() || out.Source.Is4() != addr.Is4() || !ofOneHost(out.Source) {
			*errs = append(*errs, field.Invalid(at.Child("sourceAddress"), p.SourceAddress, "not an address of the node of the same family as address"))
		}
	}
	if p.Port != 0 {
		between(at.Child("port"), int64(p.Port), 1, 65535, errs)
		out.Port = uint16(p.Port)
	}
	if p.Multihop != 0 {
		between(at.Child("multihop"), int64(p.Multihop), 2, 255, errs)
		out.Multihop = uint8(p.Multihop)
		if p.Interface != "" {
			*errs = append(*errs, field.Forbidden(at.Child("multihop"), "it is for a router behind other routers: leave out interface"))
		}
	}
}

// ofOneHost reports whether a is an address that a session can be from or to: not
// unspecified, loopback, multicast or broadcast.
func ofOneHost(a netip.Addr) bool { return a.IsGlobalUnicast() || a.IsLinkLocalUnicast() }

// parseWho reads the two autonomous systems.
func parseWho(at *field.Path, p v1alpha1.BGPPeer, out *BGPPeer, errs *field.ErrorList) {
	if p.LocalAS != 0 {
		out.LocalAS = parseAS(at.Child("localAS"), p.LocalAS, errs)
	}
	switch {
	case p.PeerType != "" && p.RemoteAS != 0:
		*errs = append(*errs, field.Forbidden(at.Child("peerType"), "set either remoteAS or peerType"))
	case p.PeerType == v1alpha1.PeerInternal:
		out.RemoteAS = out.LocalAS
	case p.PeerType != "":
		oneOf(at.Child("peerType"), p.PeerType, errs, v1alpha1.PeerExternal, v1alpha1.PeerInternal)
	default:
		out.RemoteAS = parseAS(at.Child("remoteAS"), p.RemoteAS, errs)
	}
}

// parseFamilies reads which families are meant; none said is both.
func parseFamilies(path *field.Path, families []v1alpha1.Family, errs *field.ErrorList) (ipv6, ipv4 bool) {
	for i, f := range families {
		oneOf(path.Index(i), f, errs, v1alpha1.FamilyIPv6, v1alpha1.FamilyIPv4)
		ipv6 = ipv6 || f == v1alpha1.FamilyIPv6
		ipv4 = ipv4 || f == v1alpha1.FamilyIPv4
	}
	return ipv6 || len(families) == 0, ipv4 || len(families) == 0
}

func parseTimers(path *field.Path, t *v1alpha1.BGPTimers, out *BGPPeer, errs *field.ErrorList) {
	if t == nil {
		t = new(v1alpha1.BGPTimers)
	}
	hold := orDefault(t.HoldSeconds, int32(DefaultHold/time.Second))
	keepalive := orDefault(t.KeepaliveSeconds, max(hold/3, 1))
	retry := orDefault(t.ConnectRetrySeconds, int32(DefaultConnectRetry/time.Second))
	between(path.Child("holdSeconds"), int64(hold), 3, 65535, errs)
	between(path.Child("keepaliveSeconds"), int64(keepalive), 1, 32767, errs)
	between(path.Child("connectRetrySeconds"), int64(retry), 1, 3600, errs)
	if hold >= 3 && int64(keepalive)*2 > int64(hold) {
		*errs = append(*errs, field.Invalid(path.Child("keepaliveSeconds"), keepalive, fmt.Sprintf("must be at most half of holdSeconds, %d, or one lost message ends the session; a third is usual (RFC 4271 section 4.4)", hold)))
	}
	out.Hold, out.Keepalive, out.ConnectRetry = seconds(hold), seconds(keepalive), seconds(retry)
}

func parseBFD(path *field.Path, b *v1alpha1.BFD, errs *field.ErrorList) *BFD {
	if b == nil {
		return nil
	}
	interval := int32(DefaultBFDInterval / time.Millisecond)
	rx, tx := orDefault(b.ReceiveMilliseconds, interval), orDefault(b.TransmitMilliseconds, interval)
	multiplier := orDefault(b.Multiplier, DefaultBFDMultiply)
	between(path.Child("receiveMilliseconds"), int64(rx), 10, 60000, errs)
	between(path.Child("transmitMilliseconds"), int64(tx), 10, 60000, errs)
	between(path.Child("multiplier"), int64(multiplier), 2, 255, errs)
	return &BFD{Receive: time.Duration(rx) * time.Millisecond, Transmit: time.Duration(tx) * time.Millisecond, Multiplier: uint8(multiplier)}
}

func parseRestart(path *field.Path, g *v1alpha1.BGPGracefulRestart, errs *field.ErrorList) GracefulRestart {
	if g == nil {
		g = new(v1alpha1.BGPGracefulRestart)
	}
	out := GracefulRestart{
		Mode:    g.Mode,
		Restart: seconds(orDefault(g.RestartSeconds, int32(DefaultRestart/time.Second))),
		Stale:   seconds(orDefault(g.LongLivedStaleSeconds, 0)),
	}
	between(path.Child("restartSeconds"), int64(out.Restart/time.Second), 1, 4095, errs)
	if g.LongLivedStaleSeconds != nil {
		between(path.Child("longLivedStaleSeconds"), int64(*g.LongLivedStaleSeconds), 1, 1<<24-1, errs)
	}
	oneOf(path.Child("mode"), g.Mode, errs, "", v1alpha1.GracefulRestartEnabled, v1alpha1.GracefulRestartAware, v1alpha1.GracefulRestartDisabled)
	if g.Mode == "" {
		out.Mode = v1alpha1.GracefulRestartEnabled
	}
	if out.Mode != v1alpha1.GracefulRestartEnabled && g.LongLivedStaleSeconds != nil {
		*errs = append(*errs, field.Forbidden(path.Child("longLivedStaleSeconds"), "it needs mode enabled (RFC 9494 builds on RFC 4724)"))
	}
	return out
}

func parseExport(path *field.Path, e *v1alpha1.BGPExport, internal bool, errs *field.ErrorList) Export {
	if e == nil {
		return Export{}
	}
	out := Export{Prepend: int(e.Prepend)}
	between(path.Child("prepend"), int64(e.Prepend), 0, 16, errs)
	for i, s := range e.Communities {
		c, ok := parseCommunity(string(s))
		if !ok {
			*errs = append(*errs, field.Invalid(path.Child("communities").Index(i), s, "not a community: want two numbers up to 65535, as in 64512:100, or one of no-export, no-advertise, no-export-subconfed, no-peer, blackhole, graceful-shutdown; for larger numbers use largeCommunities"))
		}
		out.Communities = append(out.Communities, c)
	}
	for i, s := range e.LargeCommunities {
		n, ok := parseNumbers(string(s), 3, 32)
		if !ok {
			*errs = append(*errs, field.Invalid(path.Child("largeCommunities").Index(i), s, "not a large community: want three numbers up to 4294967295, as in 4200000001:1:100"))
			continue
		}
		out.LargeCommunities = append(out.LargeCommunities, LargeCommunity{uint32(n[0]), uint32(n[1]), uint32(n[2])})
	}
	out.LocalPreference = parseUint32(path.Child("localPreference"), e.LocalPreference, errs)
	out.MED = parseUint32(path.Child("med"), e.MED, errs)
	if e.LocalPreference != nil && !internal {
		*errs = append(*errs, field.Forbidden(path.Child("localPreference"), "it is for peers of the node's own AS only (RFC 4271 section 5.1.5): use med or prepend towards others"))
	}
	return out
}

func parseCommunity(s string) (Community, bool) {
	if c, ok := wellKnown[s]; ok {
		return c, true
	}
	n, ok := parseNumbers(s, 2, 16)
	if !ok {
		return Community{}, false
	}
	return Community{uint16(n[0]), uint16(n[1])}, true
}

// parseNumbers reads count decimal numbers with colons between them.
func parseNumbers(s string, count, bits int) ([]uint64, bool) {
	parts := strings.Split(s, ":")
	if len(parts) != count {
		return nil, false
	}
	var out []uint64
	for _, p := range parts {
		n, err := strconv.ParseUint(p, 10, bits)
		if err != nil {
			return nil, false
		}
		out = append(out, n)
	}
	return out, true
}

func parseUint32(path *field.Path, n *int64, errs *field.ErrorList) *uint32 {
	if n == nil {
		return nil
	}
	between(path, *n, 0, 1<<32-1, errs)
	u := uint32(*n)
	return &u
}

func parseSecretRef(path *field.Path, r *v1alpha1.SecretKeyRef, errs *field.ErrorList) *SecretRef {
	if r.Name == "" || r.Key == "" {
		*errs = append(*errs, field.Required(path, "name a Secret of flock's namespace, and a key in it"))
	}
	return &SecretRef{Name: r.Name, Key: r.Key}
}

func isPeerName(s string) bool {
	if len(s) == 0 || len(s) > 32 || s[0] < 'a' || s[0] > 'z' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// isInterfaceName allows less than the kernel does (anything but slash and white
// space): no wildcard, no quote, no alternative name.
func isInterfaceName(s string) bool {
	if len(s) == 0 || len(s) > 15 || slices.Contains([]byte("._-"), s[0]) {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

const notAnInterface = "not the name of an interface: want letters, digits, dots, dashes and underscores, at most 15, as in eth0 or bond0.100"

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }
