package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// TestRefused: each NodeConfig of testdata/refused is wrong in one field. The
// error has the words of the file's first line, which the validation in the CRD
// uses too.
func TestRefused(t *testing.T) {
	files, err := filepath.Glob("testdata/refused/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no NodeConfig in testdata/refused", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(b), "\n")
			want := strings.TrimPrefix(first, "# ")
			var nc v1alpha1.NodeConfig
			if err := yaml.UnmarshalStrict(b, &nc); err != nil {
				t.Fatal(err)
			}
			_, err = ParseNode(&nc)
			if err == nil || want == "" || !strings.Contains(err.Error(), want) {
				t.Errorf("%v\nwant %q in it", err, want)
			} else if strings.Count(err.Error(), ": spec.")+strings.Count(err.Error(), ", spec.") > 1 {
				t.Errorf("one mistake, and more than one complaint: %v", err)
			}
		})
	}
}

func parse(t *testing.T, bgp string) *BGP {
	t.Helper()
	var nc v1alpha1.NodeConfig
	text := "spec:\n  podCIDRs: {ipv6: ['2001:db8:100:1::/64']}\n  bgp:\n    localAS: 64601\n    routerID: 192.0.2.11\n" + bgp
	if err := yaml.UnmarshalStrict([]byte(text), &nc); err != nil {
		t.Fatal(err)
	}
	n, err := ParseNode(&nc)
	if err != nil {
		t.Fatal(err)
	}
	return n.BGP
}

func TestPeerDefaults(t *testing.T) {
	got := parse(t, "    peers: [{name: tor, address: '2001:db8:0:1::1', remoteAS: 64512}]\n")
	want := &BGP{
		LocalAS: 64601, RouterID: netip.MustParseAddr("192.0.2.11"), ListenPort: 179, Multipath: 16,
		Peers: []BGPPeer{{
			Name: "tor", Addr: netip.MustParseAddr("2001:db8:0:1::1"),
			LocalAS: 64601, RemoteAS: 64512, Port: 179, IPv6: true, IPv4: true,
			Hold: 9 * time.Second, Keepalive: 3 * time.Second, ConnectRetry: 5 * time.Second,
			Restart: GracefulRestart{Mode: v1alpha1.GracefulRestartEnabled, Restart: 2 * time.Minute},
			Import:  Import{Policy: v1alpha1.ImportNone, MaxPrefixes: 10000, MaxPrefixesAction: v1alpha1.MaxPrefixesBlock},
		}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("have %+v\nwant %+v", got, want)
	}
}

func TestPeerOptions(t *testing.T) {
	med, pref := uint32(0), uint32(1<<32-1)
	got := parse(t, `
    multipath: 1
    sourceAddresses: {ipv6: "2001:db8::11", ipv4: 203.0.113.11}
    gracefulShutdown: true
    peers:
      - name: all
        address: fe80::1
        interface: bond0.100
        peerType: internal
        localAS: 4200000001
        port: 1179
        ttlSecurity: true
        passwordSecretRef: {name: bgp, key: tor}
        families: [ipv4]
        timers: {holdSeconds: 30, connectRetrySeconds: 2}
        bfd: {multiplier: 5, receiveMilliseconds: 50}
        gracefulRestart: {restartSeconds: 60, longLivedStaleSeconds: 7200}
        gracefulShutdown: true
        export: {communities: [no-export, "64512:100"], largeCommunities: ["4200000001:1:100"], localPreference: 4294967295, med: 0}
        import:
          policy: prefixes
          maxPrefixes: 5
          maxPrefixesAction: restart
          prefixes: [{prefix: "2001:db8::/32"}, {prefix: "2001:db8::/32", ge: 48}, {prefix: "10.0.0.0/8", le: 24}, {prefix: "::/0", ge: 1, le: 2}]
        allowASIn: 10
        addPaths: send
        passive: true
        disabled: true
      - {name: any, address: 192.0.2.1, peerType: external, multihop: 255, sourceAddress: 192.0.2.2, bfd: {}, export: {prepend: 2}}
`)
	want := BGPPeer{
		Name: "all", Addr: netip.MustParseAddr("fe80::1"), Interface: "bond0.100",
		LocalAS: 4200000001, RemoteAS: 4200000001, Port: 1179, TTLSecurity: true,
		Password: &SecretRef{"bgp", "tor"}, IPv4: true,
		Hold: 30 * time.Second, Keepalive: 10 * time.Second, ConnectRetry: 2 * time.Second,
		BFD:              &BFD{Receive: 50 * time.Millisecond, Transmit: 100 * time.Millisecond, Multiplier: 5},
		Restart:          GracefulRestart{Mode: v1alpha1.GracefulRestartEnabled, Restart: time.Minute, Stale: 2 * time.Hour},
		GracefulShutdown: true,
		Export: Export{
			Communities:      []Community{{65535, 65281}, {64512, 100}},
			LargeCommunities: []LargeCommunity{{4200000001, 1, 100}},
			LocalPreference:  &pref, MED: &med,
		},
		Import: Import{
			Policy: v1alpha1.ImportPrefixes, MaxPrefixes: 5, MaxPrefixesAction: v1alpha1.MaxPrefixesRestart,
			Prefixes: []PrefixMatch{
				{netip.MustParsePrefix("2001:db8::/32"), 32, 32},
				{netip.MustParsePrefix("2001:db8::/32"), 48, 128},
				{netip.MustParsePrefix("10.0.0.0/8"), 8, 24},
				{netip.MustParsePrefix("::/0"), 1, 2},
			},
		},
		AllowASIn:    10,
		AddPathsSend: true, Passive: true, Disabled: true,
	}
	if !reflect.DeepEqual(got.Peers[0], want) {
		t.Errorf("have %+v\nwant %+v", got.Peers[0], want)
	}
	if !got.Peers[0].Internal() || got.Peers[1].Internal() || got.Peers[1].RemoteAS != 0 || got.Peers[1].Multihop != 255 || got.Peers[1].Export.Prepend != 2 {
		t.Errorf("who is internal, who is not: %+v", got.Peers)
	}
	if got.Multipath != 1 || !got.GracefulShutdown || got.Sources != (Sources{netip.MustParseAddr("2001:db8::11"), netip.MustParseAddr("203.0.113.11")}) {
		t.Errorf("%+v", got)
	}
}
