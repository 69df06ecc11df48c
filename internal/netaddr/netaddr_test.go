package netaddr

import (
	"net/netip"
	"testing"
)

func TestUnroutableReason(t *testing.T) {
	for text, want := range map[string]string{
		"2001:db8::1":     "",
		"fd00::1":         "",
		"192.0.2.1":       "",
		"fe80::1":         "a link-local address",
		"169.254.1.1":     "a link-local address",
		"ff02::1":         "a multicast address",
		"224.0.0.1":       "a multicast address",
		"::1":             "a loopback address",
		"127.0.0.1":       "a loopback address",
		"::":              "not an address of a host (RFC 1122 section 3.2.1.3)",
		"0.1.2.3":         "not an address of a host (RFC 1122 section 3.2.1.3)",
		"255.255.255.255": "the broadcast address",
		"::ffff:10.0.0.1": "an IPv4 address in IPv6's notation: 10.0.0.1",
		"2001:db8::1%eth": "bound to a link by its zone",
	} {
		if got := UnroutableReason(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is %q, want %q", text, got, want)
		}
	}
	if got := UnroutableReason(netip.Addr{}); got != "not an address" {
		t.Errorf("the zero Addr is %q", got)
	}
}
