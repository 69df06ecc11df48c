package annotation

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

var (
	builtIn = config.Defaults{IPv6: true}
	dual    = config.Defaults{IPv6: true, IPv4: true}
	onlyV4  = config.Defaults{IPv4: true}
	noneOn  = config.Defaults{}
)

func addrs(ss ...string) (out []netip.Addr) {
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func algo(ss ...v1alpha1.IPAlgo) []v1alpha1.IPAlgo { return ss }

func TestWhatIsAccepted(t *testing.T) {
	withAlgo := config.Defaults{IPv6: true, IPAlgo: algo("app")}
	for _, tc := range []struct {
		name     string
		in       map[string]string
		defaults config.Defaults
		want     Request
	}{
		{"nothing", nil, builtIn, Request{IPv6: true}},
		{"nothing, dual stack by default", nil, dual, Request{IPv6: true, IPv4: true}},
		{"nothing, IPv4 by default", nil, onlyV4, Request{IPv4: true}},
		{"annotations of others", map[string]string{"example.com/ipv4": "yes", "ipv4": "x"}, builtIn, Request{IPv6: true}},
		{"ipv4 on", map[string]string{IPv4: "true"}, builtIn, Request{IPv6: true, IPv4: true}},
		{"ipv4 off", map[string]string{IPv4: "false"}, dual, Request{IPv6: true}},
		{"ipv6 off", map[string]string{IPv6: "false"}, dual, Request{IPv4: true}},
		{"ipv6 on", map[string]string{IPv6: "true"}, noneOn, Request{IPv6: true}},
		{"families swapped", map[string]string{IPv6: "false", IPv4: "true"}, builtIn, Request{IPv4: true}},
		{"cidrs", map[string]string{CIDR6: "2001:db8:1::/64", CIDR4: " 10.1.0.0/24 "}, dual,
			Request{IPv6: true, IPv4: true, CIDR6: netip.MustParsePrefix("2001:db8:1::/64"), CIDR4: netip.MustParsePrefix("10.1.0.0/24")}},
		{"a cidr of one address", map[string]string{CIDR6: "2001:db8:1::7/128"}, builtIn, Request{IPv6: true, CIDR6: netip.MustParsePrefix("2001:db8:1::7/128")}},
		{"addresses", map[string]string{Addresses: "2001:db8::7"}, builtIn, Request{IPv6: true, Static: addrs("2001:db8::7")}},
		{"addresses of both families", map[string]string{Addresses: "192.0.2.7, 2001:DB8:0::7,\n192.0.2.8"}, dual,
			Request{IPv6: true, IPv4: true, Static: addrs("192.0.2.7", "2001:db8::7", "192.0.2.8")}},
		{"unique local and private addresses", map[string]string{Addresses: "fd00::7,10.0.0.7"}, dual, Request{IPv6: true, IPv4: true, Static: addrs("fd00::7", "10.0.0.7")}},
		{"anycast", map[string]string{Anycast: "2001:db8::53,2001:db8::54"}, builtIn, Request{IPv6: true, Anycast: addrs("2001:db8::53", "2001:db8::54")}},
		{"static of one family, cidr of the other", map[string]string{Addresses: "2001:db8::7", CIDR4: "10.1.0.0/24"}, dual,
			Request{IPv6: true, IPv4: true, Static: addrs("2001:db8::7"), CIDR4: netip.MustParsePrefix("10.1.0.0/24")}},
		{"anycast and cidr", map[string]string{Anycast: "2001:db8::53", CIDR6: "2001:db8:1::/64"}, builtIn,
			Request{IPv6: true, Anycast: addrs("2001:db8::53"), CIDR6: netip.MustParsePrefix("2001:db8:1::/64")}},
		{"ip-algo", map[string]string{IPAlgo: "image, namespace,app"}, builtIn, Request{IPv6: true, IPAlgo: algo("image", "namespace", "app")}},
		{"ip-algo by default", nil, withAlgo, Request{IPv6: true, IPAlgo: algo("app")}},
		{"ip-algo before the default", map[string]string{IPAlgo: "image"}, withAlgo, Request{IPv6: true, IPAlgo: algo("image")}},
		{"ip-algo random before the default", map[string]string{IPAlgo: "random"}, withAlgo, Request{IPv6: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, warnings, err := Parse(tc.in, tc.defaults)
			if err != nil || len(warnings) > 0 {
				t.Fatalf("error %v, warnings %v", err, warnings)
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("\n got %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

func TestWhatIsRefused(t *testing.T) {
	for _, tc := range []struct {
		name     string
		in       map[string]string
		defaults config.Defaults
		want     string
	}{
		{"ipv4 yes", map[string]string{IPv4: "yes"}, builtIn, `annotation flock.fritzlab.net/ipv4="yes": want "true" or "false"`},
		{"ipv6 True", map[string]string{IPv6: "True"}, builtIn, `annotation flock.fritzlab.net/ipv6="True": want "true" or "false"`},
		{"ipv6 empty", map[string]string{IPv6: ""}, builtIn, `annotation flock.fritzlab.net/ipv6="": want "true" or "false"`},
		{"everything at once, in the order of the keys", map[string]string{Anycast: "x", IPv4: "1", CIDR6: "y"}, builtIn,
			`annotation flock.fritzlab.net/ipv4="1": want "true" or "false"; ` +
				`annotation flock.fritzlab.net/cidr6="y": not a CIDR: want one of the node's CIDRs or a part of one, as in 2001:db8:1::/64, or no such annotation; ` +
				`annotation flock.fritzlab.net/anycast="x": "x" is not an address: want addresses separated by commas, as in 2001:db8::7,192.0.2.7`},

		{"cidr4 of IPv6", map[string]string{CIDR4: "2001:db8::/64"}, dual, `annotation flock.fritzlab.net/cidr4="2001:db8::/64": is of the other family: write it as flock.fritzlab.net/cidr6`},
		{"cidr6 of IPv4", map[string]string{CIDR6: "10.1.0.0/24"}, dual, `annotation flock.fritzlab.net/cidr6="10.1.0.0/24": is of the other family: write it as flock.fritzlab.net/cidr4`},
		{"cidr6 mapped", map[string]string{CIDR6: "::ffff:10.1.0.0/120"}, dual, `annotation flock.fritzlab.net/cidr6="::ffff:10.1.0.0/120": not a CIDR: want one of the node's CIDRs or a part of one, as in 2001:db8:1::/64, or no such annotation`},
		{"cidr4 with host bits", map[string]string{CIDR4: "10.1.0.7/24"}, dual, `annotation flock.fritzlab.net/cidr4="10.1.0.7/24": has bits set behind the prefix length: want 10.1.0.0/24`},
		{"cidr4 without a length", map[string]string{CIDR4: "10.1.0.0"}, dual, `annotation flock.fritzlab.net/cidr4="10.1.0.0": not a CIDR: want one of the node's CIDRs or a part of one, as in 10.1.0.0/24, or no such annotation`},
		{"cidr6 empty", map[string]string{CIDR6: ""}, dual, `annotation flock.fritzlab.net/cidr6="": not a CIDR: want one of the node's CIDRs or a part of one, as in 2001:db8:1::/64, or no such annotation`},

		{"addresses empty", map[string]string{Addresses: " "}, dual, `annotation flock.fritzlab.net/addresses=" ": is empty: list addresses, as in 2001:db8::7,192.0.2.7, or leave the annotation out`},
		{"an empty item", map[string]string{Addresses: "2001:db8::7,"}, dual, `annotation flock.fritzlab.net/addresses="2001:db8::7,": item 2 is empty: want addresses separated by single commas`},
		{"separated by a space", map[string]string{Addresses: "2001:db8::7 2001:db8::8"}, dual, `annotation flock.fritzlab.net/addresses="2001:db8::7 2001:db8::8": "2001:db8::7 2001:db8::8" is not an address: want addresses separated by commas, as in 2001:db8::7,192.0.2.7`},
		{"with a length", map[string]string{Addresses: "2001:db8::7/64"}, dual, `annotation flock.fritzlab.net/addresses="2001:db8::7/64": "2001:db8::7/64" is not an address: leave out the prefix length`},
		{"a number with a leading zero", map[string]string{Addresses: "192.0.2.007"}, dual, `annotation flock.fritzlab.net/addresses="192.0.2.007": "192.0.2.007" is not an address: want addresses separated by commas, as in 2001:db8::7,192.0.2.7`},
		{"zone", map[string]string{Anycast: "fe80::1%eth0"}, dual, `annotation flock.fritzlab.net/anycast="fe80::1%eth0": "fe80::1%eth0" is bound to a link by its zone: want a global or unique local unicast address`},
		{"mapped", map[string]string{Addresses: "::ffff:192.0.2.7"}, dual, `annotation flock.fritzlab.net/addresses="::ffff:192.0.2.7": "::ffff:192.0.2.7" is an IPv4 address in IPv6's notation: 192.0.2.7: want a global or unique local unicast address`},
		{"multicast", map[string]string{Anycast: "ff02::1"}, dual, `annotation flock.fritzlab.net/anycast="ff02::1": "ff02::1" is a multicast address: want a global or unique local unicast address`},
		{"IPv4 multicast", map[string]string{Addresses: "224.0.0.5"}, dual, `annotation flock.fritzlab.net/addresses="224.0.0.5": "224.0.0.5" is a multicast address: want a global or unique local unicast address`},
		{"link-local", map[string]string{Addresses: "fe80::7"}, dual, `annotation flock.fritzlab.net/addresses="fe80::7": "fe80::7" is a link-local address: want a global or unique local unicast address`},
		{"IPv4 link-local", map[string]string{Addresses: "169.254.1.1"}, dual, `annotation flock.fritzlab.net/addresses="169.254.1.1": "169.254.1.1" is a link-local address: want a global or unique local unicast address`},
		{"loopback", map[string]string{Addresses: "::1"}, dual, `annotation flock.fritzlab.net/addresses="::1": "::1" is a loopback address: want a global or unique local unicast address`},
		{"unspecified", map[string]string{Addresses: "::"}, dual, `annotation flock.fritzlab.net/addresses="::": "::" is not an address of a host (RFC 1122 section 3.2.1.3): want a global or unique local unicast address`},
		{"this network", map[string]string{Addresses: "0.0.0.7"}, dual, `annotation flock.fritzlab.net/addresses="0.0.0.7": "0.0.0.7" is not an address of a host (RFC 1122 section 3.2.1.3): want a global or unique local unicast address`},
		{"broadcast", map[string]string{Addresses: "255.255.255.255"}, dual, `annotation flock.fritzlab.net/addresses="255.255.255.255": "255.255.255.255" is the broadcast address: want a global or unique local unicast address`},
		{"twice", map[string]string{Addresses: "2001:db8::7,192.0.2.7,2001:db8:0::7"}, dual, `annotation flock.fritzlab.net/addresses="2001:db8::7,192.0.2.7,2001:db8:0::7": lists 2001:db8::7 twice: once is enough`},
		{"anycast twice", map[string]string{Anycast: "2001:db8::7,2001:db8::7"}, dual, `annotation flock.fritzlab.net/anycast="2001:db8::7,2001:db8::7": lists 2001:db8::7 twice: once is enough`},
		{"static and anycast", map[string]string{Addresses: "2001:db8::7", Anycast: "2001:db8::7"}, dual, `annotation flock.fritzlab.net/anycast="2001:db8::7": 2001:db8::7 is in flock.fritzlab.net/addresses too: an address is either the pod's own or shared with others, list it once`},
		{"too many", map[string]string{Addresses: strings.Repeat("10.0.0.7,", MaxAddresses) + "10.0.0.7"}, dual,
			`annotation flock.fritzlab.net/addresses="` + strings.Repeat("10.0.0.7,", 15)[:128] + `"…: lists 1025 addresses: 1024 at most`},

		{"both off by annotations", map[string]string{IPv6: "false", IPv4: "false"}, builtIn, `annotation flock.fritzlab.net/ipv6="false": leaves the pod without an address, as IPv4 is off by flock.fritzlab.net/ipv4: set one of flock.fritzlab.net/ipv6 and flock.fritzlab.net/ipv4 to "true"`},
		{"the only one off", map[string]string{IPv4: "false"}, onlyV4, `annotation flock.fritzlab.net/ipv4="false": leaves the pod without an address, as IPv6 is off by the node's default: set one of flock.fritzlab.net/ipv6 and flock.fritzlab.net/ipv4 to "true"`},
		{"both off by default", nil, noneOn, `annotation flock.fritzlab.net/ipv6="": is not set, and the node has both families off by default: set flock.fritzlab.net/ipv6 or flock.fritzlab.net/ipv4 to "true"`},
		{"static of a family that is off", map[string]string{Addresses: "192.0.2.7"}, builtIn, `annotation flock.fritzlab.net/addresses="192.0.2.7": asks for 192.0.2.7, but IPv4 is off by the node's default: remove it, or set flock.fritzlab.net/ipv4 to "true"`},
		{"static of a family switched off", map[string]string{IPv6: "false", Addresses: "2001:db8::7"}, dual, `annotation flock.fritzlab.net/addresses="2001:db8::7": asks for 2001:db8::7, but IPv6 is off by flock.fritzlab.net/ipv6: remove it, or set flock.fritzlab.net/ipv6 to "true"`},
		{"anycast of a family that is off", map[string]string{Anycast: "2001:db8::53,192.0.2.53"}, builtIn, `annotation flock.fritzlab.net/anycast="2001:db8::53,192.0.2.53": asks for 192.0.2.53, but IPv4 is off by the node's default: remove it, or set flock.fritzlab.net/ipv4 to "true"`},
		{"cidr4 of a family that is off", map[string]string{CIDR4: "10.1.0.0/24"}, builtIn, `annotation flock.fritzlab.net/cidr4="10.1.0.0/24": IPv4 is off by the node's default: remove this annotation, or set flock.fritzlab.net/ipv4 to "true"`},
		{"cidr6 of a family that is off", map[string]string{CIDR6: "2001:db8::/64"}, onlyV4, `annotation flock.fritzlab.net/cidr6="2001:db8::/64": IPv6 is off by the node's default: remove this annotation, or set flock.fritzlab.net/ipv6 to "true"`},
		{"static and cidr6", map[string]string{Addresses: "2001:db8::7", CIDR6: "2001:db8::/64"}, builtIn, `annotation flock.fritzlab.net/cidr6="2001:db8::/64": contradicts the static address 2001:db8::7 of flock.fritzlab.net/addresses: remove one of the two`},
		{"static and cidr4", map[string]string{Addresses: "192.0.2.7", CIDR4: "192.0.2.0/24"}, dual, `annotation flock.fritzlab.net/cidr4="192.0.2.0/24": contradicts the static address 192.0.2.7 of flock.fritzlab.net/addresses: remove one of the two`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, _, err := Parse(tc.in, tc.defaults)
			if err == nil || err.Error() != tc.want {
				t.Errorf("%+v\n got %v\nwant %s", got, err, tc.want)
			}
			var one *Error
			if !errors.As(err, &one) || one.Value != tc.in[one.Key] {
				t.Errorf("%#v does not lead to the annotation", err)
			}
		})
	}
}

func TestWhatIsWarnedOf(t *testing.T) {
	for _, tc := range []struct {
		name     string
		in       map[string]string
		defaults config.Defaults
		algo     []v1alpha1.IPAlgo
		want     []Warning
	}{
		{"a field that there is not", map[string]string{IPAlgo: "app,pod"}, config.Defaults{IPv6: true, IPAlgo: algo("image")}, algo("image"),
			[]Warning{`annotation flock.fritzlab.net/ip-algo="app,pod" is ignored, the node's default applies: there is no field "pod"; want namespace, app and image, each at most once, separated by commas, or random`}},
		{"a field twice", map[string]string{IPAlgo: "app,app"}, builtIn, nil,
			[]Warning{`annotation flock.fritzlab.net/ip-algo="app,app" is ignored, the node's default applies: lists app twice; want namespace, app and image, each at most once, separated by commas, or random`}},
		{"an empty ip-algo", map[string]string{IPAlgo: ""}, builtIn, nil,
			[]Warning{`annotation flock.fritzlab.net/ip-algo="" is ignored, the node's default applies: there is no field ""; want namespace, app and image, each at most once, separated by commas, or random`}},
		{"both wrong", map[string]string{IPAlgo: "x"}, config.Defaults{IPv6: true, IPAlgo: algo("y")}, nil,
			[]Warning{
				`annotation flock.fritzlab.net/ip-algo="x" is ignored, the node's default applies: there is no field "x"; want namespace, app and image, each at most once, separated by commas, or random`,
				`the node's spec.defaults.ipAlgo is ignored, the address is random: there is no field "y"; want namespace, app and image, each at most once`,
			}},
		{"a wrong default that a right annotation replaces", map[string]string{IPAlgo: "app"}, config.Defaults{IPv6: true, IPAlgo: algo("y")}, algo("app"), nil},
		{"ip-algo of a static address", map[string]string{IPAlgo: "app", Addresses: "2001:db8::7"}, builtIn, algo("app"),
			[]Warning{"annotation flock.fritzlab.net/ip-algo has no effect: the pod's IPv6 address is 2001:db8::7, by flock.fritzlab.net/addresses"}},
		{"ip-algo without IPv6", map[string]string{IPAlgo: "app"}, onlyV4, algo("app"),
			[]Warning{"annotation flock.fritzlab.net/ip-algo has no effect: IPv6 is off by the node's default"}},
		{"unknown keys", map[string]string{Prefix + "adresses": "x", Prefix + "IPv4": "x", Prefix + "cidr": "", Prefix + "ip-algorithm": "", Prefix + "typo": "", Prefix: ""}, builtIn, nil,
			[]Warning{
				"annotation flock.fritzlab.net/ is unknown and ignored: the keys after flock.fritzlab.net/ are ipv6, ipv4, cidr6, cidr4, addresses, anycast, ip-algo",
				"annotation flock.fritzlab.net/IPv4 is unknown and ignored: did you mean flock.fritzlab.net/ipv4?",
				"annotation flock.fritzlab.net/adresses is unknown and ignored: did you mean flock.fritzlab.net/addresses?",
				"annotation flock.fritzlab.net/cidr is unknown and ignored: did you mean flock.fritzlab.net/cidr6?",
				"annotation flock.fritzlab.net/ip-algorithm is unknown and ignored: did you mean flock.fritzlab.net/ip-algo?",
				"annotation flock.fritzlab.net/typo is unknown and ignored: the keys after flock.fritzlab.net/ are ipv6, ipv4, cidr6, cidr4, addresses, anycast, ip-algo",
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, warnings, err := Parse(tc.in, tc.defaults)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(warnings, tc.want) {
				t.Errorf("\n got %q\nwant %q", warnings, tc.want)
			}
			if !slices.Equal(got.IPAlgo, tc.algo) {
				t.Errorf("ip-algo: got %v, want %v", got.IPAlgo, tc.algo)
			}
		})
	}
	// What is wrong elsewhere does not hide a typing error.
	if _, warnings, err := Parse(map[string]string{IPv4: "x", Prefix + "ipv5": ""}, builtIn); err == nil || len(warnings) != 1 {
		t.Errorf("error %v, warnings %v", err, warnings)
	}
}

func TestPrimary(t *testing.T) {
	r := Request{Static: addrs("192.0.2.7", "2001:db8::7", "2001:db8::8", "192.0.2.8")}
	for _, tc := range []struct {
		is            func(netip.Addr) bool
		primary, next string
	}{{netip.Addr.Is6, "2001:db8::7", "[2001:db8::8]"}, {netip.Addr.Is4, "192.0.2.7", "[192.0.2.8]"}} {
		if p, further := r.Primary(tc.is); p.String() != tc.primary || fmt.Sprint(further) != tc.next {
			t.Errorf("got %s, %s", p, further)
		}
	}
	if p, further := (Request{}).Primary(netip.Addr.Is6); p.IsValid() || further != nil {
		t.Errorf("of none: got %s, %s", p, further)
	}
}

// FuzzParse holds what package grant relies on.
func FuzzParse(f *testing.F) {
	f.Add("true", "true", "2001:db8::/64", "10.0.0.0/24", "", "2001:db8::53", "app,image", Prefix+"adresses", byte(0xff))
	f.Add("", "true", "", "", "2001:db8::7, 192.0.2.7", "192.0.2.53", "namespace", "other/key", byte(0b10110010))
	f.Add("false", "x", "::/0", "10.0.0.1/24", "fe80::1%x,", "ff02::1", "app,app", Prefix, byte(0xff))
	f.Fuzz(func(t *testing.T, v6, v4, c6, c4, static, anycast, ipAlgo, unknown string, set byte) {
		in := map[string]string{}
		for i, v := range []string{v6, v4, c6, c4, static, anycast, ipAlgo} {
			if set>>i&1 == 1 {
				in[Keys[i]] = v
			}
		}
		if set>>7 == 1 {
			in[unknown] = ""
		}
		r, warnings, err := Parse(in, config.Defaults{IPv6: set&1 == 0, IPv4: set&2 == 0})
		for _, w := range warnings {
			readable(t, string(w))
		}
		if err != nil {
			readable(t, err.Error())
			if !reflect.DeepEqual(r, Request{}) {
				t.Fatalf("an error and a request: %+v", r)
			}
			return
		}
		if !r.IPv6 && !r.IPv4 {
			t.Fatal("a pod without an address")
		}
		seen := map[netip.Addr]bool{}
		for _, a := range slices.Concat(r.Static, r.Anycast) {
			if seen[a] || !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" || a.Is4() && !r.IPv4 || a.Is6() && !r.IPv6 {
				t.Fatalf("%s of %+v", a, r)
			}
			seen[a] = true
		}
		for _, c := range []struct {
			cidr netip.Prefix
			on   bool
			is   func(netip.Addr) bool
		}{{r.CIDR6, r.IPv6, netip.Addr.Is6}, {r.CIDR4, r.IPv4, netip.Addr.Is4}} {
			primary, _ := r.Primary(c.is)
			if c.cidr.IsValid() && (!c.on || !c.is(c.cidr.Addr()) || c.cidr != c.cidr.Masked() || primary.IsValid()) {
				t.Fatalf("cidr %s of %+v", c.cidr, r)
			}
		}
		if wrongAlgo(r.IPAlgo) != "" {
			t.Fatalf("ip-algo %q", r.IPAlgo)
		}
	})
}

// readable: what goes into an Event and a log is short, valid and without control characters.
func readable(t *testing.T, s string) {
	t.Helper()
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		t.Fatalf("not printable: %q", s)
	}
}

// TestManyUnknown: a pod with thousands of unknown keys makes no more warnings than people
// read.
func TestManyUnknown(t *testing.T) {
	annotations := map[string]string{}
	for i := range 10_000 {
		annotations[fmt.Sprintf("%skey-%05d", Prefix, i)] = "x"
	}
	_, warnings, err := Parse(annotations, config.Defaults{IPv6: true})
	if err != nil || len(warnings) != mostUnknown+1 {
		t.Fatalf("%d warnings, %v, want %d", len(warnings), err, mostUnknown+1)
	}
	if want := Warning("9992 more annotations that begin with " + Prefix + " are unknown and ignored"); warnings[mostUnknown] != want {
		t.Errorf("the last one is %q, want %q", warnings[mostUnknown], want)
	}
}
