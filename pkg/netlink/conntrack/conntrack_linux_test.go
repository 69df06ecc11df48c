package conntrack

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/netlink"
)

// Only the flows of UDP to the ports that are chosen are forgotten, of both families.
func TestForgetUDP(t *testing.T) {
	t.Parallel()
	client, server := nettest.New(t), nettest.New(t)
	client.Veth("eth0", server, "eth0")
	for _, a := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		client.Address("eth0", a)
	}
	for _, a := range []string{"192.0.2.2/24", "192.0.2.3/24", "2001:db8::2/64", "2001:db8::3/64"} {
		server.Address("eth0", a)
	}
	server.Exec("nft", `add table inet t; add chain inet t nat { type nat hook prerouting priority dstnat; };
		add rule inet t nat udp dport 53 ip daddr 192.0.2.2 dnat to 192.0.2.3:54;
		add rule inet t nat udp dport 53 ip6 daddr 2001:db8::2 dnat to [2001:db8::3]:54`)
	send := func(to string) {
		client.Run(func() {
			c, err := net.Dial("udp", to)
			if err == nil {
				_, err = c.Write([]byte("?"))
				c.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	server.Run(func() {
		for _, port := range []string{"53", "54"} {
			c, err := net.ListenPacket("udp", ":"+port)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		}
	})
	for _, to := range []string{"192.0.2.2:53", "192.0.2.3:53", "192.0.2.3:54", "[2001:db8::2]:53", "[2001:db8::3]:53"} {
		send(to)
	}
	flows := func(ports map[uint16]bool, forget bool) map[Flow]bool {
		seen := map[Flow]bool{}
		var err error
		server.Run(func() {
			err = ForgetUDP(ports, func(f Flow) bool {
				if from := f.From.Addr(); from != netip.MustParseAddr("192.0.2.1") && from != netip.MustParseAddr("2001:db8::1") {
					t.Errorf("flow %v", f)
				}
				f.From = netip.AddrPort{}
				seen[f] = true
				return forget && f.Server.Port() == 54
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	translated4 := Flow{To: netip.MustParseAddrPort("192.0.2.2:53"), Server: netip.MustParseAddrPort("192.0.2.3:54")}
	translated6 := Flow{To: netip.MustParseAddrPort("[2001:db8::2]:53"), Server: netip.MustParseAddrPort("[2001:db8::3]:54")}
	nettest.Await(t, "four flows", func() bool { return len(flows(map[uint16]bool{53: true}, false)) == 4 })
	if all := flows(map[uint16]bool{53: true}, true); !all[translated4] || !all[translated6] {
		t.Errorf("flows %v", all)
	}
	if left := flows(map[uint16]bool{53: true}, false); len(left) != 2 || left[translated4] || left[translated6] {
		t.Errorf("left are %v", left)
	}
	if other := flows(map[uint16]bool{54: true}, false); len(other) != 1 {
		t.Errorf("flows to the other port: %v", other)
	}
	if both := flows(map[uint16]bool{53: true, 54: true}, false); len(both) != 3 {
		t.Errorf("flows to both ports: %v", both)
	}
}

func FuzzParse(f *testing.F) {
	var r netlink.Request
	r.Begin(0, 0, unix.AF_INET, 0, 0, 0)
	for _, tuple := range []uint16{ctaTupleOrig, ctaTupleReply} {
		r.Nest(tuple, func() {
			r.Nest(ctaTupleIP, func() { r.Bytes(ctaIPv4Dst, []byte{192, 0, 2, 1}) })
			r.Nest(ctaTupleProto, func() { r.U8(ctaProtoNum, unix.IPPROTO_UDP); r.Bytes(ctaProtoDstPort, []byte{0, 53}) })
		})
	}
	f.Add([]byte(r))
	f.Fuzz(func(t *testing.T, body []byte) {
		tuple, flow, udp, err := parse(body)
		if err == nil && udp && flow.To.IsValid() && len(tuple) == 0 {
			t.Errorf("%v of an empty tuple", flow)
		}
	})
}
