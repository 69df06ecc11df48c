package installer

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// All of flock's tables go, and nobody else's; while a pod is left, none does.
func TestRemoveTables(t *testing.T) {
	ns, pod := nettest.New(t), nettest.New(t)
	for _, name := range kernel.Tables {
		ns.Exec("nft", "add table inet "+name+"; add chain inet "+name+" c { type filter hook forward priority 0; }")
	}
	ns.Exec("nft", "add table arp "+kernel.Table+"; add table inet flock-other; add table ip filter")
	ns.Veth(kernel.LinkPrefix+"0badcafe", pod, "eth0")
	var said bytes.Buffer
	i := Installer{Log: slog.New(slog.NewTextHandler(&said, nil))}
	remove := func() {
		t.Helper()
		said.Reset()
		ns.Run(func() {
			if err := i.RemoveTables(); err != nil {
				t.Error(err)
			}
		})
	}
	remove()
	if left := ns.Exec("nft", "list", "tables"); strings.Count(left, "table") != len(kernel.Tables)+3 || !strings.Contains(said.String(), "pods of flock are left") {
		t.Errorf("with a pod, what is left is\n%s\n%s", left, said.String())
	}
	ns.IP("link", "del", kernel.LinkPrefix+"0badcafe")
	for range 2 {
		remove()
		if left := ns.Exec("nft", "list", "tables"); left != "table inet flock-other\ntable ip filter\n" {
			t.Errorf("what is left is\n%s", left)
		}
	}
}
