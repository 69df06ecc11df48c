package netaddr

import (
	"fmt"
	"net/netip"

	netutils "k8s.io/utils/net"
)

// ParseLoosely returns the address that kube-proxy makes of text in a Service or an
// EndpointSlice. Unlike [netip.ParseAddr], which the Kubernetes API asks for only in what was
// written lately, it takes leading zeros (198.51.100.007), and IPv4 in IPv6's notation for IPv4.
func ParseLoosely(text string) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	if !ok {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", text)
	}
	return addr.Unmap(), nil
}
