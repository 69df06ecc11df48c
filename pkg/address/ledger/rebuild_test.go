package ledger

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/pod"
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func granted(texts ...string) (out []address.Granted) {
	for _, t := range texts {
		addr, cidr, _ := strings.Cut(t, " of ")
		g := address.Granted{Addr: netip.MustParseAddr(addr)}
		if cidr != "" {
			g.CIDR = netip.MustParsePrefix(cidr)
		}
		out = append(out, g)
	}
	return out
}

func TestRebuild(t *testing.T) {
	both := []netip.Prefix{cidr6, cidr4}
	for _, tt := range []struct {
		name      string
		link      Observed
		summaries []netip.Prefix
		want      address.Set
	}{
		{"allocated", Observed{Addrs: addrs("10.0.0.1", "2001:db8:1::5"), Routed: addrs("2001:db8:1::5", "10.0.0.1")}, both,
			address.Set{Primary: granted("2001:db8:1::5 of 2001:db8:1::/64", "10.0.0.1 of 10.0.0.0/29")}},
		{"static from a pool", Observed{Addrs: addrs("203.0.113.7"), Announced: addrs("203.0.113.7")}, both,
			address.Set{Primary: granted("203.0.113.7")}},
		{"one of each kind", Observed{
			Addrs:     addrs("2001:db8:53::53", "2001:db8:200::9", "2001:db8:1::5", "203.0.113.53", "2001:db8:200::7", "10.0.0.1", "2001:db8:1::7"),
			Routed:    addrs("2001:db8:1::7", "10.0.0.1", "2001:db8:1::5"),
			Announced: addrs("2001:db8:200::9", "2001:db8:200::7"),
		}, both, address.Set{
			Primary:   granted("2001:db8:1::5 of 2001:db8:1::/64", "10.0.0.1 of 10.0.0.0/29"),
			Secondary: granted("2001:db8:1::7 of 2001:db8:1::/64", "2001:db8:200::7", "2001:db8:200::9"),
			Anycast:   granted("203.0.113.53", "2001:db8:53::53"),
		}},
		{"its routes were flushed", Observed{Addrs: addrs("2001:db8:1::5", "2001:db8:53::53")}, both,
			address.Set{Primary: granted("2001:db8:1::5 of 2001:db8:1::/64"), Anycast: granted("2001:db8:53::53")}},
		{"the summaries were flushed: it has to be announced", Observed{Addrs: addrs("2001:db8:1::5", "2001:db8:53::53"), Routed: addrs("2001:db8:1::5")}, nil,
			address.Set{Primary: granted("2001:db8:1::5"), Anycast: granted("2001:db8:53::53")}},
		{"a pool inside the node's CIDR", Observed{Addrs: addrs("2001:db8:1::5"), Announced: addrs("2001:db8:1::5")}, both,
			address.Set{Primary: granted("2001:db8:1::5")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.link.ContainerID, tt.link.HostIf, tt.link.Pod, tt.link.MTU = "c1", "flock01234567", "shop/web-0", 1400
			want := Record{ID: ID{"", "c1", "eth0"}, State: Committed, Pod: pod.Ref{Namespace: "shop", Name: "web-0"}, HostIf: "flock01234567", MTU: 1400, Set: tt.want}
			if got := Rebuild([]Observed{tt.link}, tt.summaries); len(got) != 1 || !reflect.DeepEqual(got[0], want) {
				t.Errorf("got\n %+v, want\n %+v", got, want)
			}
		})
	}
}

// Whatever has become of the records, what the kernel has is held.
func TestLedgerIsRebuilt(t *testing.T) {
	link := Observed{ContainerID: "c1", HostIf: "flock01234567", Pod: "shop/web-0", MTU: 1500, Addrs: addrs("2001:db8:1::5", "10.0.0.1"), Routed: addrs("2001:db8:1::5", "10.0.0.1")}
	for name, tt := range map[string]struct {
		file    string // what its file holds; "-" if there is none
		rebuilt bool
		state   State
	}{
		"none":           {"-", true, Committed},
		"empty":          {"", true, Committed},
		"torn":           {oldCommitted[:100], true, Committed},
		"quarantined":    {oldResting, true, Committed}, // and yet there is its link
		"readable":       {oldCommitted, false, Committed},
		"being released": {strings.Replace(oldCommitted, "committed", "released", 1), false, Released},
		"unfinished":     {strings.Replace(oldCommitted, "committed", "pending", 1), false, Pending},
		"newer":          {`{"version":9,"addrs":{"of":"another type"}}`, false, Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			dir, c := t.TempDir(), &clock{epoch}
			if tt.file != "-" {
				file := strings.Replace(tt.file, "203.0.113.7", "10.0.0.1", 1)
				must(t, os.WriteFile(filepath.Join(dir, "c1@net7.json"), []byte(strings.Replace(file, "eth0", "net7", 1)), 0o600))
			}
			l := open(t, dir, c)
			made := l.Rebuild([]Observed{link}, []netip.Prefix{cidr6, cidr4})
			if (len(made) == 1) != tt.rebuilt {
				t.Errorf("rebuilt %+v", made)
			}
			records := l.Records()
			if len(records) != 1 || records[0].State != tt.state || records[0].HostIf != link.HostIf {
				t.Fatalf("there are %+v, want one that is %s", records, tt.state)
			}
			if ifName := records[0].IfName; ifName != "net7" && (tt.file != "-" && name != "quarantined" || ifName != "eth0") {
				t.Errorf("its interface is %s", ifName)
			}
			for range 5 {
				r, _, err := l.Promise(attachment(string('a'+rune(len(l.Records())))), v4only, embed.Workload{})
				must(t, err)
				if r.Primary[0].Addr == link.Addrs[1] {
					t.Errorf("%v is given out again", r.Primary[0])
				}
			}
			if tt.rebuilt && len(open(t, dir, c).Records()) != 6 {
				t.Error("a restart does not find what was rebuilt")
			}
			if again := l.Rebuild([]Observed{link}, nil); len(again) != 0 {
				t.Errorf("rebuilt a second time: %+v", again)
			}
		})
	}
}

func TestRebuiltRecordGetsItsPodsUID(t *testing.T) {
	dir := t.TempDir()
	l := Open(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	l.Rebuild([]Observed{{ContainerID: "c1", HostIf: "flock1", Pod: "shop/web-0"}, {ContainerID: "c2", HostIf: "flock2", Pod: "shop/web-1"}}, nil)
	if got := l.Identify(pod.Ref{Namespace: "shop", Name: "web-0", UID: "u0"}); len(got) != 1 || got[0].ContainerID != "c1" || got[0].Pod.UID != "u0" {
		t.Errorf("identified %+v", got)
	}
	if got := l.Identify(pod.Ref{Namespace: "shop", Name: "web-0", UID: "later"}); len(got) != 0 {
		t.Errorf("identified again: %+v", got)
	}
	for _, l := range []*Ledger{l, Open(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})} {
		if r, ok := l.Lookup(ID{"", "c1", "eth0"}); !ok || r.Pod.UID != "u0" {
			t.Errorf("recorded %+v", r)
		}
	}
}

// Records without the names of pools get them, and every use of a pool is reported.
func TestPoolsOfRecords(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "c1@eth0.json"), []byte(oldCommitted), 0o600))
	l := open(t, dir, &clock{epoch})
	changes := 0
	l.onGranted = func() { changes++ }
	before := l.Records()[0]
	l.NamePools(func(addr netip.Addr, anycast bool) string {
		if addr == netip.MustParseAddr("203.0.113.8") {
			return ""
		}
		return map[bool]string{true: "anycast", false: "static"}[anycast]
	})
	want := []address.Granted{
		{Addr: netip.MustParseAddr("203.0.113.7"), Pool: "static"}, {Addr: netip.MustParseAddr("203.0.113.8")}, {Addr: netip.MustParseAddr("2001:db8:53::53"), Pool: "dns"},
	}
	for _, l := range []*Ledger{l, open(t, dir, &clock{epoch})} {
		if got := l.Granted(); !reflect.DeepEqual(got, want) {
			t.Errorf("granted %v, want %v", got, want)
		}
	}
	if before.Primary[1].Pool != "" {
		t.Error("a record that was handed out has changed")
	}

	promise(t, l, "plain", v4only)
	if changes != 0 {
		t.Error("a pod without addresses from pools is reported")
	}
	shared := grant.Plan{IPv4: &grant.Source{}, Anycast: []address.Granted{{Addr: netip.MustParseAddr("2001:db8:53::53"), Pool: "dns"}}}
	a := promise(t, l, "a", shared)
	promise(t, l, "a", shared)
	l.Release(a.ID)
	if changes != 1 || len(l.Granted()) != 4 {
		t.Errorf("%d changes were reported, granted %v; want one, and four until the link is gone", changes, l.Granted())
	}
	must(t, l.Free(a.ID))
	if changes != 2 || len(l.Granted()) != 3 {
		t.Errorf("%d changes were reported, granted %v; want two, and three", changes, l.Granted())
	}
}
