package routing

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/config"
)

func TestOnLink(t *testing.T) {
	var addrs []net.Addr
	for _, s := range []string{
		"127.0.0.1/8", "::1/128", "fe80::1/64", "2001:db8:0:1::11/64", "192.0.2.11/24",
		"2001:db8:0:1::12/64", "203.0.113.7/32", "2001:db8:ffff::11/128", "10.0.0.1/31",
	} {
		ip, n, err := net.ParseCIDR(s)
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, &net.IPNet{IP: ip, Mask: n.Mask})
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/31"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:0:1::/64")}
	if got := OnLink(addrs); !reflect.DeepEqual(got, want) {
		t.Errorf("have %v, want %v", got, want)
	}
}

func TestParsePassword(t *testing.T) {
	for _, bad := range []string{"", strings.Repeat("x", 81), "secret\n", `se"cret`, "se\x00cret", "secrét", "se\ncret"} {
		if _, err := ParsePassword([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		} else if len(bad) > 3 && strings.Contains(err.Error(), bad[:3]) {
			t.Errorf("the error shows the password: %v", err)
		}
	}
	for _, good := range []string{"x", strings.Repeat("x", 80), `a } ; # ' \ $ %s`} {
		if p, err := ParsePassword([]byte(good)); err != nil || p.Reveal() != good {
			t.Errorf("%q: %v", good, err)
		}
	}
}

// TestPasswordIsNotPrinted by any way that a log or a status could take.
func TestPasswordIsNotPrinted(t *testing.T) {
	p, err := ParsePassword([]byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	in := Intent{Passwords: map[config.SecretRef]Password{{Name: "bgp", Key: "tor"}: p}}
	var out bytes.Buffer
	for _, v := range []any{p, &p, in, &in, []Password{p}, struct{ p Password }{p}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "p", p, "in", in)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "p", p)
	json.NewEncoder(&out).Encode(p)
	for _, leak := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), "104 117"} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("%q is in\n%s", leak, out.String())
		}
	}
}

func TestHeld(t *testing.T) {
	in := Intent{Addresses: []netip.Addr{netip.MustParseAddr("2001:db8:0:1::11"), netip.MustParseAddr("2001:db8:0:1::12")}, OnLink: []netip.Prefix{netip.MustParsePrefix("2001:db8:0:1::/64")}}
	in.Held = netaddr.Held([]net.Addr{&net.IPNet{IP: net.ParseIP("2001:db8:0:1::12"), Mask: net.CIDRMask(64, 128)}})
	peer := config.BGPPeer{Addr: netip.MustParseAddr("2001:db8:0:1::1")}
	if got := in.Source(peer); got != in.Addresses[1] {
		t.Errorf("the session is from %v: want the address that the node has", got)
	}
	if in.Held = netaddr.Held(nil); in.Source(peer) != in.Addresses[0] {
		t.Errorf("want the first InternalIP where nothing is known of the interfaces")
	}
}

func TestSource(t *testing.T) {
	in := Intent{
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8:0:1::11")},
		OnLink:    []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:0:1::/64"), netip.MustParsePrefix("2001:db8:0:2::/64")},
	}
	for _, test := range []struct {
		peer config.BGPPeer
		want string
	}{
		{config.BGPPeer{Addr: netip.MustParseAddr("2001:db8:0:1::1")}, "2001:db8:0:1::11"},
		{config.BGPPeer{Addr: netip.MustParseAddr("192.0.2.1")}, "192.0.2.11"},
		{config.BGPPeer{Addr: netip.MustParseAddr("192.0.2.1"), Source: netip.MustParseAddr("192.0.2.12")}, "192.0.2.12"},
		{config.BGPPeer{Addr: netip.MustParseAddr("2001:db8:0:2::1")}, "invalid IP"}, // of another link
		{config.BGPPeer{Addr: netip.MustParseAddr("fe80::1"), Interface: "eth0"}, "invalid IP"},
		{config.BGPPeer{Interface: "eth0"}, "invalid IP"},
		{config.BGPPeer{Addr: netip.MustParseAddr("2001:db8:0:1::1"), Multihop: 2}, "invalid IP"},
	} {
		if got := in.Source(test.peer).String(); got != test.want {
			t.Errorf("%+v: %s, want %s", test.peer, got, test.want)
		}
	}
}
