package bird

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldens are Intents by the name of the file that holds their configuration.
var goldens = map[string]routing.Intent{
	"none": {},
	"one-peer": {BGP: &config.BGP{
		LocalAS: 64601, RouterID: netip.MustParseAddr("192.0.2.11"),
		Peers: []config.BGPPeer{{Name: "tor", Addr: netip.MustParseAddr("2001:db8:0:1::1"), RemoteAS: 64512}},
	}},
	"both-families": {BGP: &config.BGP{
		LocalAS: 4200000001, RouterID: netip.MustParseAddr("192.0.2.11"),
		Peers: []config.BGPPeer{
			{Name: "tor-a", Addr: netip.MustParseAddr("2001:db8:0:1::1"), RemoteAS: 64512},
			{Name: "tor-b", Addr: netip.MustParseAddr("192.0.2.2"), RemoteAS: 64512},
			{Name: "path", Addr: netip.MustParseAddr("2001:db8:0:1::3"), RemoteAS: 4200000001},
		},
	}},
}

func TestGolden(t *testing.T) {
	for name, in := range goldens {
		t.Run(name, func(t *testing.T) {
			got := Render(in)
			file := filepath.Join("testdata", name+".conf")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("rendered anew with go test -update, or a mistake:\n%s", got)
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
