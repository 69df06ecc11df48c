package netaddr

import (
	"net/netip"
	"testing"
)

func TestParseLoosely(t *testing.T) {
	for text, want := range map[string]string{
		"198.51.100.7": "198.51.100.7", "198.51.100.007": "198.51.100.7", "::ffff:198.51.100.7": "198.51.100.7",
		"2001:db8::1": "2001:db8::1", "2001:DB8:0::1": "2001:db8::1",
	} {
		if got, err := ParseLoosely(text); err != nil || got != netip.MustParseAddr(want) {
			t.Errorf("%s is %v, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "None", "fe80::1%eth0", "198.51.100", "198.51.100.256", "::ffff:198.51.100.007.1"} {
		if got, err := ParseLoosely(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}
