//go:build linux

package agent

import (
	"log/slog"
	"maps"
	"net/netip"
	"slices"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/kube"
)

// servicePools is by which AddressPool each address of a Service was given (service.Granting),
// so that its routes keep the pool's attributes once the pool is deleted or narrowed. services
// writes it; it is on disk, as nothing else tells it to an agent that starts after that.
type servicePools struct {
	path string
	log  *slog.Logger

	cell.Cell[map[netip.Addr]string]
	kept *kube.Kept[map[netip.Addr]string] // services' own
}

// open reads the file.
func (p *servicePools) open() (err error) {
	if p.kept, err = kube.OpenKept(p.path, maps.Equal[map[netip.Addr]string], p.log); err != nil {
		return err
	}
	if kept := p.kept.Get(); kept != nil {
		p.Set(kept)
	}
	return nil
}

// grantedOf lists the addresses, in order.
func grantedOf(by map[netip.Addr]string) (all []address.Granted) {
	for _, a := range slices.SortedFunc(maps.Keys(by), netip.Addr.Compare) {
		all = append(all, address.Granted{Addr: a, Pool: by[a]})
	}
	return all
}
