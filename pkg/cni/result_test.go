package cni

import (
	"bytes"
	"cmp"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

func TestResultInEachVersion(t *testing.T) {
	const (
		interfaces = `"interfaces":[{"name":"flock0badcafe","mac":"02:66:6c:6f:63:6b"},{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/a"}],`
		withMTU    = `"interfaces":[{"name":"flock0badcafe","mac":"02:66:6c:6f:63:6b"},{"name":"eth0","mac":"02:00:00:00:00:01","mtu":1500,"sandbox":"/run/netns/a"}],`

		ips          = `"ips":[{"interface":1,"address":"2001:db8:100:1::a/128","gateway":"fe80::1"},{"interface":1,"address":"10.244.1.10/32","gateway":"169.254.1.1"}],`
		withFamilies = `"ips":[{"version":"6","interface":1,"address":"2001:db8:100:1::a/128","gateway":"fe80::1"},{"version":"4","interface":1,"address":"10.244.1.10/32","gateway":"169.254.1.1"}],`

		routes = `"routes":[{"dst":"::/0","gw":"fe80::1"},{"dst":"169.254.1.1/32"},{"dst":"0.0.0.0/0","gw":"169.254.1.1"}]}` + "\n"
	)
	for cniVersion, want := range map[string]string{
		"0.3.1": `{"cniVersion":"0.3.1",` + interfaces + withFamilies + routes,
		"0.4.0": `{"cniVersion":"0.4.0",` + interfaces + withFamilies + routes,
		"1.0.0": `{"cniVersion":"1.0.0",` + interfaces + ips + routes,
		"1.1.0": `{"cniVersion":"1.1.0",` + withMTU + ips + routes,
	} {
		got, err := sample().json(cniVersion, "/run/netns/a")
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n got %s\nwant %s", cniVersion, err, got, want)
		}
	}
}

// The spec's library makes the same of a result, whatever it has and leaves out.
func TestResultIsTheLibrarys(t *testing.T) {
	for name, change := range map[string]func(*Result){
		"the sample":          func(*Result) {},
		"no MTU":              func(r *Result) { r.MTU = 0 },
		"a sandbox":           func(r *Result) { r.Sandbox = "/run/netns/<b>&c" },
		"no MAC":              func(r *Result) { r.PodIf.MAC = nil },
		"no gateway":          func(r *Result) { r.Addresses[0].Gateway = netip.Addr{} },
		"one family":          func(r *Result) { r.Addresses = r.Addresses[1:] },
		"no addresses":        func(r *Result) { r.Addresses = nil },
		"no routes":           func(r *Result) { r.Routes = nil },
		"an address of a net": func(r *Result) { r.Addresses[1].Prefix = netip.MustParsePrefix("10.244.1.10/24") },
	} {
		for _, cniVersion := range SupportedVersions {
			r := sample()
			change(r)
			got, err := r.json(cniVersion, "/run/netns/a")
			if err != nil {
				t.Errorf("%s, %s: %v", name, cniVersion, err)
				continue
			}
			read, err := create.Create(cniVersion, got)
			if err != nil {
				t.Errorf("%s, %s: the library cannot read it: %v\n%s", name, cniVersion, err, got)
				continue
			}
			var is, want bytes.Buffer
			wanted, err := r.types100("/run/netns/a", cniVersion).GetAsVersion(cniVersion)
			if err := errors.Join(err, read.PrintTo(&is)); err != nil {
				t.Fatal(err)
			}
			if err := wanted.PrintTo(&want); err != nil {
				t.Fatal(err)
			}
			if is.String() != want.String() {
				t.Errorf("%s, %s: the library reads\n%s\nwant\n%s", name, cniVersion, is.String(), want.String())
			}
		}
	}
}

// types100 is r as the spec's library has it.
func (r *Result) types100(netNSPath, cniVersion string) *types100.Result {
	out := &types100.Result{
		CNIVersion: latestVersion,
		Interfaces: []*types100.Interface{
			{Name: r.HostIf.Name, Mac: r.HostIf.MAC.String()},
			{Name: r.PodIf.Name, Mac: r.PodIf.MAC.String(), Sandbox: cmp.Or(r.Sandbox, netNSPath)},
		},
	}
	if cniVersion == latestVersion {
		out.Interfaces[1].Mtu = r.MTU
	}
	for _, a := range r.Addresses {
		out.IPs = append(out.IPs, &types100.IPConfig{Interface: types100.Int(1), Address: ipNet(a.Prefix), Gateway: a.Gateway.AsSlice()})
	}
	for _, route := range r.Routes {
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(route.Dst), GW: route.Gateway.AsSlice()})
	}
	return out
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func TestResultRefusesWhatIsNoAddress(t *testing.T) {
	r := sample()
	r.Addresses = append(r.Addresses, Address{})
	if _, err := r.json("1.1.0", "/"); err == nil {
		t.Error("an address that is none was taken")
	}
	r = sample()
	r.Routes = append(r.Routes, Route{})
	if _, err := r.json("1.1.0", "/"); err == nil {
		t.Error("a route that is none was taken")
	}
}

func TestComparePrevResult(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Result)
		want   string // empty if they are the same
	}{
		"the same":        {func(*Result) {}, ""},
		"another gateway": {func(r *Result) { r.Addresses[0].Gateway = netip.Addr{} }, ""}, // not CHECK's: routes are the kernel's
		"address lost":    {func(r *Result) { r.Addresses = r.Addresses[:1] }, "pod does not hold 10.244.1.10/32"},
		"address won": {func(r *Result) {
			r.Addresses = append(r.Addresses, Address{Prefix: netip.MustParsePrefix("192.0.2.1/32")})
		}, "pod address 192.0.2.1/32 is not in it"},
		"another length":      {func(r *Result) { r.Addresses[1].Prefix = netip.MustParsePrefix("10.244.1.10/24") }, "pod address 10.244.1.10/24 is not in it, pod does not hold 10.244.1.10/32"},
		"another host if":     {func(r *Result) { r.HostIf.Name = "flock00000000" }, "host interface flock00000000 is not in it"},
		"another host MAC":    {func(r *Result) { r.HostIf.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 9} }, "host interface flock0badcafe has MAC 02:00:00:00:00:09, not 02:66:6c:6f:63:6b"},
		"another pod if":      {func(r *Result) { r.PodIf.Name = "eth1" }, "pod interface eth1 is not in it"},
		"another pod MAC":     {func(r *Result) { r.PodIf.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 9} }, "pod interface eth0 has MAC 02:00:00:00:00:09, not 02:00:00:00:00:01"},
		"pod if on the host":  {func(r *Result) { r.PodIf.Name = r.HostIf.Name }, "pod interface flock0badcafe is not in it"},
		"host if in the pod":  {func(r *Result) { r.HostIf.Name = "eth0" }, "host interface eth0 is not in it"},
		"MAC was not written": {func(r *Result) { r.PodIf.MAC = nil }, "has MAC , not"},
	} {
		for _, cniVersion := range SupportedVersions[1:] {
			written, err := sample().json(cniVersion, "/run/netns/a")
			if err != nil {
				t.Fatal(err)
			}
			prev, err := parsePrevResult(cniVersion, written)
			if err != nil {
				t.Fatal(err)
			}
			call := &Call{ContainerID: "c0ffee", Config: Config{PrevResult: prev}}
			now := sample()
			c.change(now)
			err = call.ComparePrevResult(now)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("%s, %s: %v", name, cniVersion, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), "container c0ffee: prevResult is not what the pod has: ") || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%s, %s: got %v, want %q in the text", name, cniVersion, err, c.want)
			}
		}
	}
	if err := (&Call{}).ComparePrevResult(sample()); err == nil {
		t.Error("no prevResult passed for the same")
	}
}

// A runtime may leave the version out of prevResult: it is the list's then.
func TestPrevResultWithoutVersion(t *testing.T) {
	for _, cniVersion := range SupportedVersions {
		prev, err := parsePrevResult(cniVersion, []byte(`{"ips":[{"version":"6","address":"2001:db8::1/128"}]}`))
		if err != nil || len(prev.IPs) != 1 {
			t.Errorf("%s: %v, %v", cniVersion, prev, err)
		}
	}
}

func TestPrefixSurvivesConversion(t *testing.T) {
	for _, s := range []string{"10.0.0.1/32", "0.0.0.0/0", "2001:db8::1/64", "::/0", "::/128"} {
		p := netip.MustParsePrefix(s)
		if got, ok := prefixOf(ipNet(p)); !ok || got != p {
			t.Errorf("%s: got %v, %v", s, got, ok)
		}
	}
	// IPv4 in 16 bytes, as net.ParseCIDR may give it.
	n := net.IPNet{IP: net.ParseIP("10.0.0.1"), Mask: net.CIDRMask(120, 128)}
	if got, ok := prefixOf(n); !ok || got.String() != "10.0.0.1/24" {
		t.Errorf("got %v, %v", got, ok)
	}
	n.Mask = net.CIDRMask(64, 128)
	if got, ok := prefixOf(n); ok {
		t.Errorf("an IPv4 prefix of -32 bits: got %v", got)
	}
}

func sample() *Result {
	return &Result{
		HostIf: Interface{Name: "flock0badcafe", MAC: net.HardwareAddr{0x02, 0x66, 0x6c, 0x6f, 0x63, 0x6b}},
		PodIf:  Interface{Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
		MTU:    1500,
		Addresses: []Address{
			{Prefix: netip.MustParsePrefix("2001:db8:100:1::a/128"), Gateway: netip.MustParseAddr("fe80::1")},
			{Prefix: netip.MustParsePrefix("10.244.1.10/32"), Gateway: netip.MustParseAddr("169.254.1.1")},
		},
		Routes: []Route{
			{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fe80::1")},
			{Dst: netip.MustParsePrefix("169.254.1.1/32")},
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("169.254.1.1")},
		},
	}
}
