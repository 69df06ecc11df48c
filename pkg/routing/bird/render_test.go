package bird

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// intentOf reads a NodeConfig, and AddressPools after it, and adds what the agent
// adds: the subnets of the links, the node's addresses, and a password for every
// reference.
func intentOf(t testing.TB, objects []byte) routing.Intent {
	t.Helper()
	docs := bytes.Split(objects, []byte("\n---\n"))
	var nc v1alpha1.NodeConfig
	if err := yaml.UnmarshalStrict(docs[0], &nc); err != nil {
		t.Fatal(err)
	}
	var pools []config.Pool
	for _, doc := range docs[1:] {
		var ap v1alpha1.AddressPool
		if err := yaml.UnmarshalStrict(doc, &ap); err != nil {
			t.Fatal(err)
		}
		pool, err := config.ParsePool(&ap)
		if err != nil {
			t.Fatal(err)
		}
		pools = append(pools, pool)
	}
	node, err := config.ParseNode(&nc)
	if err != nil {
		t.Fatal(err)
	}
	in := routing.IntentOf(node)
	in.OnLink = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:0:1::/64")}
	in.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8:0:1::11")}
	in.Pools = routing.PoolsOf(pools)
	in.Passwords = map[config.SecretRef]routing.Password{}
	for _, ref := range in.Secrets() {
		if in.Passwords[ref], err = routing.ParsePassword([]byte("correct-horse-battery-staple")); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

// TestGolden renders each NodeConfig of testdata and compares with the
// configuration of BIRD beside it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no NodeConfig in testdata", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			in := intentOf(t, readFile(t, file))
			in.Departing = name == "departing"
			got := Render(in)
			golden := filepath.Join("testdata", name+".conf")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("not what %s holds (go test -update rewrites it):\n%s", golden, got)
			}
			if !bytes.Equal(got, Render(in)) {
				t.Error("rendered twice, got two configurations")
			}
			if digest := digestIn(got); !bytes.Contains(got, []byte(`flock_config = "`+digest+`"`)) {
				t.Errorf("digestIn is %s, the configuration says otherwise", digest)
			}
		})
	}
}

// TestPoolsWithoutAttributes: they are no reason to reconfigure BIRD.
func TestPoolsWithoutAttributes(t *testing.T) {
	in := intentOf(t, readFile(t, "testdata/pools.yaml"))
	in.Pools = nil
	want := Render(in)
	for _, pools := range [][]config.Pool{nil, {
		{Name: "a", CIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8:a::/48")}, Static: true, Routing: config.PoolRouting{AnnounceDelay: time.Second}},
		{Name: "b", CIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8:a:b::/64")}, Anycast: true},
	}} {
		in.Pools = routing.PoolsOf(pools)
		if got := Render(in); !bytes.Equal(got, want) {
			t.Errorf("want what is rendered without pools, got:\n%s", got)
		}
	}
}

// TestMissingPassword: without its password a session stays down, rather than
// coming up without one.
func TestMissingPassword(t *testing.T) {
	in := intentOf(t, readFile(t, "testdata/options.yaml"))
	in.Passwords = nil
	conf := string(Render(in))
	if strings.Contains(conf, "password \"") || strings.Count(conf, "\tdisabled; # its password") != 1 {
		t.Errorf("want one peer disabled and no password:\n%s", conf)
	}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
