// Package netaddr reads IP addresses, and says what they are good for.
package netaddr

import (
	"fmt"
	"net"
	"net/netip"
)

// Held are the addresses of all interfaces, which net.InterfaceAddrs returns.
func Held(addrs []net.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out
}

// UnroutableReason says what a is that cannot be routed to a pod, or "" if it can. It
// reads after "is": "a multicast address".
func UnroutableReason(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return "not an address"
	case a.Zone() != "":
		return "bound to a link by its zone"
	case a.Is4In6():
		return fmt.Sprintf("an IPv4 address in IPv6's notation: %s", a.Unmap())
	case a.IsMulticast():
		return "a multicast address"
	case a.IsLinkLocalUnicast():
		return "a link-local address"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsUnspecified() || a.Is4() && a.As4()[0] == 0:
		return "not an address of a host (RFC 1122 section 3.2.1.3)"
	case !a.IsGlobalUnicast():
		return "the broadcast address"
	}
	return ""
}
