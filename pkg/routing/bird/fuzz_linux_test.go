package bird

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

// FuzzRender makes a NodeConfig and AddressPools of text and choices. What the parser lets pass
// must render to a configuration that BIRD accepts, and that has the same
// statements as that of a twin with harmless text.
func FuzzRender(f *testing.F) {
	f.Add("tor", "2001:db8::1", "eth0", "2001:db8::2", "secret", "64512:100", "1:2:3", "2001:db8::/32", []byte{})
	f.Add("a-b-1", "fe80::1", "bond0.100", "", `p{;}'#`, "no-export", "4294967295:0:1", "::/0", []byte("all of it, please, and twice"))
	f.Add("path", "", "eth0", "", " ", "0:0", "0:0:0", "10.0.0.0/8", []byte{255, 254, 253, 252, 251, 250, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add("tor }", "192.0.2.1; }", "eth0\"", "192.0.2.1\n", "a\"", "1:1)", "1:1:1)", "10.0.0.0/8]", []byte{1})
	f.Add("x", "192.0.2.1", "", "192.0.2.2", "x", "65535:65535", "1:1:1", "0.0.0.0/0", []byte{2, 9, 200, 31, 7, 0, 0, 1, 99, 140, 3, 3, 3, 8, 77})
	f.Add("x", "192.0.2.1", "", "", "", "64512:53", "1:2:3", "203.0.113.0/24", append(make([]byte, 21), 1, 1, 2, 1, 9, 1, 9, 2, 1, 0, 1, 1, 1, 77, 0))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, name, address, iface, source, password, comm, largeComm, cidr string, choices []byte) {
		in, err := fuzzedIntent(name, address, iface, source, comm, largeComm, cidr, choices)
		if err != nil {
			t.Skip()
		}
		if pw, err := routing.ParsePassword([]byte(password)); err == nil {
			in.Passwords = map[config.SecretRef]routing.Password{{Name: "bgp", Key: "tor"}: pw}
		}
		wantSameStatements(t, in)
		file := filepath.Join(dir, "bird.conf")
		if err := os.WriteFile(file, Render(in), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkFile(t.Context(), file); err != nil {
			t.Errorf("%v\n%s", err, Render(in))
		}
	})
}

// FuzzRenderUnparsed skips the parser: even text that it would refuse does not
// add a statement.
func FuzzRenderUnparsed(f *testing.F) {
	f.Add("tor", "eth0", uint32(64512))
	f.Add("tor } protocol static {", "eth0\"; }\n", uint32(0))
	f.Add("\x00'/*", "*\\", uint32(1))
	f.Fuzz(func(t *testing.T, name, iface string, as uint32) {
		in := routing.Intent{BGP: &config.BGP{RouterID: netip.MustParseAddr("192.0.2.1"), Peers: []config.BGPPeer{
			{Name: name, Interface: iface, RemoteAS: as, IPv6: true},
			{Name: "x", Addr: netip.MustParseAddr("fe80::1%" + strings.Map(notNUL, "x"+iface)), Interface: iface},
		}}}
		wantSameStatements(t, in)
	})
}

func notNUL(r rune) rune {
	if r == 0 {
		return 'x'
	}
	return r
}

// wantSameStatements compares in with a twin that has other text and the same
// choices: what stands between the words must be the same.
func wantSameStatements(t *testing.T, in routing.Intent) {
	t.Helper()
	twin := in
	bgp := *in.BGP
	bgp.Peers = nil
	twin.BGP = &bgp
	for i, p := range in.BGP.Peers {
		p.Name = fmt.Sprintf("twin%d", i)
		if p.Interface != "" {
			p.Interface = "twin"
		}
		bgp.Peers = append(bgp.Peers, p)
	}
	if in.OSPF != nil {
		ospf := *in.OSPF
		ospf.Interfaces = slices.Clone(ospf.Interfaces)
		for i := range ospf.Interfaces {
			ospf.Interfaces[i].Name = "twin"
		}
		twin.OSPF = &ospf
	}
	if len(in.Passwords) > 0 {
		twin.Passwords = map[config.SecretRef]routing.Password{}
		for ref := range in.Passwords {
			twin.Passwords[ref], _ = routing.ParsePassword([]byte("twin"))
		}
	}
	got, want := statements(Render(in)), statements(Render(twin))
	if got != want {
		t.Errorf("statements:\n%s\nwant those of its twin:\n%s\nin\n%s", got, want, Render(in))
	}
}

// statements is a configuration without its words: comments and what stands in
// quotes are gone, what is left of a line is its first word and its punctuation.
func statements(conf []byte) string {
	var out strings.Builder
	for line := range strings.Lines(string(conf)) {
		before, quotedAndAfter, _ := strings.Cut(line, `"`)
		if end := strings.LastIndexByte(quotedAndAfter, '"'); end >= 0 {
			quotedAndAfter = quotedAndAfter[end:]
		}
		line, _, _ = strings.Cut(before+quotedAndAfter, "#")
		first, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(first, "peer_") {
			first = ""
		}
		out.WriteString(first + " " + strings.Map(func(r rune) rune {
			if strings.ContainsRune("{}[]();,\"'#\n", r) {
				return r
			}
			return -1
		}, line))
		out.WriteByte('\n')
	}
	return out.String()
}

// fuzzedIntent spends choices on every option that is a choice or a number.
func fuzzedIntent(name, address, iface, source, comm, largeComm, cidr string, choices []byte) (routing.Intent, error) {
	next := func() int {
		if len(choices) == 0 {
			return 0
		}
		c := choices[0]
		choices = choices[1:]
		return int(c)
	}
	node, err := config.ParseNode(fuzzedConfig(name, address, iface, source, comm, largeComm, cidr, next))
	if err != nil {
		return routing.Intent{}, err
	}
	in := routing.IntentOf(node)
	var pools []config.Pool
	for range next() % 4 {
		pool, err := config.ParsePool(fuzzedPool(comm, largeComm, cidr, next))
		if err != nil {
			return in, err
		}
		pools = append(pools, pool)
	}
	in.Pools = routing.PoolsOf(pools)
	return in, nil
}

func fuzzedPool(comm, largeComm, cidr string, next func() int) *v1alpha1.AddressPool {
	ap := &v1alpha1.AddressPool{}
	ap.Name = fmt.Sprint(next())
	ap.Spec.CIDRs = [][]v1alpha1.CIDR{{v1alpha1.CIDR(cidr)}, {"2001:db8:a::/48", "203.0.113.0/28"}, {"2001:db8:a:b::/64"}, {"203.0.113.7/32"}}[next()%4]
	ap.Spec.Uses = [][]v1alpha1.PoolUse{{"static"}, {"anycast"}, {"static", "anycast"}, {"service"}, {"static", "anycast", "service"}}[next()%5]
	r := &ap.Spec.Routing
	r.Prepend = int32(next() % 4)
	if next()%2 == 1 {
		r.Communities = []v1alpha1.Community{v1alpha1.Community(comm)}
	}
	if next()%2 == 1 {
		r.LargeCommunities = []v1alpha1.LargeCommunity{v1alpha1.LargeCommunity(largeComm)}
	}
	if n := int64(next()) << 24; next()%2 == 1 {
		r.MED = &n
	}
	if n := int64(next()) << 24; next()%2 == 1 {
		r.LocalPreference = &n
	}
	return ap
}

func fuzzedConfig(name, address, iface, source, comm, largeComm, cidr string, next func() int) *v1alpha1.NodeConfig {
	yes := func() bool { return next()%2 == 1 }
	some := func(low int) *int32 { // nil, or a number that is often near a limit
		n := next()
		if n == 0 {
			return nil
		}
		v := int32(low + n*n*n/7)
		return &v
	}
	p := v1alpha1.BGPPeer{
		Name: name, Address: address, Interface: iface, SourceAddress: source,
		RemoteAS: []v1alpha1.ASNumber{64512, 64601, 4294967294, 0}[next()%4],
		Port:     int32(next()), Multihop: int32(next()), TTLSecurity: yes(),
		GracefulShutdown: yes(), Passive: yes(), Disabled: yes(),
		AllowASIn: int32(next() % 12), AddPaths: []v1alpha1.AddPaths{"", "off", "receive", "send", "both"}[next()%5],
		Families: [][]v1alpha1.Family{nil, {"ipv6"}, {"ipv4"}, {"ipv4", "ipv6"}}[next()%4],
	}
	if p.RemoteAS == 0 {
		p.PeerType = []v1alpha1.BGPPeerType{"external", "internal"}[next()%2]
	}
	if yes() {
		p.PasswordSecretRef = &v1alpha1.SecretKeyRef{Name: "bgp", Key: "tor"}
	}
	if yes() {
		p.Timers = &v1alpha1.BGPTimers{HoldSeconds: some(3), KeepaliveSeconds: some(1), ConnectRetrySeconds: some(1)}
	}
	if yes() {
		p.BFD = &v1alpha1.BFD{ReceiveMilliseconds: some(10), TransmitMilliseconds: some(10), Multiplier: some(2)}
	}
	if yes() {
		p.GracefulRestart = &v1alpha1.BGPGracefulRestart{Mode: []v1alpha1.GracefulRestartMode{"", "enabled", "aware", "disabled"}[next()%4], RestartSeconds: some(1), LongLivedStaleSeconds: some(1)}
	}
	if yes() {
		p.Export = &v1alpha1.BGPExport{Prepend: int32(next() % 17), Communities: []v1alpha1.Community{v1alpha1.Community(comm)}, LargeCommunities: []v1alpha1.LargeCommunity{v1alpha1.LargeCommunity(largeComm)}}
		if n := int64(next()) << 25; yes() {
			p.Export.MED = &n
		}
		if n := int64(next()) << 25; p.PeerType == "internal" || p.RemoteAS == 64601 {
			p.Export.LocalPreference = &n
		}
	}
	if yes() {
		p.Import = &v1alpha1.Import{
			Policy:            []v1alpha1.ImportPolicy{"none", "default", "all", "prefixes"}[next()%4],
			MaxPrefixes:       some(1),
			MaxPrefixesAction: []v1alpha1.MaxPrefixesAction{"", "block", "warn", "restart", "disable"}[next()%5],
		}
		if p.Import.Policy == "prefixes" {
			p.Import.Prefixes = []v1alpha1.PrefixMatch{{Prefix: v1alpha1.CIDR(cidr), GE: some(0), LE: some(0)}}
		}
	}
	var ospf *v1alpha1.OSPF
	if iface != "" && yes() {
		ospf = fuzzedOSPF(iface, cidr, next, some)
	}
	second := v1alpha1.BGPPeer{Name: "second", Address: "2001:db8::fffe", RemoteAS: 64513}
	return &v1alpha1.NodeConfig{Spec: v1alpha1.NodeConfigSpec{
		PodCIDRs: v1alpha1.PodCIDRs{IPv6: []v1alpha1.CIDR{"2001:db8:100:1::/64"}},
		BGP: &v1alpha1.BGP{
			LocalAS: 64601, RouterID: "192.0.2.11",
			BGPPeering: v1alpha1.BGPPeering{
				GracefulShutdown: yes(), Multipath: some(1), Peers: []v1alpha1.BGPPeer{p, second},
			},
		},
		OSPF: ospf,
	}}
}

func fuzzedOSPF(iface, cidr string, next func() int, some func(int) *int32) *v1alpha1.OSPF {
	yes := func() bool { return next()%2 == 1 }
	i := v1alpha1.OSPFInterface{
		Name: iface, Cost: some(1), Priority: int32(next()), HelloSeconds: some(1), DeadSeconds: some(2),
		NetworkType: []v1alpha1.OSPFNetworkType{"", "broadcast", "point-to-point"}[next()%3],
	}
	if yes() {
		i.BFD = &v1alpha1.BFD{ReceiveMilliseconds: some(10), TransmitMilliseconds: some(10), Multiplier: some(2)}
	}
	if yes() {
		i.Authentication = &v1alpha1.OSPFAuthentication{
			PasswordSecretRef: v1alpha1.SecretKeyRef{Name: "bgp", Key: "tor"}, KeyID: int32(next()),
			Algorithm:     []v1alpha1.OSPFAlgorithm{"", "hmac-sha-256", "hmac-sha-384", "hmac-sha-512"}[next()%4],
			IPv4Algorithm: []v1alpha1.OSPFAlgorithm{"", "md5", "hmac-sha-256", "hmac-sha-384", "hmac-sha-512"}[next()%5],
			Families:      [][]v1alpha1.Family{nil, {"ipv6"}, {"ipv4"}}[next()%3],
		}
	}
	o := &v1alpha1.OSPF{RouterID: "192.0.2.11", OSPFRouting: v1alpha1.OSPFRouting{
		Area:        []string{"", "0.0.0.7", "255.255.255.255"}[next()%3],
		IPv4Version: []v1alpha1.OSPFVersion{"", "v2", "v3"}[next()%3],
		Families:    [][]v1alpha1.Family{nil, {"ipv6"}, {"ipv4"}}[next()%3],
		Cost:        some(1), MetricType: int32(next() % 3),
		Interfaces: []v1alpha1.OSPFInterface{i, {Name: "second"}},
	}}
	if yes() {
		o.Import = &v1alpha1.Import{Policy: "prefixes", Prefixes: []v1alpha1.PrefixMatch{{Prefix: v1alpha1.CIDR(cidr)}}}
	}
	return o
}

// TestRandomOptions has BIRD check random combinations of options. BIRD must accept
// what the parser accepts.
func TestRandomOptions(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	file := filepath.Join(t.TempDir(), "bird.conf")
	where := [][3]string{{"2001:db8::1", "", "2001:db8::2"}, {"fe80::1", "eth0", ""}, {"", "eth0", ""}, {"192.0.2.1", "", "192.0.2.2"}, {"192.0.2.1", "eth0", ""}}
	judged := 0
	for range 20_000 {
		choices := make([]byte, 80)
		for i := range choices {
			// Small numbers, or the limits would refuse nearly all.
			choices[i] = byte(random.IntN(1 << random.IntN(9)))
		}
		w := where[random.IntN(len(where))]
		in, err := fuzzedIntent("tor", w[0], w[1], w[2], "64512:100", "1:2:3", "2001:db8::/32", choices)
		if err != nil {
			continue
		}
		if judged++; judged > 400 {
			return
		}
		if pw, err := routing.ParsePassword([]byte("x")); err == nil && judged%2 == 0 {
			in.Passwords = map[config.SecretRef]routing.Password{{Name: "bgp", Key: "tor"}: pw}
		}
		wantSameStatements(t, in)
		if err := os.WriteFile(file, Render(in), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkFile(t.Context(), file); err != nil {
			t.Errorf("%v\n%s", err, Render(in))
		}
	}
	t.Errorf("the parser took only %d of 20,000", judged)
}
