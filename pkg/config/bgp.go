package config

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// BGP is the node as a BGP speaker.
type BGP struct {
	LocalAS  uint32
	RouterID netip.Addr // IPv4
	Peers    []BGPPeer  // in the order given
}

// BGPPeer is one router.
type BGPPeer struct {
	Name     string // [a-z][a-z0-9-]*
	Addr     netip.Addr
	RemoteAS uint32
}

func parseBGP(path *field.Path, b *v1alpha1.BGP, errs *field.ErrorList) *BGP {
	out := &BGP{LocalAS: parseAS(path.Child("localAS"), b.LocalAS, errs)}
	id, err := netip.ParseAddr(b.RouterID)
	if err != nil || !id.Is4() || id.IsUnspecified() {
		*errs = append(*errs, field.Invalid(path.Child("routerID"), b.RouterID, "must be four decimal numbers, as in 192.0.2.1, and not 0.0.0.0 (RFC 6286)"))
	}
	out.RouterID = id
	if len(b.Peers) == 0 {
		*errs = append(*errs, field.Required(path.Child("peers"), "name at least one router, or leave spec.bgp out"))
	}
	names := map[string]bool{}
	for i, p := range b.Peers {
		at := path.Child("peers").Index(i)
		if !isPeerName(p.Name) {
			*errs = append(*errs, field.Invalid(at.Child("name"), p.Name, "must be lower-case letters, digits and dashes, begin with a letter and be at most 32 long"))
		}
		if names[p.Name] {
			*errs = append(*errs, field.Duplicate(at.Child("name"), p.Name))
		}
		names[p.Name] = true
		addr, err := netip.ParseAddr(p.Address)
		if err != nil || addr.Zone() != "" || addr.Is4In6() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() {
			*errs = append(*errs, field.Invalid(at.Child("address"), p.Address, "not a router's IP address: want one as in 2001:db8::1 or 192.0.2.1"))
		}
		out.Peers = append(out.Peers, BGPPeer{Name: p.Name, Addr: addr, RemoteAS: parseAS(at.Child("remoteAS"), p.RemoteAS, errs)})
	}
	return out
}

func parseAS(path *field.Path, as int64, errs *field.ErrorList) uint32 {
	if as < 1 || as > 4294967294 || as == 23456 || as == 65535 {
		*errs = append(*errs, field.Invalid(path, as, "must be between 1 and 4294967294 and not 23456 or 65535, which are reserved (RFC 7607, 6793, 7300)"))
		return 0
	}
	return uint32(as)
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
