package service

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/proxy/proxytest"
)

// lookAgain has the kernel be what is desired, and returns what differed from what it had last.
func lookAgain(t *testing.T, r *Routes) []string {
	t.Helper()
	r.looking.Lock()
	defer r.looking.Unlock()
	repairs, err := r.converge()
	if err != nil {
		t.Fatal(err)
	}
	return texts(repairs)
}

func texts(repairs []datapath.Repair) (all []string) {
	for _, r := range repairs {
		all = append(all, r.String())
	}
	return all
}

// wanted are a host route and a pool's prefix of each family, and an address that is not
// announced.
var wanted = map[netip.Prefix]Entry{
	netip.MustParsePrefix("2001:db8:5::7/128"): {Announced: true, Local: true},
	netip.MustParsePrefix("2001:db8:5::8/128"): {Local: true},
	netip.MustParsePrefix("2001:db8:5:1::/64"): {Announced: true, Local: true},
	netip.MustParsePrefix("203.0.113.7/32"):    {Announced: true, Local: true},
	netip.MustParsePrefix("203.0.113.128/25"):  {Announced: true, Local: true},
	netip.MustParsePrefix("198.51.100.200/32"): {Local: true},
}

func TestRoutesAppearAsWanted(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	r := openRoutes(t, ns, true)
	r.Reset(nil, nil)
	if got := lookAgain(t, r); len(got) > 0 || strings.Contains(ns.IP("link"), kernel.ServiceLink) || ns.Exec("nft", "list", "tables") != "" {
		t.Errorf("without addresses something was done: %q", got)
	}
	r.Reset(wanted, nil)
	if got, want := lookAgain(t, r), []string{"table inet flock-service: missing", "link flock-service: missing"}; !slices.Equal(got, want) {
		t.Errorf("the first look found %q, want %q", got, want)
	}
	if got := lookAgain(t, r); len(got) > 0 {
		t.Errorf("the second look found %q", got)
	}
	got := ns.Exec("sh", "-c", "ip -6 route show proto 85; ip -4 route show proto 85")
	want := `2001:db8:5::7 dev flock-service metric 640 pref medium
2001:db8:5::7 dev flock-service metric 1024 pref medium
2001:db8:5::8 dev flock-service metric 1024 pref medium
2001:db8:5:1::/64 dev flock-service metric 640 pref medium
2001:db8:5:1::/64 dev flock-service metric 1024 pref medium
198.51.100.200 dev flock-service scope link metric 1024 
203.0.113.7 dev flock-service scope link metric 640 
203.0.113.7 dev flock-service scope link metric 1024 
203.0.113.128/25 dev flock-service scope link metric 640 
203.0.113.128/25 dev flock-service scope link metric 1024 
`
	if got != want {
		t.Errorf("the kernel has\n%s\nwant\n%s", got, want)
	}
	// An agent that starts finds them.
	g := openRoutes(t, ns, true)
	kept, _, err := g.Kept()
	if err != nil || !maps.Equal(kept, wanted) {
		t.Errorf("a start finds %v, %v", kept, err)
	}
	g.Reset(kept, nil)
	if got := lookAgain(t, g); len(got) > 0 {
		t.Errorf("another look found %q", got)
	}
	if addrs := ns.IP("address", "show", "dev", kernel.ServiceLink); strings.Contains(addrs, "inet") {
		t.Errorf("the link has addresses:\n%s", addrs)
	}
	// Without addresses all of it goes, routes first.
	g.Reset(nil, nil)
	if got := ns.Exec("sh", "-c", "ip -6 route show proto 85; ip -4 route show proto 85"); got != "" {
		t.Errorf("routes are left:\n%s", got)
	}
	if got, want := lookAgain(t, g), []string{"link flock-service: stray", "table inet flock-service: stray"}; !slices.Equal(got, want) {
		t.Errorf("the end of all addresses took away %q, want %q", got, want)
	}
	if ns.Exec("nft", "list", "tables") != "" || strings.Contains(ns.IP("link"), kernel.ServiceLink) {
		t.Error("something is left")
	}
}

// Whatever another program does to link, routes and guard, the next look finds it and
// brings it back.
func TestRepair(t *testing.T) {
	t.Parallel()
	for break_, want := range map[string]string{
		"nft flush ruleset":                                                               "table inet flock-service: missing",
		"nft delete table inet flock-service":                                             "table inet flock-service: missing",
		"nft flush chain inet flock-service forward":                                      "table inet flock-service: another chain forward",
		"nft flush chain inet flock-service refuse":                                       "table inet flock-service: another chain refuse",
		"nft insert rule inet flock-service output accept":                                "table inet flock-service: another chain output",
		"nft add chain inet flock-service mine":                                           "table inet flock-service: other chains or sets",
		"nft add set inet flock-service mine '{ type ipv4_addr; }'":                       "table inet flock-service: other chains or sets",
		"nft add table inet flock-service '{ flags dormant; }'":                           "table inet flock-service: dormant",
		"ip link del flock-service":                                                       "link flock-service: missing",
		"ip link set flock-service down":                                                  "link flock-service: down",
		"ip link set flock-service arp on":                                                "link flock-service: neighbours are resolved on it",
		"ip link set flock-service addrgenmode eui64":                                     "link flock-service: automatic link-local address on",
		"echo 1 > /proc/sys/net/ipv6/conf/flock-service/disable_ipv6":                     "link flock-service: IPv6 disabled by sysctl",
		"ip route del 203.0.113.7 metric 640":                                             "203.0.113.7/32 dev flock-service proto 85 metric 640: missing",
		"ip -6 route del 2001:db8:5::7 metric 1024":                                       "2001:db8:5::7/128 dev flock-service proto 85 metric 1024: missing",
		"ip route add 203.0.113.9 dev flock-service proto 85 metric 640":                  "203.0.113.9/32 dev flock-service proto 85 metric 640: stray",
		"ip route add 203.0.113.9 dev flock-service proto 85 metric 7":                    "203.0.113.9/32 dev flock-service proto 85 metric 7: stray",
		"ip -6 route add 2001:db8:5::9 via fe80::1 dev flock-service proto 85 metric 640": "2001:db8:5::9/128 via fe80::1 dev flock-service proto 85 metric 640: stray",
	} {
		t.Run(break_, func(t *testing.T) {
			t.Parallel()
			ns := nettest.New(t)
			r := openRoutes(t, ns, true)
			if err := reset(r, wanted, nil); err != nil {
				t.Fatal(err)
			}
			look := func() []string {
				repairs, err := r.Sync(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return texts(repairs)
			}
			look()
			look()
			before := state(ns)
			if ns.Exec("sh", "-c", break_); state(ns) == before {
				t.Fatal("it changed nothing")
			}
			if got := look(); len(got) == 0 || got[0] != want {
				t.Errorf("found %q, want %q first", got, want)
			}
			if after := state(ns); after != before {
				t.Errorf("it is now\n%s\nand was\n%s", after, before)
			}
			look()
			if got := look(); len(got) > 0 {
				t.Errorf("the look after it found %q", got)
			}
		})
	}
}

// state is all that the feature has in the kernel, as people see it.
func state(ns *nettest.NS) string {
	return ns.Exec("sh", "-c", `nft list ruleset | sed 's/packets.*//'; ip -6 route show proto 85; ip route show proto 85
		ip -d link show flock-service | grep -Eo '<.*>|addrgenmode [^ ]*|mtu [^ ]*'; cat /proc/sys/net/ipv6/conf/flock-service/disable_ipv6 || :`)
}

// Every kind of link serves, as different kernels have different ones.
func TestKinds(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newFabric(t)
			if out, err := f.node.Try("ip", "link", "add", kernel.ServiceLink, "type", kind); err != nil {
				t.Skipf("this kernel has no such kind: %s", out)
			}
			f.announce()
			if got := f.node.IP("-d", "link", "show", "dev", kernel.ServiceLink); !strings.Contains(got, "NOARP") || !strings.Contains(got, kind) {
				t.Errorf("the link is %s", got)
			}
			for _, a := range vip {
				if got := ask(t, f.client, "tcp", a, servicePort); got != refusedAtOnce {
					t.Errorf("%v: %q", a, got)
				}
			}
			for i, a := range vip {
				p := proxytest.Port{Name: "shop/web:http", Protocol: "tcp", Port: servicePort, Here: endpoints(here), Local: true}
				f.program(nftables, p)
				if got, want := ask(t, f.client, "tcp", a, servicePort), "here "+outside[i].String(); got != want {
					t.Errorf("%v: %q, want %q", a, got, want)
				}
			}
			// Without the guard a packet ends at the link: it is not sent again, and nobody
			// gets it.
			f.node.Exec("nft", "flush", "ruleset")
			f.node.IP("link", "set", kernel.ServiceLink, "down")
			f.announce()
			f.node.Exec("nft", "flush", "ruleset")
			before := onLoopback(f.node)
			for _, a := range vip {
				if got := ask(t, f.client, "tcp", a, servicePort); got != noAnswer {
					t.Errorf("%v without guard: %q", a, got)
				}
			}
			if after := onLoopback(f.node); after != before {
				t.Errorf("packets went through lo: %s, and before %s", after, before)
			}
		})
	}
}

func onLoopback(ns *nettest.NS) string { return ns.Exec("grep", "lo:", "/proc/net/dev") }

// A link of another program's is not touched.
func TestLinkOfAnother(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	ns.IP("link", "add", kernel.ServiceLink, "type", "veth", "peer", "name", "other")
	r := openRoutes(t, ns, true)
	before := ns.IP("link")
	err := reset(r, wanted, nil)
	if err == nil || !strings.Contains(err.Error(), "rename it") || ns.IP("link") != before {
		t.Errorf("%v\n%s", err, ns.IP("link"))
	}
	if err := reset(r, nil, nil); err != nil || ns.IP("link") != before {
		t.Errorf("it was changed: %v\n%s", err, ns.IP("link"))
	}
}

// A route of another program in the place of one of flock's stays, and is named.
func TestRouteInTheWay(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	ns.IP("route", "add", "unreachable", "203.0.113.7", "metric", "640")
	r := openRoutes(t, ns, true)
	err := reset(r, wanted, nil)
	if err == nil || !strings.Contains(err.Error(), "announce 203.0.113.7/32: a route of another program") {
		t.Errorf("error %v", err)
	}
	if got := ns.IP("route", "show", "203.0.113.7"); !strings.Contains(got, "unreachable") {
		t.Errorf("its route is gone: %s", got)
	}
	// All others are there.
	others := maps.Clone(wanted)
	others[hostPrefix(vip[1])] = Entry{Local: true}
	if got := r.Actual(); !maps.Equal(got, others) {
		t.Errorf("the kernel has %v, want %v", got, others)
	}
	ns.IP("route", "del", "unreachable", "203.0.113.7", "metric", "640")
	if err := r.Complete(); err != nil || !maps.Equal(r.Actual(), wanted) {
		t.Errorf("the kernel has %v, want %v: %v", r.Actual(), wanted, err)
	}
}

// A packet that conntrack calls invalid is not translated. An answer to it would end the
// connection that it is a late part of.
func TestInvalidPacketsAreNotAnswered(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	f.program(nftables, proxytest.Port{Name: "shop/web:http", Protocol: "tcp", Port: servicePort, Here: endpoints(here), Local: true})
	f.announce()
	for i, a := range vip {
		var fd int
		f.client.Run(func() {
			var err error
			family := []int{unix.AF_INET6, unix.AF_INET}[i]
			if fd, err = unix.Socket(family, unix.SOCK_RAW, unix.IPPROTO_TCP); err != nil {
				t.Fatal(err)
			}
		})
		defer unix.Close(fd)
		var to unix.Sockaddr = &unix.SockaddrInet6{Addr: a.As16()}
		if a.Is4() {
			to = &unix.SockaddrInet4{Addr: a.As4()}
		}
		// Flags that no packet of TCP has are invalid in any state.
		segment := []byte{0x13, 0x88, 0, servicePort, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x03, 0x10, 0, 0, 0, 0, 0}
		refusedBefore, _ := f.routes.Refused()
		if err := unix.Sendto(fd, segment, 0, to); err != nil {
			t.Fatal(err)
		}
		nettest.Await(t, "the packet at the guard", func() bool { n, _ := f.routes.Refused(); return n > refusedBefore })
		in := make([]byte, 200)
		_ = unix.SetNonblock(fd, true)
		if n, _, err := unix.Recvfrom(fd, in, 0); err == nil {
			t.Errorf("%v: an answer of %d bytes: %x", a, n, in[:n])
		}
		if got, want := ask(t, f.client, "tcp", a, servicePort), "here "+outside[i].String(); got != want {
			t.Errorf("%v: %q, want %q", a, got, want)
		}
	}
}
