package bird

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// ospfNode makes an Intent from the part of a NodeConfig below ospf.
func ospfNode(t testing.TB, ospf string) []byte {
	t.Helper()
	return Render(intentOf(t, []byte(`
spec:
  podCIDRs: {ipv6: ["2001:db8:100:1::/64"], ipv4: [10.244.1.0/24]}
  ospf:
    routerID: 192.0.2.11
`+ospf)))
}

const password = "correct-horse-battery-staple" // intentOf gives every reference this

// ospfRouter is BIRD as the router. The blanks are: the area's kind, options of
// the interface, then the same for IPv4 with its version in front.
const ospfRouter = `
log stderr all;
router id 192.0.2.1;
timeformat base iso long ms;
timeformat protocol iso long ms;
protocol device {}
protocol kernel { ipv6 { export where source != RTS_STATIC; }; }
protocol kernel { ipv4 { export where source != RTS_STATIC; }; }
protocol static { ipv6; route ::/0 blackhole; route 2001:db8:200::/48 blackhole; }
protocol static { ipv4; route 0.0.0.0/0 blackhole; route 198.51.100.0/24 blackhole; }
protocol ospf v3 ospf6 {
	ipv6 { import all; export where source = RTS_STATIC; };
	area %[1]s { %[2]s interface "eth0" { cost 5; hello 1; dead 4; %[3]s }; };
}
protocol ospf %[4]s ospf4 {
	ipv4 { import all; export where source = RTS_STATIC; };
	area %[1]s { %[2]s interface "eth0" { cost 5; hello 1; dead 4; %[5]s }; };
}
`

// TestOSPF lets a node and a router speak OSPF: the router's kernel has the
// summaries and the anycast addresses, at the configured cost.
func TestOSPF(t *testing.T) {
	t.Parallel()
	const intervals = "helloSeconds: 1, deadSeconds: 4"
	for name, test := range map[string]struct {
		ospf string // below spec.ospf
		// start makes the router; bird's configuration if nil.
		start  func(t *testing.T, tor *routingtest.NS)
		router []any // blanks of ospfRouter
		metric string
		down   bool
	}{
		"broadcast": {
			ospf:   `    interfaces: [{name: eth0, ` + intervals + `}]`,
			router: []any{"0.0.0.0", "", "", "v2", ""},
			metric: "E1 (150/25)", // 20 and the router's own 5
		},
		"point to point, cost, type 2": {
			ospf:   "    cost: 77\n    metricType: 2\n" + `    interfaces: [{name: eth0, networkType: point-to-point, ` + intervals + `}]`,
			router: []any{"0.0.0.0", "", "type ptp;", "v2", "type ptp;"},
			metric: "E2 (150/5/77)",
		},
		"another area": {
			ospf:   "    area: 0.0.0.7\n" + `    interfaces: [{name: eth0, networkType: point-to-point, ` + intervals + `}]`,
			router: []any{"0.0.0.7", "", "type ptp;", "v2", "type ptp;"},
			metric: "E1 (150/25)",
		},
		"ipv4 over v3": {
			ospf:   "    ipv4Version: v3\n" + `    interfaces: [{name: eth0, networkType: point-to-point, ` + intervals + `}]`,
			router: []any{"0.0.0.0", "", "type ptp;", "v3", "type ptp;"},
			metric: "E1 (150/25)",
		},
		"authentication": {
			ospf:   `    interfaces: [{name: eth0, networkType: point-to-point, ` + intervals + `, authentication: {passwordSecretRef: {name: ospf, key: k}, keyID: 7, ipv4Algorithm: md5}}]`,
			router: []any{"0.0.0.0", "", `type ptp; authentication cryptographic; password "` + password + `" { id 7; algorithm hmac sha256; };`, "v2", `type ptp; authentication cryptographic; password "` + password + `" { id 7; algorithm keyed md5; };`},
			metric: "E1 (150/25)",
		},
		"another password": {
			ospf:   `    interfaces: [{name: eth0, networkType: point-to-point, ` + intervals + `, authentication: {passwordSecretRef: {name: ospf, key: k}}}]`,
			router: []any{"0.0.0.0", "", `type ptp; authentication cryptographic; password "x" { id 1; algorithm hmac sha256; };`, "v2", `type ptp; authentication cryptographic; password "x" { id 1; algorithm hmac sha256; };`},
			down:   true,
		},
		"frr": {
			ospf:  `    interfaces: [{name: eth0, ` + intervals + `, authentication: {passwordSecretRef: {name: ospf, key: k}, families: [ipv4], ipv4Algorithm: md5}}]`,
			start: startFRROSPF,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node, tor := pair(t)
			node.IP("-6 route add unreachable 2001:db8:100:1::/64 proto 85 metric 512")
			node.IP("route add unreachable 10.244.1.0/24 proto 85 metric 512")
			node.IP("-6 route add 2001:db8:100:1::5/128 dev pod proto 85 metric 1024")
			var router *routingtest.BIRD
			if test.start != nil {
				test.start(t, tor)
			} else {
				router = routingtest.StartBIRDWith(tor, fmt.Sprintf(ospfRouter, test.router...))
			}
			b := startNode(t, node, ospfNode(t, "    import: {policy: default}\n"+test.ospf))
			if test.down {
				for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
					if rs := learned(tor); len(rs) > 0 {
						t.Fatalf("the router has learned %v", rs)
					}
				}
				return
			}
			wantExternal(t, tor, "2001:db8:100:1::/64", "10.244.1.0/24")
			if router != nil {
				for _, prefix := range []string{"2001:db8:100:1::/64", "10.244.1.0/24"} {
					if out := fmt.Sprint(router.Show("show route for " + prefix)); !strings.Contains(out, test.metric) {
						t.Errorf("want %s: %s", test.metric, out)
					}
				}
			}
			// The router's defaults are taken, and nothing else.
			routingtest.Eventually(t, 10*time.Second, func() error {
				rs := node.Routes("proto bird")
				if len(rs) != 2 || rs[0].Prefix() != "::/0" || rs[1].Prefix() != "0.0.0.0/0" || rs[0].Metric != kernelMetric {
					return fmt.Errorf("want the two defaults: %+v", rs)
				}
				return nil
			})
			node.IP("-6 route add 2001:db8:a::a/128 dev pod proto 85 metric 512")
			wantExternal(t, tor, "2001:db8:100:1::/64", "10.244.1.0/24", "2001:db8:a::a/128")
			node.IP("-6 route del 2001:db8:a::a/128 proto 85 metric 512")
			wantExternal(t, tor, "2001:db8:100:1::/64", "10.244.1.0/24")
			if log := b.Log(); strings.Contains(log, "<ERR>") || strings.Contains(log, "<BUG>") {
				t.Errorf("BIRD complains:\n%s", log)
			}
		})
	}
}

// startFRROSPF starts FRR without authentication of OSPFv3: 8.4.4 puts the protocol
// ID of RFC 7166 section 4.5 into the key in the host's byte order, and so agrees
// with no other implementation on a little-endian machine.
func startFRROSPF(t *testing.T, tor *routingtest.NS) {
	log, err := routingtest.StartFRROSPF(tor, `
interface eth0
 ip ospf area 0.0.0.0
 ip ospf hello-interval 1
 ip ospf dead-interval 4
 ip ospf authentication message-digest
 ip ospf message-digest-key 1 md5 correct-horse-ba
router ospf
 ospf router-id 192.0.2.1
 default-information originate always
`, `
interface eth0
 ipv6 ospf6 area 0.0.0.0
 ipv6 ospf6 hello-interval 1
 ipv6 ospf6 dead-interval 4
router ospf6
 ospf6 router-id 192.0.2.1
 default-information originate always
`)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log())
		}
	})
}

// learned are the prefixes that a router has from the node.
func learned(tor *routingtest.NS) map[string]bool {
	got := map[string]bool{}
	for _, protocol := range []string{"bird", "ospf"} {
		for _, r := range tor.Routes("proto " + protocol) {
			if p := r.Prefix(); p != "2001:db8:0:1::/64" && p != "192.0.2.0/24" {
				got[p] = true
			}
		}
	}
	return got
}

func wantExternal(t *testing.T, tor *routingtest.NS, prefixes ...string) {
	t.Helper()
	want := map[string]bool{}
	for _, p := range prefixes {
		want[p] = true
	}
	routingtest.Eventually(t, 25*time.Second, func() error {
		if got := learned(tor); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("the router's kernel has %v, want %v", got, want)
		}
		return nil
	})
}
