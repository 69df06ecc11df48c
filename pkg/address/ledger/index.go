package ledger

import (
	"cmp"
	"net/netip"
	"slices"

	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/address/ipam"
)

// index finds the records that have an address. Without it a pod with many addresses
// would keep the others waiting for the ledger, because each address is looked up in
// each record.
type index map[netip.Addr]map[slot]struct{}

func (x index) add(addrs []netip.Addr, key slot) {
	for _, a := range addrs {
		if x[a] == nil {
			x[a] = map[slot]struct{}{}
		}
		x[a][key] = struct{}{}
	}
}

func (x index) remove(addrs []netip.Addr, key slot) {
	for _, a := range addrs {
		if delete(x[a], key); len(x[a]) == 0 {
			delete(x, a)
		}
	}
}

// set puts r in place of the record of its slot. l.mu must be held.
func (l *Ledger) set(r Record) {
	key := r.ID.slot()
	if was, now := l.records[key].All(), r.All(); !slices.Equal(was, now) {
		l.index.remove(was, key)
		l.index.add(now, key)
	}
	l.records[key] = r
}

// drop removes the record of a slot. l.mu must be held.
func (l *Ledger) drop(key slot) {
	l.index.remove(l.records[key].All(), key)
	delete(l.records, key)
}

// owner is who may have r's addresses again in their quarantine. A pod whose workload is
// not known is taken for one without a controller.
func (r Record) owner() ipam.Owner {
	return grant.OwnerOf(embed.Workload{Namespace: r.Pod.Namespace, App: cmp.Or(r.App, r.Pod.Name)})
}
