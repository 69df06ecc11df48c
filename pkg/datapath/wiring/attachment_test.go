package wiring

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

func TestHostIfName(t *testing.T) {
	t.Parallel()
	// FNV-1a-32's published test vectors: "" and "foobar".
	for id, want := range map[string]string{"": "flock811c9dc5", "foobar": "flockbf9cf968"} {
		if got := HostIfName(id); got != want {
			t.Errorf("HostIfName(%q) = %s, want %s", id, got, want)
		}
	}
}

func TestPodMACIsLocalUnicastAndStable(t *testing.T) {
	t.Parallel()
	seen := map[MAC]string{}
	for _, id := range []string{"", "a", "b", "foobar", strings.Repeat("f", 64)} {
		m := PodMAC(id)
		if m[0]&0x03 != 0x02 {
			t.Errorf("PodMAC(%q) = %v: want a locally administered unicast address", id, m)
		}
		if other, ok := seen[m]; ok {
			t.Errorf("PodMAC(%q) = PodMAC(%q) = %v", id, other, m)
		}
		seen[m] = id
	}
	// FNV-1a-64 of "foobar" is 85944171f73967e8.
	if got, want := PodMAC("foobar").String(), "42:71:f7:39:67:e8"; got != want {
		t.Errorf("PodMAC(foobar) = %s, want %s", got, want)
	}
}

func TestLinkLocal(t *testing.T) {
	t.Parallel()
	// The example of RFC 4291, appendix A, with its universal bit inverted.
	if got, want := LinkLocal(MAC{0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde}), netip.MustParseAddr("fe80::3656:78ff:fe9a:bcde"); got != want {
		t.Errorf("LinkLocal = %v, want %v", got, want)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	addrs := func(ss ...string) (as []netip.Addr) {
		for _, s := range ss {
			as = append(as, netip.MustParseAddr(s))
		}
		return as
	}
	good := Attachment{
		ContainerID: "c0ffee", HostIf: HostIfName("c0ffee"), PodIf: "eth0", MTU: 1500,
		Addrs: addrs("2001:db8::5", "10.1.2.3"), Routed: addrs("10.1.2.3"),
	}
	if err := good.Validate(); err != nil {
		t.Errorf("a good attachment: %v", err)
	}
	for name, tc := range map[string]struct {
		change func(*Attachment)
		want   string
	}{
		"no container":         {func(a *Attachment) { a.ContainerID = "" }, `container ID ""`},
		"container with space": {func(a *Attachment) { a.ContainerID = "a b" }, `container ID "a b"`},
		"long container":       {func(a *Attachment) { a.ContainerID = strings.Repeat("x", 129) }, "1 to 128"},
		"someone's interface":  {func(a *Attachment) { a.HostIf = "eth0" }, `host interface "eth0"`},
		"path as name":         {func(a *Attachment) { a.PodIf = "../x" }, `interface name "../x"`},
		"long name":            {func(a *Attachment) { a.PodIf = "sixteen-letters-" }, "1 to 15"},
		"tiny mtu":             {func(a *Attachment) { a.MTU = 60 }, "mtu 60"},
		"mtu below IPv6's":     {func(a *Attachment) { a.MTU = 1279 }, "mtu 1279 with address 2001:db8::5"},
		"no address":           {func(a *Attachment) { a.Addrs, a.Routed = nil, nil }, "no address"},
		"zero address":         {func(a *Attachment) { a.Addrs[0] = netip.Addr{} }, "address invalid IP"},
		"mapped address":       {func(a *Attachment) { a.Addrs[0] = netip.MustParseAddr("::ffff:10.1.2.4") }, "an IPv4 address in IPv6's notation"},
		"link-local":           {func(a *Attachment) { a.Addrs[0] = netip.MustParseAddr("fe80::5") }, "address fe80::5"},
		"multicast":            {func(a *Attachment) { a.Addrs[0] = netip.MustParseAddr("ff02::5") }, "address ff02::5"},
		"loopback":             {func(a *Attachment) { a.Addrs[0] = netip.MustParseAddr("127.0.0.1") }, "address 127.0.0.1"},
		"twice":                {func(a *Attachment) { a.Addrs = append(a.Addrs, a.Addrs[1]) }, "10.1.2.3: named twice"},
		"routed twice":         {func(a *Attachment) { a.Routed = append(a.Routed, a.Routed[0]) }, "routed address 10.1.2.3: named twice"},
		"routed, not held":     {func(a *Attachment) { a.Routed = addrs("10.1.2.4") }, "routed address 10.1.2.4: not among"},
	} {
		t.Run(name, func(t *testing.T) {
			a := good
			a.Addrs, a.Routed = append([]netip.Addr(nil), good.Addrs...), append([]netip.Addr(nil), good.Routed...)
			tc.change(&a)
			err := a.Validate()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestCollisionErrorNamesTheOther(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]*CollisionError{
		`flock1.*belongs to container c0ffee \(shop/web-0\)`:                        {HostIf: "flock1", Owner: "c0ffee", Alias: "shop/web-0"},
		`flock1.*belongs to an unknown container`:                                   {HostIf: "flock1"},
		`address 10\.1\.2\.3: already routed to flock1 of container c0ffee \(s/w\)`: {HostIf: "flock1", Addr: netip.MustParseAddr("10.1.2.3"), Owner: "c0ffee", Alias: "s/w"},
	} {
		if !regexp.MustCompile(want).MatchString(e.Error()) {
			t.Errorf("%q does not match %q", e.Error(), want)
		}
	}
}
