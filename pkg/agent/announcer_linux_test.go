package agent

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
	"flock.fritzlab.net/flock/pkg/pod"
	"flock.fritzlab.net/flock/pkg/pod/source"
)

// A pod whose link could not be looked up when it was identified, which happens once, is announced
// all the same.
func TestLinkIsLookedUpAgain(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	all, ns := composed(t, log)
	ns.IP("link", "add", "pod0", "type", "veth", "peer", "name", "peer0")
	ns.IP("link", "set", "pod0", "up")
	ns.IP("link", "set", "peer0", "up")
	var index int
	if _, err := fmt.Sscanf(ns.IP("-o", "link", "show", "pod0"), "%d:", &index); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	record := `{"containerID":"c1","ifName":"eth0","state":"committed","podNamespace":"shop","podName":"web-0","hostIf":"pod0","mtu":1500,"addrs":[{"addr":"2001:db8:1::5","cidr":"2001:db8:1::/64"}],"anycast":[{"addr":"2001:db8:53::53","pool":"dns"}]}`
	if err := os.WriteFile(filepath.Join(dir, "c1@eth0.json"), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	a := each[*announcer](all)[0]
	a.ledger = ledger.Open(ledger.Config{Dir: dir, OnRetired: func() {}, OnGranted: func() {}, Log: log})
	var fail atomic.Int32
	a.lookup = func(string) (wiring.Link, error) {
		if fail.Add(-1) >= 0 {
			return wiring.Link{}, unix.ENOBUFS
		}
		return wiring.Link{IfIndex: index}, nil
	}
	go a.controller.Run(t.Context())
	go a.followPools(t.Context())
	knows := func(uid pod.UID) {
		t.Helper()
		nettest.Await(t, "the controller to know the pod", func() bool {
			s, err := a.controller.Status(t.Context())
			return err == nil && len(s.Paths) == 1 && s.Paths[0].Pod.UID == uid
		})
	}
	knows("")
	fail.Store(2)
	a.podChanged(source.Event{Type: source.Added, Pod: &source.Pod{Ref: pod.Ref{Namespace: "shop", Name: "web-0", UID: "u1"}}})
	knows("u1")
}
