package bird

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// intentOf reads a NodeConfig and adds what the agent adds: the subnets of the
// links, the node's addresses, and a password for every reference.
func intentOf(t testing.TB, nodeConfig []byte) routing.Intent {
	t.Helper()
	var nc v1alpha1.NodeConfig
	if err := yaml.UnmarshalStrict(nodeConfig, &nc); err != nil {
		t.Fatal(err)
	}
	node, err := config.ParseNode(&nc)
	if err != nil {
		t.Fatal(err)
	}
	in := routing.IntentOf(node)
	in.OnLink = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:0:1::/64")}
	in.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8:0:1::11")}
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
			nodeConfig, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in := intentOf(t, nodeConfig)
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
				t.Errorf("not what %s holds (go test -update writes it anew):\n%s", golden, got)
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
