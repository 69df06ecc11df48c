package ledger

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/address/ipam"
)

// BenchmarkLife is what a pod costs the ledger from ADD to the end of its link, with 250
// others on the node.
func BenchmarkLife(b *testing.B) {
	l := Open(Config{Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
	l.Configure(ipam.Config{Node: "node1", IPv6: []netip.Prefix{cidr6}, IPv4: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, Quarantine: time.Minute})
	life := func(name string, ends bool) {
		r, _, err := l.Promise(attachment(name), dual, embed.Workload{})
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Commit(r.ID); err != nil {
			b.Fatal(err)
		}
		if ends {
			l.Release(r.ID)
			if err := l.Free(r.ID); err != nil {
				b.Fatal(err)
			}
		}
	}
	for i := range 250 {
		life(fmt.Sprint("other", i), false)
	}
	for i := 0; b.Loop(); i++ {
		life(fmt.Sprint("c", i), true)
	}
}

// BenchmarkMany is the promise to a pod with many addresses, with 20 such pods on the
// node: for so long the ledger is locked, and the ADDs of others wait.
func BenchmarkMany(b *testing.B) {
	for _, each := range []int{8, 64, 1024} {
		b.Run(fmt.Sprint(each), func(b *testing.B) {
			l := Open(Config{Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
			l.Configure(ipam.Config{Node: "node1", IPv6: []netip.Prefix{cidr6}, Quarantine: time.Millisecond})
			plan := func(pod int) (p grant.Plan) {
				for i := range each {
					a := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 2, 12: byte(pod >> 8), 13: byte(pod), 14: byte(i >> 8), 15: byte(i)})
					g := address.Granted{Addr: a, Pool: "p"}
					if i == 0 {
						p.IPv6 = &grant.Source{Static: &g}
					} else {
						p.Secondary = append(p.Secondary, g)
					}
				}
				return p
			}
			for i := range 20 {
				if _, _, err := l.Promise(attachment(fmt.Sprint("other", i)), plan(i), embed.Workload{}); err != nil {
					b.Fatal(err)
				}
			}
			i := 100
			for b.Loop() {
				i++
				r := attachment(fmt.Sprint("c", i))
				if _, _, err := l.Promise(r, plan(i), embed.Workload{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				l.Release(r.ID)
				if err := l.Free(r.ID); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
