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
	kept map[netip.Addr]string // what the file holds; services' own
}

// open reads the file.
func (p *servicePools) open() {
	kept, err := kube.Load[map[netip.Addr]string](p.path)
	if err != nil {
		p.log.Warn("cannot read the AddressPools of Services' addresses; routes of addresses whose pool is gone lose its attributes", "error", err)
	}
	if kept != nil {
		p.kept = *kept
		p.Set(*kept)
	}
}

// save writes the file if it has to change.
func (p *servicePools) save() {
	now := p.Get()
	if maps.Equal(now, p.kept) {
		return
	}
	if err := kube.Save(p.path, now); err != nil {
		p.log.Warn("cannot keep the AddressPools of Services' addresses for the next start", "error", err)
		return
	}
	p.kept = now
}

// grantedOf lists the addresses, in order.
func grantedOf(by map[netip.Addr]string) (all []address.Granted) {
	for _, a := range slices.SortedFunc(maps.Keys(by), netip.Addr.Compare) {
		all = append(all, address.Granted{Addr: a, Pool: by[a]})
	}
	return all
}
