package hostport

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/pod"
)

// BenchmarkSet times a pod's port coming and going, beside others.
func BenchmarkSet(b *testing.B) {
	for _, protocol := range []string{"tcp", "udp"} {
		for _, others := range []int{0, 100} {
			b.Run(fmt.Sprintf("%s/%d", protocol, others), func(b *testing.B) {
				var ports *Ports
				nettest.New(b).Run(func() {
					var err error
					if ports, err = Open(slog.New(slog.DiscardHandler)); err != nil {
						b.Fatal(err)
					}
				})
				defer ports.Close()
				of := func(i int) Binding {
					return Binding{
						HostIf: fmt.Sprintf("flock%08x", i),
						Addrs:  []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)), netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})},
						Ports:  []pod.HostPort{{HostPort: uint16(1000 + i), ContainerPort: 80, Protocol: protocol}},
					}
				}
				var all []Binding
				for i := range others {
					all = append(all, of(i))
				}
				if err := ports.Reset(all); err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					if err := ports.Set(of(others)); err != nil {
						b.Fatal(err)
					}
					if err := ports.Remove(of(others).HostIf); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
